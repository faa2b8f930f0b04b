"""What filters threw away, and what that did: each arm with a filter beside the arm that is the
same but for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.synthetic import ThrownAway
from synthboot.config import Filter
from synthboot.report.quality import Table
from synthboot.statistics import Difference

HEADERS = ["arm", "left", "thrown away", "against", "difference in test loss", "interval", "p"]


@dataclass(frozen=True)
class Effect:
    """What the filter of an arm did: the tokens that it `left`, what was thrown away by reason,
    and the difference in test loss to the arm `without` it, if there is one."""

    left: int
    thrown_away: Mapping[str, ThrownAway]
    without: str | None
    difference: Difference | None

    @property
    def share(self) -> float:
        """The share of all tokens that is left."""
        thrown_away = sum(away.tokens for away in self.thrown_away.values())
        return self.left / (self.left + thrown_away)


def effects(evaluation: Evaluation) -> dict[str, Effect]:
    """Of every arm with a filter, at the checkpoint of the verdict. A sweep counts as what it has
    chosen."""
    counts = evaluation.counts_by_arm
    names = {arm.recipe.model_dump_json(): name for name, arm in reversed(counts.items())}
    found = {}
    for name, of_arm in counts.items():
        recipe = of_arm.recipe
        # a share may be so small that it rounds to no row: nothing was read of what is left
        if not recipe.filter.chooses or not of_arm.synthetic_epochs:
            continue
        unfiltered = recipe.model_copy(update={"filter": Filter()})
        without = names.get(unfiltered.model_dump_json())
        found[name] = Effect(
            left=round(of_arm.synthetic_tokens / of_arm.synthetic_epochs),
            thrown_away=of_arm.thrown_away,
            without=without,
            difference=None if without is None else evaluation.arms[name].against[without],
        )
    return found


def table(found: Mapping[str, Effect]) -> Table:
    """The effects as rows of text."""
    rows = []
    notes = []
    for arm, effect in found.items():
        reasons = []
        for reason, away in effect.thrown_away.items():
            noun = "sample" if away.docs == 1 else "samples"
            reasons.append(f"{reason}: {away.docs:,} {noun}, {away.tokens:,} tokens")
        cells = [
            arm,
            f"{effect.left:,} tokens ({effect.share:.0%})",
            "; ".join(reasons) or "nothing",
        ]
        if effect.difference is None:
            cells += ["-", "-", "-", "-"]
            notes.append(f"No arm is {arm} without its filter, so that its effect is not known")
        else:
            value, low, high, p = effect.difference
            cells += [
                str(effect.without),
                f"{value:+.4f}",
                f"{low:+.4f} to {high:+.4f}",
                f"{p:.2g}",
            ]
        rows.append(cells)
    return Table(HEADERS, rows, notes)
