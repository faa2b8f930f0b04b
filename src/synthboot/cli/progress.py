"""Progress on stderr: bars with the time left on a terminal; elsewhere a line per event."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from synthboot.cli import formats
from synthboot.cli.output import log
from synthboot.terminal import one_line

if TYPE_CHECKING:
    from synthboot.runner.state import State

_FOLLOWS = (" changed", "stale", "missing", "partial")
"""How a reason ends that is about what an artifact reads, and not about a setting of its own."""

_LINES_A_UNIT = 20

_SECONDS_A_LINE = (10.0, 600.0)
"""What a log says of a unit: so many lines, no closer together and no further apart than this."""

_SECONDS_A_PART = 60.0
"""How long a part of a unit that has no share of it takes at the least before a log says so."""


class RunProgress:
    """Progress on stderr: bars with the time left on a terminal; elsewhere a line per event, and
    now and then how far a unit is."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = Console(stderr=True)
        # Bars are for eyes; a log gets lines.
        self.live = self.console.is_terminal
        self.states: dict[str, State] = {}
        self.total = 0
        self.done = 0
        self.tasks: dict[str, Any] = {}
        # By unit: when progress was first told and last written, and the share done then.
        self.first: dict[str, tuple[float, float]] = {}
        self.written: dict[str, tuple[float, float]] = {}
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            console=self.console,
            disable=not self.live,
        )

    def __enter__(self) -> RunProgress:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.bars.stop()

    def tell(self, name: str, kind: str, value: Any) -> None:
        """Take an event of a run: of which unit, of what kind, and what it says."""
        if kind == "point":
            number, points = value
            self._line(f"point {number} of {points}: {name}")
        elif kind == "plan":
            self._plan(value)
        elif kind == "start":
            self.tasks[name] = self.bars.add_task(name, total=1.0, words="starting")
        elif kind == "progress":
            done, words = value
            self.bars.update(self.tasks[name], completed=done, words=one_line(words))
            if not self.live:
                self._log(name, done, words)
        elif kind == "note":
            self._line(f"{name}: {value}")
        elif kind == "kept":
            self.total -= 1
            self._line(f"{name}: kept, as what it reads came out as it was")
        elif kind == "done":
            self.done += 1
            self.bars.remove_task(self.tasks[name])
            memory = formats.size(value["peak_memory_bytes"])
            account = f"; {value['account']}" if value["account"] else ""
            self._line(
                f"[{self.done}/{self.total}] {name}: {value['seconds']:.1f} s, {memory}{account}"
            )

    def _plan(self, states: dict[str, State]) -> None:
        """What will be made, and what made stale what is there."""
        self.states = states
        self.done = 0
        self.total = sum(state.status != "done" for state in states.values())
        for name, state in states.items():
            if state.status == "stale" and not state.reasons[0].endswith(_FOLLOWS):
                reasons = ", ".join(state.reasons)
                self._line(f"{name}: stale ({reasons}); it and what reads it will be rebuilt")

    def _log(self, name: str, done: float, words: str) -> None:
        """A line about a unit that is at work, where the last is long enough ago."""
        now = time.monotonic()
        started, share = self.first.setdefault(name, (now, done))
        written, before = self.written.setdefault(name, (now, done))
        waited = now - written
        least, most = _SECONDS_A_LINE
        is_further = int(done * _LINES_A_UNIT) > int(before * _LINES_A_UNIT)
        if not share < done < 1:
            # before or after the part whose rate says how long it takes
            if done <= share:
                self.first[name] = (now, done)
            if waited >= _SECONDS_A_PART:
                self.written[name] = (now, done)
                self._line(f"{name}: {words}")
            return
        if waited < least or not (is_further or waited >= most):
            return

        self.written[name] = (now, done)
        left = (now - started) * (1 - done) / (done - share)
        self._line(f"{name}: {done:.0%}, {words}; {formats.duration(left)} left")

    def _line(self, text: str) -> None:
        """A line above the bars, as it is (paths and counts are no markup), or in a log."""
        line = one_line(text)
        if not self.live:
            log(line)
            return
        with suppress(OSError):  # the terminal may have gone
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
