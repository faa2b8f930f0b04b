"""What the figures of an evaluation show, in a sentence that claims no more than they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from synthboot import config, statistics
from synthboot.artifacts.evaluation import ArmResult
from synthboot.statistics import Estimate

_ENOUGH_SEEDS = 3
"""With fewer what is seen is an anecdote."""


def subject(recipes: Mapping[str, config.Arm]) -> str | None:
    """The arm that the verdict is about: the first whose recipe is the method's."""
    return _first_method({name: arm.kind for name, arm in recipes.items()})


def more_compute(recipes: Mapping[str, config.Arm]) -> str:
    """A sentence on the arms that are several models, or are taught by several; empty without any.

    Asking a model costs a third of training it on as many tokens.
    """
    parts = []
    for name, arm in recipes.items():
        if arm.ensemble > 1:
            parts.append(f"{name} ({arm.ensemble} models, {arm.ensemble} times as much)")
        if arm.distill is not None:
            times = 1 + recipes[arm.distill].ensemble * (1 + 1 / 3)
            parts.append(f"{name} (taught by {arm.distill}, {times:.3g} times as much)")
    if not parts:
        return ""
    return (
        f"More training compute than repetition: {', '.join(parts)}; "
        f"what they gain is no gain at equal compute."
    )


def verdict(
    arms: Mapping[str, ArmResult],
    kinds: Mapping[str, str],
    seeds: int,
    confidence: float,
    looks: Sequence[int] = (),
    external: str | None = None,
    text_per_seed: bool = False,
) -> str:
    """The first arm of the method against repetition, and against every control.

    `kinds` says what each arm is. Where several arms are compared, what counts is the p-value
    adjusted for their number; where a run was looked at with fewer seeds before, for that too.
    `external` names the model from outside the corpus that wrote the synthetic text, if one did;
    `text_per_seed` says that each seed read another draw of it.
    """
    cautions = _cautions(seeds, looks, external)
    name = _first_method(kinds)
    if name is None:
        return f"No arm of the method was run (`synthetic: related`){cautions}."

    arm = arms[name]
    difference = arm.difference
    assert difference is not None  # repetition is no arm of the method
    adjusted = difference.p if arm.p_adjusted is None else arm.p_adjusted
    over = _over(seeds, confidence, text_per_seed)
    change = f"{name} is {_in_words(difference, adjusted, over)}"
    controls = _controls(arms, kinds, name, confidence, len(looks))

    if difference.low <= 0 <= difference.high:
        return f"No difference shown: {change}, an interval that includes zero{cautions}.{controls}"
    # An interval is about one comparison; the claim has to stand among all of them.
    if adjusted > 1 - confidence:
        why = "which does not stand once the number of comparisons is allowed for"
        return f"No difference shown: {change}, {why}{cautions}.{controls}"
    only = "In one anecdote synthetic text" if seeds < _ENOUGH_SEEDS else "Synthetic text"
    if difference.value > 0:
        return f"{only} hurt: {change}{cautions}.{controls}"

    closed = ""
    if arm.oracle_share is not None:
        share, least, most = arm.oracle_share
        closed = f", {share:.0%} of the oracle's gain ({least:.0%} to {most:.0%})"
    return f"{only} helped: {change}{closed}{cautions}.{controls}"


def _first_method(kinds: Mapping[str, str]) -> str | None:
    for name, kind in kinds.items():
        if kind == "method":
            return name
    return None


def _over(seeds: int, confidence: float, text_per_seed: bool) -> str:
    """What an interval is over."""
    over = f"{100 * confidence:g}% interval over test documents"
    if seeds == 1:
        return over
    # where all seeds read one text, nothing is known of how far another would lead
    text = "each with a text of its own" if text_per_seed else "of this synthetic text"
    return f"{over} and {seeds} seeds, {text}"


def _in_words(difference: Estimate, adjusted: float, over: str) -> str:
    """The difference to repetition, with its interval and p-value."""
    side = "better" if difference.value <= 0 else "worse"

    sure = f"p = {difference.p:.2g}"
    # With one arm and one look there is nothing to adjust.
    if adjusted != difference.p:
        sure += f", {adjusted:.2g} adjusted"

    return (
        f"{abs(difference.value):.4f} nats per token {side} than repetition "
        f"({difference.low:+.4f} to {difference.high:+.4f}, {over}; {sure})"
    )


def _cautions(seeds: int, looks: Sequence[int], external: str | None) -> str:
    """What a reader has to bear in mind, in brackets."""
    cautions = []
    if external is not None:
        cautions.append(
            f"external: {external}, a model from outside the corpus, wrote the synthetic text"
        )
    if seeds == 1:
        cautions.append(
            "1 seed: nothing is known about seeds, "
            "and this is an anecdote, not a result; use five or more"
        )
    elif seeds < _ENOUGH_SEEDS:
        cautions.append(f"{seeds} seeds: an anecdote, not a result; use five or more")
    # To look, add seeds and look again is to try twice.
    if len(looks) > 1:
        before = ", ".join(str(number) for number in looks[:-1])
        cautions.append(
            f"looked at before with {before} seeds: "
            f"adjusted p-values are {len(looks)} times as large for that"
        )
    return f" ({'; '.join(cautions)})" if cautions else ""


def _controls(
    arms: Mapping[str, ArmResult],
    kinds: Mapping[str, str],
    name: str,
    confidence: float,
    looks: int,
) -> str:
    """A sentence on an arm against every control, p-values adjusted for their number and looks."""
    against = {}
    for other, difference in arms[name].against.items():
        if kinds[other] == "control":
            against[other] = difference
    adjusted = statistics.holm({other: difference.p for other, difference in against.items()})
    adjusted = {other: min(1.0, p * max(1, looks)) for other, p in adjusted.items()}

    outcomes: dict[str, list[str]] = {
        "better than": [],
        "not shown to differ from": [],
        "worse than": [],
    }
    for other, difference in against.items():
        if adjusted[other] > 1 - confidence:
            outcome = "not shown to differ from"
        elif difference.value < 0:
            outcome = "better than"
        else:
            outcome = "worse than"
        outcomes[outcome].append(f"{other} (p = {adjusted[other]:.2g})")

    parts = [f"{outcome} {', '.join(names)}" for outcome, names in outcomes.items() if names]
    if not parts:
        return ""
    note = ", p adjusted for their number" if len(against) > 1 else ""
    return f" Beside its controls it is {'; '.join(parts)}{note}."
