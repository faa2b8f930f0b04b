"""A judge whose errors are known, on texts whose faults are known: the corrected rate finds them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from synthboot.artifacts.judged import NOTHING, Question, Spent, Verdict
from synthboot.judges import panel
from synthboot.judges.planted import Case
from synthboot.judges.protocol import Item, OnScore
from synthboot.judges.record import Record


class Fake:
    """Calls a text that says `bad` faulty with chance q1, any other with chance 1 - q0, each pass by itself for some."""

    name = "fake"

    def __init__(self, q0: float, q1: float, number: int = 1, mute: float = 0.0, version: str = "") -> None:
        self.q0, self.q1, self.number, self.mute = q0, q1, number, mute
        self.identity: Mapping[str, str] = {"version": version}
        self.asked: list[tuple[int, str]] = []
        self.dies_after = 10**9
        self.spends = NOTHING

    def passes(self, question: Question) -> int:
        return self.number

    def score(self, question: Question, items: Sequence[Item], pass_number: int, on_score: OnScore) -> None:
        for index, item in reversed(list(enumerate(items))):  # a server answers in any order
            if len(self.asked) == self.dies_after:
                raise KeyboardInterrupt
            self.asked.append((pass_number, item.text))
            random = np.random.default_rng([pass_number, int(item.text.split()[1])])
            chance = self.q1 if item.text.startswith("bad") else 1 - self.q0
            called = random.random() < chance
            score = float("nan") if random.random() < self.mute else 10.0 * called + random.random()
            on_score(index, score, self.spends)


def texts(count: int, bad: float, start: int) -> list[Item]:
    """So many, a share of them bad."""
    return [Item(f"{'bad' if i < bad * count else 'good'} {start + i}") for i in range(count)]


def known(count: int) -> list[Case]:
    return [Case(Item(f"{'bad' if i % 2 else 'good'} {i}"), "planted" if i % 2 else "") for i in range(2 * count)]


def verdict(judge: Fake, tmp_path: Path, cases: int = 1_500, **kinds: list[Item]) -> Verdict:
    with Record(tmp_path / "judged.jsonl") as record:
        return panel.judge(judge, "repetition", known(cases), kinds, record).verdict


@pytest.mark.parametrize(("q0", "q1", "truth"), [(0.9, 0.7, 0.3), (0.7, 0.9, 0.05), (0.75, 0.75, 0.8), (1.0, 1.0, 0.1)])
def test_the_corrected_rate_finds_the_truth(tmp_path: Path, q0: float, q1: float, truth: float) -> None:
    found = verdict(Fake(q0, q1), tmp_path, sample=texts(1_500, truth, 10_000))
    assert found.specificity.value == pytest.approx(q0, abs=0.04)
    assert found.sensitivity.value == pytest.approx(q1, abs=0.04)
    rate = found.rates["sample"]
    assert rate.corrected is not None
    assert rate.corrected.value == pytest.approx(truth, abs=0.06)
    assert rate.corrected.low <= truth <= rate.corrected.high
    assert rate.judged == pytest.approx(truth * q1 + (1 - truth) * (1 - q0), abs=0.04)
    assert found.by_fault == {"planted": (found.sensitivity.value, found.faulty)}


def test_a_judge_without_skill_is_refused_whatever_it_says(tmp_path: Path) -> None:
    found = verdict(Fake(0.5, 0.6), tmp_path, sample=texts(200, 0.5, 10_000))
    assert "1.2 is needed" in found.refused
    assert found.rates["sample"].corrected is None
    assert found.rates["sample"].judged is not None


def test_no_case_is_judged_by_a_threshold_that_was_fitted_to_it(tmp_path: Path) -> None:
    """A judge that scores at random looks skilled on the cases that its threshold fits, never on the others."""
    skills = []
    for version in range(30):
        (tmp_path / str(version)).mkdir()

        class Noise(Fake):
            def score(
                self, question: Question, items: Sequence[Item], pass_number: int, on_score: OnScore, version: int = version
            ) -> None:
                for index, item in enumerate(items):
                    on_score(index, float(np.random.default_rng([version, int(item.text.split()[1])]).random()))

        found = verdict(Noise(1, 1), tmp_path / str(version), cases=40)
        skills.append(found.specificity.value + found.sensitivity.value)
    assert np.mean(skills) == pytest.approx(1, abs=0.08)


def test_two_passes_and_how_far_they_agree(tmp_path: Path) -> None:
    found = verdict(Fake(0.9, 0.9, number=2), tmp_path, sample=texts(100, 0.5, 10_000))
    # each pass errs by itself: agreement 0.82, by chance 0.5
    assert found.kappa == pytest.approx(0.64, abs=0.05)
    assert found.requests == 2 * 3_100
    assert verdict(Fake(0.9, 0.9, version="one"), tmp_path).kappa is None


def test_progress_counts_items_not_whole_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = iter(range(10**6))
    monkeypatch.setattr("time.monotonic", lambda: next(now) / 4)  # an item takes a little over a quarter of a second
    said: list[str] = []
    with Record(tmp_path / "judged.jsonl") as record:
        panel.judge(Fake(1, 1, number=2), "repetition", known(30), {}, record, said.append)
    found = [re.fullmatch(r"fake, repetition: (\d+) of 60 items, pass ([12]) of 2", line) for line in said]
    counts = [(int(match[2]), int(match[1])) for match in found if match]
    assert len(counts) == len(said) > 8
    assert counts == sorted(counts)


def test_what_is_not_answered_is_counted_and_left_out(tmp_path: Path) -> None:
    found = verdict(Fake(1, 1, mute=0.2), tmp_path, sample=texts(500, 0.2, 10_000))
    rate = found.rates["sample"]
    assert rate.items + rate.unanswered == 500
    assert rate.unanswered == pytest.approx(100, abs=30)
    assert rate.judged == pytest.approx(0.2, abs=0.05)
    assert found.clean + found.faulty < 1_500
    silent = verdict(Fake(1, 1, mute=1.1, version="silent"), tmp_path, sample=texts(5, 0, 10_000))
    assert silent.rates["sample"].judged is None
    assert silent.refused


def test_a_killed_judge_is_asked_nothing_twice(tmp_path: Path) -> None:
    whole = verdict(Fake(0.9, 0.9, number=2), tmp_path / "whole", cases=100, sample=texts(50, 0.5, 10_000))
    path = tmp_path / "killed"
    asked: list[tuple[int, str]] = []
    for dies_after in (3, 130, 10**9):
        judge = Fake(0.9, 0.9, number=2)
        judge.dies_after = dies_after
        try:
            resumed = verdict(judge, path, cases=100, sample=texts(50, 0.5, 10_000))
        except KeyboardInterrupt:
            with open(path / "judged.jsonl", "ab") as file:
                file.write(b'["half a li')  # a kill amid a write
        asked += judge.asked
    assert len(asked) == len(set(asked)) == 2 * 250
    assert resumed == whole
    # another model, or another prompt, is another judge
    judge = Fake(0.9, 0.9, number=2, version="2")
    verdict(judge, path, cases=100)
    assert len(judge.asked) == 2 * 200


def test_what_a_disk_has_damaged_of_a_record_is_asked_for_again(tmp_path: Path) -> None:
    """A machine that went down may leave zeros where lines were, or half a line before the next."""
    whole = verdict(Fake(0.9, 0.9), tmp_path, cases=30)
    path = tmp_path / "judged.jsonl"
    lines = path.read_bytes().splitlines()
    damaged = [bytes(len(lines[3])), lines[7][:20], lines[7][:20] + lines[8], b"5", b"[1]", b'["a", "b"]', b'["a", [], 1]']
    path.write_bytes(b"\n".join([*lines[:3], *damaged, *lines[9:]]) + b"\n")
    judge = Fake(0.9, 0.9)
    assert verdict(judge, tmp_path, cases=30) == whole
    assert len(judge.asked) == 6


def test_a_budget_of_tokens_ends_with_what_is_judged_so_far_killed_or_not(tmp_path: Path) -> None:
    kinds = {"real": texts(60, 0.2, 5_000), "sample": texts(60, 0.5, 10_000), "few": texts(3, 0.5, 20_000)}

    def judged(folder: Path, most_tokens: float, dies_after: int = 10**9) -> panel.Judged:
        judge = Fake(0.9, 0.9, number=2)
        judge.spends = Spent(prompt=9, completion=1)
        judge.dies_after = dies_after
        with Record(folder / "judged.jsonl") as record:
            return panel.judge(judge, "repetition", known(100), kinds, record, most_tokens=most_tokens)

    without_budget = judged(tmp_path / "whole", float("inf"))
    whole = without_budget.verdict
    assert whole.unasked == 0
    assert whole.spent == Spent(prompt=2 * 323 * 9, completion=2 * 323)
    # twenty tokens a text in two passes: the 200 cases, and of the texts some
    with_budget = judged(tmp_path / "part", 20 * 240)
    part = with_budget.verdict
    asked = 323 - part.unasked
    assert 240 <= asked < 240 + 16
    assert part.requests == 2 * asked
    assert part.spent.tokens == 20 * asked
    counts = {kind: rate.items for kind, rate in part.rates.items()}
    assert counts["few"] == 3
    assert abs(counts["real"] - counts["sample"]) <= 1
    assert sum(counts.values()) == asked - 200
    assert all(rate.unanswered == 0 for rate in part.rates.values())
    # what was asked was answered as it is without a budget
    assert part.threshold == whole.threshold
    for kind, scores in with_budget.scores.items():
        assert list(scores) == list(without_budget.scores[kind])[: counts[kind]]
    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path / "killed", 20 * 240, dies_after=433)
    assert judged(tmp_path / "killed", 20 * 240) == with_budget


def test_the_same_text_is_asked_once(tmp_path: Path) -> None:
    judge = Fake(1, 1)
    verdict(judge, tmp_path, cases=5, a=[Item("bad 7000")] * 3, b=[Item("bad 7000")])
    assert len(judge.asked) == 11
