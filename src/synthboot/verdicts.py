"""What the figures of an evaluation show, in a sentence: no more than they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthboot import config, statistics

REPETITION = "repetition"


def subject(recipes: Mapping[str, config.Arm]) -> str | None:
    """The arm that the verdict is about: the first whose recipe is the method's."""
    return next((name for name, arm in recipes.items() if arm.kind == "method"), None)


def verdict(
    arms: Mapping[str, Any],
    kinds: Mapping[str, str],
    seeds: int,
    confidence: float,
    looks: Sequence[int] = (),
) -> str:
    """The first arm of the method against repetition, and against every control.

    `arms` holds what `evaluate` found of each, `kinds` what each is. Where several arms are compared, what counts is the
    p-value adjusted for their number; where a run was looked at with fewer seeds before, for that too.
    """
    cautions = _cautions(seeds, looks)
    name = next((arm for arm, kind in kinds.items() if kind == "method"), None)
    if name is None:
        return f"No arm of the method was run (`synthetic: related`){cautions}."
    entry = arms[name]
    value, low, high = entry["difference"]
    over = f"{confidence:.0%} interval over test documents" + (
        f" and {seeds} seeds" if seeds > 1 else ""
    )
    sure = f"p = {entry['p']:.2g}"
    adjusted = entry.get("p_adjusted", entry["p"])
    if adjusted != entry["p"]:
        sure += f", {adjusted:.2g} adjusted"
    side = "better" if value <= 0 else "worse"
    change = f"{abs(value):.4f} nats per token {side} than repetition ({low:+.4f} to {high:+.4f}, {over}; {sure})"
    controls = _controls(arms, kinds, name, confidence)
    if low <= 0 <= high:
        return f"No difference shown: {name} is {change}, an interval that includes zero{cautions}.{controls}"
    if adjusted > 1 - confidence:
        why = "which does not stand once the number of comparisons is allowed for"
        return f"No difference shown: {name} is {change}, {why}{cautions}.{controls}"
    if value > 0:
        return f"Synthetic text hurt: {name} is {change}{cautions}.{controls}"
    share = entry.get("oracle_share")
    closed = (
        f", {share[0]:.0%} of the oracle's gain ({share[1]:.0%} to {share[2]:.0%})" if share else ""
    )
    return f"Synthetic text helped: {name} is {change}{closed}{cautions}.{controls}"


def _cautions(seeds: int, looks: Sequence[int]) -> str:
    """What a reader has to bear in mind, in brackets."""
    said = []
    if seeds == 1:
        said.append(
            "1 seed: nothing is known about seeds, and this is an anecdote, not a result; use five or more"
        )
    elif seeds < 3:
        said.append(f"{seeds} seeds: an anecdote, not a result; use five or more")
    if len(looks) > 1:
        before = ", ".join(str(n) for n in looks[:-1])
        said.append(
            f"looked at before with {before} seeds: adjusted p-values are {len(looks)} times as large for that"
        )
    return f" ({'; '.join(said)})" if said else ""


def _controls(
    arms: Mapping[str, Any], kinds: Mapping[str, str], name: str, confidence: float
) -> str:
    """A sentence on an arm against those that are neither the method in another setting nor real text beyond the budget.
    p-values are adjusted for the number of controls."""
    against = {
        other: found
        for other, found in arms[name].get("against", {}).items()
        if kinds[other] == "control"
    }
    adjusted = statistics.holm({other: found[3] for other, found in against.items()})
    told: dict[str, list[str]] = {
        "better than": [],
        "not shown to differ from": [],
        "worse than": [],
    }
    for other, (value, *_) in against.items():
        shown = adjusted[other] <= 1 - confidence
        kind = (
            "not shown to differ from"
            if not shown
            else "better than"
            if value < 0
            else "worse than"
        )
        told[kind].append(f"{other} (p = {adjusted[other]:.2g})")
    parts = [f"{kind} {', '.join(names)}" for kind, names in told.items() if names]
    if not parts:
        return ""
    note = ", p adjusted for their number" if len(against) > 1 else ""
    return f" Beside its controls it is {'; '.join(parts)}{note}."
