"""Studies on the smallest run: what points have alike is made once, a killed study goes on, rows are what artifacts say."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from synthboot import api, loading, recipes
from synthboot.artifacts import store
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.model import Model
from synthboot.cli import main
from synthboot.data import disk, lock
from synthboot.errors import ConfigError, FinishedWork, LockedRun, MissingArtifact
from synthboot.recipes import VERSIONS, folder_of
from synthboot.runner import executor
from synthboot.runner.graph import fingerprints, needed
from synthboot.runner.sharing import finished, take_over
from synthboot.runner.state import states
from synthboot.statistics import holm
from synthboot.studies.rows import Comparison, Row, adjusted, settings_of
from synthboot.studies.study import Grid, collect
from tests.conftest import contents, run_folder

VARY = {"tune.lr": [5e-4, 2e-3], "tune.weight_decay": [0.1, 0.2]}  # the first of each as the finished run has it
NAMES = [f"lr-{lr}_weight_decay-{decay}" for lr in (0.0005, 0.002) for decay in (0.1, 0.2)]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class Told:
    """What a study tells: the units that were made, and those taken over, by point."""

    def __init__(self, kill_at: int = 0) -> None:
        self.kill_at = kill_at
        self.made: dict[str, list[str]] = {}
        self.taken: dict[str, list[str]] = {}

    def __call__(self, name: str, kind: str, value: Any) -> None:
        if kind == "point":
            if value[0] == self.kill_at:
                raise KeyboardInterrupt
            self.point = name
            self.made[name], self.taken[name] = [], []
        elif kind == "start":
            self.made[self.point].append(name)
        elif kind == "note" and "taken over from" in value:
            self.taken[self.point].append(name)


@pytest.fixture(scope="module")
def studied(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Told, Told, api.Study]:
    """A study up to tune beside an earlier run, killed before its third point and started again."""
    out = tmp_path_factory.mktemp("studied") / "study"
    shutil.copytree(run_folder(tiny), out / "earlier")
    grid = Grid(tiny, VARY, target="tune", out=out)
    planned = grid.plan()
    assert [(p.to_make, p.shared) for p in planned] == [(0, 5), (1, 4), (1, 4), (1, 4)]
    killed, again = Told(kill_at=3), Told()
    with pytest.raises(KeyboardInterrupt):
        grid.run(killed)
    assert len(json.loads((out / "study.json").read_text())["rows"]) == 2
    (out / "study.csv.0123abcd.tmp").touch()  # as one that is killed while it writes leaves
    return out, killed, again, api.study(tiny, VARY, until="tune", out=out, progress=again)


def test_what_points_have_alike_is_made_once(studied: Any) -> None:
    out, killed, again, _ = studied
    assert not list(out.glob("*.tmp"))
    shared = ["corpus", "embed", "pair/related", "base"]
    assert killed.made == {NAMES[0]: [], NAMES[1]: ["tune/related"]}
    assert killed.taken == {NAMES[0]: [*shared, "tune/related"], NAMES[1]: shared}
    assert again.made == dict(zip(NAMES, [[], [], ["tune/related"], ["tune/related"]], strict=True))
    assert list(again.taken.values()) == [[], [], shared, shared]
    for stage in ("01-corpus", "03-pair", "04-base"):
        for path in (out / "earlier" / stage).rglob("*.json"):
            if path.name != "manifest.json":
                copies = [out / name / path.relative_to(out / "earlier") for name in NAMES]
                assert {copy.stat().st_ino for copy in copies} == {path.stat().st_ino}


def test_a_point_is_an_ordinary_run_to_the_byte(studied: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    out = studied[0]
    settings = {**tiny, "root": str(out), "name": NAMES[2], "tune": {**tiny["tune"], "lr": 2e-3, "weight_decay": 0.1}}
    alone = {**settings, "root": str(tmp_path)}
    api.Run(alone).run("tune")
    assert contents(settings) == contents(alone)
    standing = api.Run(settings).plan()  # and it knows itself again
    assert standing["tune/related"].status == "done"


def test_rows_say_what_the_artifacts_say_and_the_files_the_same(studied: Any) -> None:
    out, _, _, study = studied
    assert [row.point for row in study.rows] == NAMES
    for row in study.rows:
        unseen = Model.open(folder_of(out / row.folder, "tune", "related")).tuning.conditioning["unseen"]
        assert row.d1_worth == (unseen.d1_worth, unseen.d1_worth_error)
        assert row.net_worth == (unseen.net_worth, unseen.net_worth_error)
        base = Model.open(folder_of(out / row.folder, "base"))
        assert (row.parameters, row.base_loss) == (base.token_counts.parameters, base.curve.best_loss)
        assert (row.train_tokens, row.batch_tokens) == (2_688, 384)
        assert (row.contexts, row.seeds, row.minus_self, row.note) == (1, None, None, "")
    assert len({row.d1_worth for row in study.rows}) == 4

    found = json.loads((out / "study.json").read_text())["rows"]
    assert found == study.table()
    with open(out / "study.csv", newline="") as file:
        for line, row in zip(csv.DictReader(file), found, strict=True):
            assert list(line) == list(row)
            for name, value in row.items():
                assert line[name] == ("" if value is None else value if isinstance(value, str) else json.dumps(value))
    frame = study.to_pandas()
    assert frame["tune.lr"].tolist() == [0.0005, 0.0005, 0.002, 0.002]
    assert frame["d1_worth"].tolist() == [row.d1_worth[0] for row in study.rows]


def test_a_point_is_not_made_in_the_place_of_one_of_another_setting(studied: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "study"
    shutil.copytree(studied[0] / NAMES[3], out / "lr-0.002")  # of tune.lr, in the name of any rate
    with pytest.raises(ConfigError, match=r"lr-0\.002 is another point's run \(.*--out"):
        Grid(tiny, {"optim.lr": [2e-3, 4e-3]}, target="tune", out=out)
    decay = {**tiny, "tune": {**tiny["tune"], "weight_decay": 0.2}}
    assert Grid(decay, {"tune.lr": [5e-4, 2e-3]}, target="tune", out=out).plan()[1].to_make == 0
    # a namesake that is not in the name may change: what read it is made anew
    slower = {**decay, "optim": {**decay["optim"], "lr": 7e-4}}
    assert Grid(slower, {"tune.lr": [5e-4, 2e-3]}, target="tune", out=out).plan()[1].to_make > 0


def test_looks_are_paid_for_before_comparisons_are_ordered() -> None:
    found = [
        Row(str(looks), "", {}, looks=looks, minus_repetition=Comparison(-0.1, -0.2, 0.0, p=p, p_adjusted=p))
        for p, looks in ((0.001, 100), (0.04, 1), (0.5, 3))
    ]
    p_adjusted = [row.minus_repetition.p_adjusted for row in adjusted(found) if row.minus_repetition]
    assert p_adjusted == pytest.approx([0.2, 0.12, 1.0])


def test_a_row_is_of_its_points_settings_alone(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A study that ends earlier than what other settings have left in its place."""
    out = tmp_path / "study"
    shutil.copytree(run_folder(tiny), out / "validation_docs-12")
    vary = {"corpus.validation_docs": [12, 13]}
    wider = api.study(tiny, vary, until="corpus", out=out, set={"model.width": 64}).rows[0]
    assert (wider.parameters, wider.d1_worth, wider.losses) == (None, None, {})
    assert wider.pool_tokens is not None
    assert "04-base is left out: of other settings" in wider.note
    same = api.study(tiny, vary, until="corpus", out=out).rows[0]
    assert set(same.losses) == {"repetition", "sbp"}  # of these settings, though beyond the corpus


