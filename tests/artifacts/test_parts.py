"""Which items are a part's own, what names one, and how a part that died differs from one at work."""

from pathlib import Path

import pytest

from synthboot.artifacts import parts
from synthboot.artifacts.parts import Part
from synthboot.artifacts.store import Shards
from synthboot.data.disk import write_record
from synthboot.errors import ConfigError, LockedRun


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_every_item_is_of_one_part(count: int) -> None:
    own = [item for number in range(1, count + 1) for item in Part(number, count).of(11)]
    assert sorted(own) == list(range(11))
    assert all(Part(number, count).has(item) for number in range(1, count + 1) for item in Part(number, count).of(11))


@pytest.mark.parametrize(
    ("text", "part"),
    [("3/64", Part(3, 64)), ("1/1", Part(1, 1)), ("64/64", Part(64, 64)), ("03/64", Part(3, 64))],
)
def test_a_part_by_number(text: str, part: Part) -> None:
    assert parts.parse(text, {}) == part


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "three", "3", "3/", "/4", "1/2/3", "-1/4", "1.5/4", "", "1/4\n", "٣/٤"])
def test_no_part(text: str) -> None:
    with pytest.raises(ConfigError, match="there is no such part; give K/N"):
        parts.parse(text, {})


def array(number: str, least: str, count: str, **others: str) -> dict[str, str]:
    named = {"ID": number, "MIN": least, "COUNT": count, **others}
    return {f"SLURM_ARRAY_TASK_{name}": value for name, value in named.items()}


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        (array("0", "0", "4"), Part(1, 4)),
        (array("4", "1", "4", STEP="1"), Part(4, 4)),
        (array("14", "10", "3", STEP="2"), Part(3, 3)),
    ],
)
def test_a_part_by_the_variables_of_an_array(environment: dict[str, str], part: Part) -> None:
    assert parts.parse("array", environment) == part


def test_an_array_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="SLURM_ARRAY_TASK_ID is not set to a number; submit with sbatch --array"):
        parts.parse("array", {})
    with pytest.raises(ConfigError, match="--part 15/2: there is no such part"):  # --array=3,17 is not two of two
        parts.parse("array", array("17", "3", "2"))


def test_a_part_at_work_one_that_died_and_one_that_is_through(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "pool")
    for item in (0, 1, 3):
        shards.write(item, lambda _: {})
    with parts.held(tmp_path, Part(1, 3)) as record:
        record.found(shards, 8)
        record.cost = {"seconds": 2.0, "peak_memory_bytes": 7}
        record.is_finished = True
        record.save()
    with parts.held(tmp_path, Part(2, 3)) as record:
        record.found(shards, 8)
    with parts.held(tmp_path, Part(3, 3)):
        states = parts.standing(tmp_path)
    assert [(part.part, part.state) for part in states] == [("1/3", "finished"), ("2/3", "died"), ("3/3", "at work")]
    assert [part.missing for part in states] == [{"pool": [6]}, {"pool": [4, 7]}, {"pool": [2, 5]}]
    assert parts.spent(tmp_path) == [{"seconds": 2.0, "peak_memory_bytes": 7}]


def test_a_part_that_is_begun_again_has_taken_what_it_took(tmp_path: Path) -> None:
    with parts.held(tmp_path, Part(1, 2)) as record:
        record.cost = {"seconds": 5.0, "peak_memory_bytes": 9}
        record.save()
    assert [part.state for part in parts.standing(tmp_path)] == ["died", "not begun"]
    with parts.held(tmp_path, Part(1, 2)) as record:
        assert record.cost == {"seconds": 5.0, "peak_memory_bytes": 9}
    assert parts.spent(tmp_path) == [{"seconds": 5.0, "peak_memory_bytes": 9}]


def test_the_same_part_twice_and_another_division_of_the_work(tmp_path: Path) -> None:
    with parts.held(tmp_path, Part(2, 3)):
        with pytest.raises(LockedRun, match="part 2/3 is at work already"), parts.held(tmp_path, Part(2, 3)):
            pytest.fail("twice")
        divided = r"part 2/3 is at work, which divides the items otherwise than 2/4; wait for it, or use --part K/3"
        with pytest.raises(LockedRun, match=divided), parts.held(tmp_path, Part(2, 4)):
            pytest.fail("both")
    with parts.held(tmp_path, Part(1, 4)):  # nobody is at work on the other
        assert [part.part for part in parts.standing(tmp_path)] == ["1/4", "2/4", "3/4", "4/4"]


def test_what_was_spent_outlives_another_division_of_the_work(tmp_path: Path) -> None:
    def worked(part: Part, seconds: float) -> None:
        with parts.held(tmp_path, part) as record:
            record.cost = {"seconds": record.cost.get("seconds", 0.0) + seconds}
            record.save()

    for part, seconds in ((Part(1, 3), 1.0), (Part(2, 3), 2.0), (Part(1, 4), 4.0), (Part(1, 3), 8.0), (Part(2, 4), 16.0)):
        worked(part, seconds)
    assert sum(cost["seconds"] for cost in parts.spent(tmp_path)) == 31
    assert [part.state for part in parts.standing(tmp_path)] == ["not begun", "died", "not begun", "not begun"]

    # one that is refused leaves the records as they are
    worked(Part(1, 4), 0.0)
    with parts.held(tmp_path, Part(2, 4)):
        with pytest.raises(LockedRun, match="part 2/4 is at work"), parts.held(tmp_path, Part(1, 3)):
            pytest.fail("both")
        assert [part.state for part in parts.standing(tmp_path)][:2] == ["died", "at work"]


def test_a_record_of_an_older_version_says_whether_its_part_is_through(tmp_path: Path) -> None:
    for part in (Part(1, 2), Part(2, 2)):
        with parts.held(tmp_path, part):
            pass
    through, begun = sorted(tmp_path.rglob("*.json"))
    write_record(through, {"items": {}, "cost": {"seconds": 3.0, "peak_memory_bytes": 1}})
    write_record(begun, {"items": {}, "cost": {}})
    assert [part.state for part in parts.standing(tmp_path)] == ["finished", "died"]


def test_a_record_that_was_cut_off_is_of_a_part_that_died(tmp_path: Path) -> None:
    with parts.held(tmp_path, Part(1, 1)):
        pass
    [path] = tmp_path.rglob("*.json")
    path.write_text('{"items"')
    assert [part.state for part in parts.standing(tmp_path)] == ["died"]
