"""What a fuzzer is, the limits of one input, and the count of what became of all of them."""

import re
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Generic, TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.strategies import SearchStrategy

from synthboot.errors import SynthbootError
from tests.limits import limit

Input = TypeVar("Input")

CHECKS = list(HealthCheck)  # inputs may be large and a check may be slow: we have limits of our own
settings.register_profile("small", derandomize=True, deadline=None, database=None, suppress_health_check=CHECKS)
settings.register_profile("full", max_examples=10_000, parent=settings.get_profile("small"), derandomize=False)


class Fault(AssertionError):
    """A promise that an input broke though nothing was raised: counts that do not balance, text that is lost."""

    def __init__(self, promise: str, found: str) -> None:
        super().__init__(f"{promise}: {found}")
        self.promise = promise


class OverTime(BaseException):
    """An input took longer than it may. Not an Exception, so that nothing on the way catches it."""


@dataclass(frozen=True)
class Fuzzer(Generic[Input]):
    """Inputs by rule and what is done with one; `check` raises where the input is refused or a promise is broken."""

    name: str
    inputs: SearchStrategy[Input]
    check: Callable[[Input], None]
    seconds: float = 20.0
    megabytes: int = 1_024


@dataclass
class Tally:
    """What became of the inputs of one fuzzer."""

    seconds: float = 0.0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    smallest: dict[str, tuple[str, str]] = field(default_factory=dict)
    slowest: float = 0.0

    @property
    def inputs(self) -> int:
        """All of them."""
        return self.accepted + self.refused.total() + self.faults.total()

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in self.refused.most_common(4))
        more = len(self.refused) - 4
        reasons += f", {more} other reasons" if more > 0 else ""
        return (
            f"{self.inputs:,} inputs, {self.seconds:.0f} s (slowest {self.slowest:.2f} s), {self.accepted:,} accepted, "
            f"{self.refused.total():,} refused ({reasons}), {self.faults.total():,} failures"
        )


@contextmanager
def limits(seconds: float, megabytes: int) -> Iterator[None]:
    """Raise OverTime after so long, MemoryError where the process grows by more than this."""

    def ring(*_: object) -> None:
        raise OverTime(f"longer than {seconds:g} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler: Callable[[int, FrameType | None], object] | int | None = signal.signal(signal.SIGALRM, ring)
    started, outer = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, seconds)[0]  # pytest-timeout's own
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * 2**20, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
        signal.signal(signal.SIGALRM, handler)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(0.01, outer - (time.monotonic() - started)))


def skeleton(error: BaseException) -> str:
    """An error without what differs from input to input: quoted and bracketed text, paths, numbers."""
    text = " ".join(str(error).split())
    text = re.sub(r"'[^']*'|\"[^\"]*\"|\([^)]*\)|\S*[/.]\S*|\S*\d\S*", "", text)
    return f"{type(error).__name__}: {' '.join(text.split()[:7])}"


def kind(error: BaseException) -> str:
    """The kind of a fault: what was raised and the line of ours that it came through last."""
    if isinstance(error, Fault):
        return error.promise
    ours = [f for f in traceback.extract_tb(error.__traceback__) if "/synthboot/" in f.filename]
    where = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else ""
    return skeleton(error) + where


def run(fuzzer: Fuzzer[Input], profile: settings, seed: int | None = None, last: Path | None = None) -> Tally:
    """Try as many inputs as the profile says. Without `last` the first fault is raised, and hypothesis prints its input; with
    it faults are counted by kind, and the file holds the input under way, in case the process itself dies of it."""
    tally, began = Tally(), time.monotonic()

    def each(example: Input) -> None:
        if last is not None:
            last.write_text(repr(example), "utf-8", "backslashreplace")
        started = time.monotonic()
        try:
            with limits(limit(fuzzer.seconds), fuzzer.megabytes):
                fuzzer.check(example)
            tally.accepted += 1
        except SynthbootError as error:
            tally.refused[skeleton(error)] += 1
        # a group: what rings inside several tasks of a client comes wrapped
        except (Exception, OverTime, BaseExceptionGroup) as error:
            if last is None:
                raise
            found, text = kind(error), repr(example)
            tally.faults[found] += 1
            if found not in tally.smallest or len(text) < len(tally.smallest[found][1]):
                tally.smallest[found] = (str(error), text)
        tally.slowest = max(tally.slowest, time.monotonic() - started)

    tried = hypothesis.given(fuzzer.inputs)(each)
    tried = settings(profile, phases=[Phase.generate])(tried)  # to make a fault small takes minutes where a check is slow
    (tried if seed is None else hypothesis.seed(seed)(tried))()
    tally.seconds = time.monotonic() - began
    return tally