def test_a_study_that_goes_on_keeps_the_rows_of_later_points(studied: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "study"
    shutil.copytree(studied[0], out)
    complete = json.loads((out / "study.json").read_text())
    with pytest.raises(KeyboardInterrupt):
        Grid(tiny, VARY, target="tune", out=out).run(Told(kill_at=2))
    assert json.loads((out / "study.json").read_text()) == complete


def test_one_study_at_a_time(studied: Any, tiny: dict[str, Any]) -> None:
    out = studied[0]
    with lock.held(out), pytest.raises(LockedRun, match="is working on"):
        Grid(tiny, VARY, target="tune", out=out).run()


def test_collected_runs_have_the_same_figures_and_what_sets_them_apart(studied: Any, tmp_path: Path) -> None:
    out, _, _, study = studied
    moved = tmp_path / "elsewhere"
    shutil.copytree(out, moved)
    found = collect([moved / name for name in NAMES])
    assert [row.settings for row in found.rows] == [row.settings for row in study.rows]
    assert [row.d1_worth for row in found.rows] == [row.d1_worth for row in study.rows]

    # a study's folder stands for its runs, the earlier one among them, which has got further
    everything = collect([moved])
    assert [row.point for row in everything.rows] == ["earlier", *NAMES]
    assert set(everything.rows[0].losses) == {"repetition", "sbp"}
    with pytest.raises(MissingArtifact, match="no run folder"):
        collect([tmp_path])

    # a point that was stopped before anything was finished is no run yet
    shutil.rmtree(moved / NAMES[0])
    (moved / NAMES[0] / "01-corpus" / "work").mkdir(parents=True)
    assert [row.point for row in collect([moved]).rows] == ["earlier", *NAMES[1:]]


def test_runs_of_other_test_documents_are_told_apart(tiny: dict[str, Any], tmp_path: Path) -> None:
    odd = tiny | {"root": str(tmp_path), "name": "odd", "corpus": tiny["corpus"] | {"test_docs": 9}}
    less = tiny | {"root": str(tmp_path), "name": "less", "budget": tiny["budget"] | {"unique_tokens": 1_000}}
    for settings in (odd, less):
        api.Run(settings).run("corpus")
    folders = [run_folder(settings) for settings in (tiny, odd, less)]
    sets = [row.test_set for row in collect(folders).rows]
    assert sets[0] == sets[2] != sets[1]  # D_pretrain is a loss' cause, not what it is of
    told = call("study", "--runs", *folders, "--out", tmp_path / "study")
    assert "losses are of 2 different sets of validation and test documents" in told.stdout
    told = call("study", "--runs", folders[0], folders[2], "--out", tmp_path / "study")
    assert "different sets" not in told.stdout


def test_what_is_left_of_other_settings_is_left_out_of_the_row(studied: Any, tmp_path: Path) -> None:
    out = studied[0]
    run = tmp_path / "mixed"
    shutil.copytree(out / "earlier", run)
    shutil.rmtree(run / "05-tune" / "related")
    shutil.copytree(out / NAMES[3] / "05-tune" / "related", run / "05-tune" / "related")
    [row] = collect([run]).rows
    assert row.d1_worth is not None
    assert row.losses == {}  # its arms read what another synthesizer wrote
    assert "06-synthesize/related is left out" in row.note


def test_settings_are_those_of_what_the_row_shows(tmp_path: Path) -> None:
    """And not of arms that were trained before a setting was changed."""
    for stage, rate, parents in (("base", 0.02, {}), ("pretrain", 0.01, {"base": "gone"})):
        folder = folder_of(tmp_path, stage, "" if stage == "base" else "sbp/seed-0")
        folder.mkdir(parents=True)
        store.commit(folder, store.Manifest(stage, VERSIONS[stage], stage, {"optim.lr": rate}, parents))
    assert settings_of(tmp_path) == {"optim.lr": 0.02}


def test_what_another_run_has_damaged_is_made_anew(tiny: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(run_folder(tiny), tmp_path / "other")
    [vectors] = (tmp_path / "other" / "02-embed" / "pool" / "000000").glob("*.npy")
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"?")
    cfg = loading.load({**tiny, "root": str(tmp_path), "name": "mine"})
    plan = needed(recipes.units(cfg), "pair")
    notes: list[tuple[str, str]] = []
    shelf = finished([tmp_path / "other"])
    assert take_over(cfg, plan, states(cfg, plan), shelf, lambda *note: notes.append(note))
    assert [name for name, _ in notes] == ["corpus", "embed"]
    assert notes[1][1].endswith("made anew")
    # pairs of vectors that are not there would be made anew with them
    assert {name: state.status for name, state in states(cfg, plan).items()} == {
        "corpus": "done",
        "embed": "missing",
        "pair/related": "missing",
    }


def test_a_run_takes_nothing_over_from_itself(tiny: dict[str, Any], tmp_path: Path) -> None:
    """What of its own was stale only while a parent was missing stays, whatever another run's is worth."""
    for name in ("mine", "other"):
        shutil.copytree(run_folder(tiny), tmp_path / name)
    shutil.rmtree(tmp_path / "mine" / "01-corpus")
    (tmp_path / "other" / "04-base" / "best" / "model.safetensors").write_bytes(b"damaged")
    cfg = loading.load({**tiny, "root": str(tmp_path), "name": "mine"})
    plan = needed(recipes.units(cfg), "base")
    notes: list[tuple[str, str]] = []
    shelf = finished([tmp_path / "mine", tmp_path / "other"])
    assert len(shelf[fingerprints(plan)["base"]]) == 2
    assert take_over(cfg, plan, states(cfg, plan), shelf, lambda *note: notes.append(note))
    assert notes == [("corpus", f"taken over from {tmp_path / 'other' / '01-corpus'}")]
    assert {state.status for state in states(cfg, plan).values()} == {"done"}
    assert Model.open(folder_of(cfg.folder, "base")).curve.best_loss > 0


def test_what_was_made_of_something_else_is_not_taken_over(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A base of the same settings that came out otherwise there, as on another processor."""
    shutil.copytree(run_folder(tiny), tmp_path / "other")
    shutil.copytree(run_folder(tiny), tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine" / "05-tune")
    cfg = loading.load({**tiny, "root": str(tmp_path), "name": "mine"})
    plan = needed(recipes.units(cfg), "tune")
    path = tmp_path / "other" / "05-tune" / "related" / "manifest.json"
    record = disk.read_record(path)
    assert set(record["contents"]) == {"corpus", "pair", "base"}
    disk.write_record(path, record | {"contents": record["contents"] | {"base": "another"}})
    notes: list[tuple[str, str]] = []
    assert not take_over(cfg, plan, states(cfg, plan), finished([tmp_path / "other"]), lambda *note: notes.append(note))
    disk.write_record(path, record)
    assert take_over(cfg, plan, states(cfg, plan), finished([tmp_path / "other"]), lambda *note: notes.append(note))
    assert [name for name, _ in notes] == ["tune/related"]


def test_hours_of_finished_work_give_way_to_what_another_run_has_only_where_that_is_said(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("mine", "other"):
        shutil.copytree(run_folder(tiny), tmp_path / name)
    path = tmp_path / "mine" / "05-tune" / "related" / "manifest.json"
    record = disk.read_record(path)
    disk.write_record(path, record | {"cost": record["cost"] | {"seconds": 3_600.0}})
    mine = {**tiny, "root": str(tmp_path), "name": "mine", "tune": {**tiny["tune"], "lr": 7e-3}}
    api.Run({**mine, "name": "other"}).run("tune")

    cfg = loading.load(mine)
    before = path.read_bytes()
    with pytest.raises(FinishedWork, match=r"1\.0 hours \(tune/related: tune\.lr"):
        executor.run(cfg, "tune", others=[tmp_path / "other"])
    assert path.read_bytes() == before
    notes: list[str] = []
    executor.run(cfg, "tune", lambda name, kind, _: notes.append(f"{name} {kind}"), [tmp_path / "other"], replace=True)
    assert notes == ["tune/related note", "tune plan"]


def test_a_damaged_copy_is_passed_over_for_a_whole_one(tiny: dict[str, Any], tmp_path: Path) -> None:
    for name in ("damaged", "whole"):
        shutil.copytree(run_folder(tiny), tmp_path / name)
    (tmp_path / "damaged" / "01-corpus" / "tokenizer" / "tokenizer.json").write_text("{}")
    cfg = loading.load({**tiny, "root": str(tmp_path), "name": "mine"})
    plan = needed(recipes.units(cfg), "corpus")
    notes: list[tuple[str, str]] = []
    shelf = finished([tmp_path / "damaged", tmp_path / "whole"])
    assert take_over(cfg, plan, states(cfg, plan), shelf, lambda *note: notes.append(note))
    assert notes == [("corpus", f"taken over from {tmp_path / 'whole' / '01-corpus'}")]


def test_a_point_that_cannot_be_is_noted_and_the_study_goes_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(run_folder(tiny), tmp_path / "study" / "earlier")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    arguments = ["study", tmp_path / "tiny.yaml", "--until", "corpus", "--out", tmp_path / "study"]
    result = call(*arguments, "--vary", "corpus.validation_docs=100000,12")
    assert result.exit_code == 2
    assert "1 of 2 points failed (validation_docs-100000)" in result.stderr
    failed, fine = json.loads((tmp_path / "study" / "study.json").read_text())["rows"]
    assert failed["note"].startswith("failed: ")
    assert failed["pool_tokens"] is None
    assert fine["note"] == ""
    assert fine["pool_tokens"] > 1_000


def test_the_command_line_with_arms(tiny: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(run_folder(tiny), tmp_path / "study" / "earlier")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    arguments = ["study", tmp_path / "tiny.yaml", "--vary", "evaluate.confidence=0.95,0.9", "--until", "evaluate"]
    arguments += ["--set", "arms.self={synthetic: unconditional, share: 0.2}", "--out", tmp_path / "study"]
    dry = call(*arguments, "--dry-run")
    assert "2 points; to do: 3,000 tokens to train on" in dry.stdout, dry.output
    assert not (tmp_path / "study" / "study.json").exists()

    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert f"study: {tmp_path / 'study' / 'study.html'}" in result.stdout
    assert "point 2 of 2: confidence-0.9" in result.stderr
    rows = json.loads((tmp_path / "study" / "study.json").read_text())["rows"]
    assert [row["point"] for row in rows] == ["confidence-0.95", "confidence-0.9"]
    p_values = {}
    for row in rows:
        result_of = Evaluation.open(folder_of(tmp_path / "study" / row["folder"], "evaluate"))
        arms = result_of.arms
        assert row["confidence"] == result_of.chosen.confidence == row["evaluate.confidence"]
        assert (row["loss.sbp"], row["loss.sbp.low"], row["loss.sbp.high"]) == arms["sbp"].loss
        for other in ("repetition", "self"):
            ends = tuple(row[f"minus_{other}{end}"] for end in ("", ".low", ".high", ".p"))
            assert ends == arms["sbp"].against[other]
            p_values[row["point"], other] = ends[-1]
    wanted = holm(p_values)
    for row in rows:
        for other in ("repetition", "self"):
            assert row[f"minus_{other}.p_adjusted"] == pytest.approx(wanted[row["point"], other])

    # once more: all is there; and from the run folders alone, by one of no configuration
    assert "to make" not in call(*arguments).stderr
    collected = call("study", "--runs", *(tmp_path / "study" / row["folder"] for row in rows), "--json")
    figures = [row["minus_self"] for row in json.loads(collected.stdout)]
    assert figures == [row["minus_self"] for row in rows]
    assert (tmp_path / "study" / "study" / "study.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "a", "--vary", "tune.lr=1,2"], "--vary is about runs to be made"),
        (["--runs", "a", "--set", "tune.lr=1"], "--set is about runs to be made"),
        (["--runs", "a", "--until", "report"], "--until is about runs to be made"),
        (["--runs", "nowhere"], "nowhere: no run folder"),
        (["a.yaml", "b.yaml", "--vary", "tune.lr=1,2"], "several paths are run folders for --runs"),
        (["nowhere.yaml", "--vary", "tune.lr=1,2"], "nowhere.yaml: no such file"),
    ],
)
def test_what_the_command_line_refuses(arguments: list[str], message: str) -> None:
    result = call("study", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
