"""Figures in words, as the command line shows them; of none, nothing or a dash."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synthboot.artifacts.evaluation import ArmResult, TaskResult
    from synthboot.statistics import Interval


def with_interval(figure: Interval) -> str:
    """A figure and its interval."""
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"


def share(result: ArmResult) -> str:
    """The share of the oracle's gain, with its interval."""
    share = result.oracle_share
    return "" if share is None else f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def against_repetition(result: ArmResult) -> str:
    """The difference to repetition in nats a token, and p."""
    gap = result.difference
    return "" if gap is None else f"{gap.value:+.4f} (p = {gap.p:.2g})"


def accuracy(task: TaskResult | None, arm: str) -> str:
    """The share of a task's questions that an arm answered right, with its interval."""
    answers = None if task is None else task.groups["all"].get(arm)
    return "" if answers is None else "{:.1%} [{:.1%}, {:.1%}]".format(*answers.acc)


def artifacts(number: int) -> str:
    """How many artifacts."""
    return "1 artifact" if number == 1 else f"{number:,} artifacts"


def numbers(numbers: list[int]) -> str:
    """The first eight numbers of a list, and how many there are beyond them."""
    most = 8
    shown = ", ".join(map(str, numbers[:most]))
    return shown if len(numbers) <= most else f"{shown} and {len(numbers) - most:,} more"


def hours(hours: float | None) -> str:
    """Hours, to three figures."""
    if hours is None:
        return "-"
    if hours < 0.01:
        return "<0.01"
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def dollars(dollars: float | None) -> str:
    """Whole dollars."""
    return "-" if dollars is None else f"{dollars:,.0f}"


def count(number: float | None) -> str:
    """A number with its thousands apart."""
    return "" if number is None else f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever says it best."""
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def size(number: float | None) -> str:
    """Bytes in GiB."""
    return "" if number is None else f"{number / 2**30:.2f} GiB"
