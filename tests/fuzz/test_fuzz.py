"""A few dozen inputs of every fuzzer, the same on every run; `make fuzz` tries ten thousand of each."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from synthboot.errors import DataError
from tests.conftest import run_folder
from tests.fuzz import answers, configurations, corpora, manifests, questions
from tests.fuzz.fuzzer import Fault, Fuzzer, OverTime, kind, limits, run


def small(inputs: int) -> settings:
    return settings(settings.get_profile("small"), max_examples=inputs)


def test_configurations_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    with configurations.fuzzer(tmp_path) as fuzzer:
        tally = run(fuzzer, small(80))
    assert tally.accepted >= 5, tally


def test_corpora_are_read_and_counted_or_refused(tmp_path: Path) -> None:
    with corpora.fuzzer(tmp_path) as fuzzer:
        tally = run(fuzzer, small(40))
    assert tally.accepted >= 10, tally


def test_questions_can_be_asked_or_are_refused(tmp_path: Path) -> None:
    with questions.fuzzer(tmp_path) as fuzzer:
        tally = run(fuzzer, small(150))
    assert tally.accepted >= 20, tally


def test_damaged_manifests_are_named_or_do_not_matter(finished: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(run_folder(finished), tmp_path / finished["name"])
    with manifests.fuzzer(tmp_path, {**finished, "root": str(tmp_path)}) as fuzzer:
        tally = run(fuzzer, small(60))
    assert tally.accepted >= 5, tally


def test_what_a_server_says_is_checked(tmp_path: Path) -> None:
    with answers.fuzzer(tmp_path) as fuzzer:
        tally = run(fuzzer, small(80))
    assert tally.accepted >= 5, tally


def test_a_fuzzer_counts_what_becomes_of_its_inputs(tmp_path: Path) -> None:
    """The machine itself: every way to end is told apart, and kept with the smallest input that did."""

    def check(number: int) -> None:
        if number % 4 == 1:
            raise DataError(f"{number}.jsonl line {number}: no text")
        if number % 4 == 2:
            raise ValueError(number)
        if number % 4 == 3:
            raise Fault("one is lost", str(number))

    tally = run(Fuzzer("numbers", st.integers(0, 99), check), small(300), last=tmp_path / "last")
    assert tally.inputs == tally.accepted + tally.refused.total() + tally.faults.total()
    assert set(tally.refused) == {"DataError: line no text"}
    assert set(tally.faults) == {"ValueError: ", "one is lost"}
    assert tally.smallest["one is lost"][1] in {"3", "7"}
    assert (tmp_path / "last").read_text().isdigit()
    with pytest.raises((Fault, ValueError)):
        run(Fuzzer("numbers", st.integers(0, 99), check), small(300))


def test_an_input_that_takes_too_long_or_too_much_is_a_fault() -> None:
    def endless() -> None:
        while True:
            pass

    with pytest.raises(OverTime, match=r"longer than 0\.05 s"), limits(0.05, 512):
        endless()
    with pytest.raises(MemoryError), limits(5, 64):
        bytearray(2**28)
    bytearray(2**28)  # the limit has gone again
    assert kind(OverTime("longer than 1 s")) == "OverTime: longer than s"
