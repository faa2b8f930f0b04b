"""What synthetic texts are called, and so the folders that they lie in.

Arms whose text has one name read the same text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from synthboot.config.sections import Arm, Filter, Pretrain


@dataclass(frozen=True)
class SyntheticText:
    """The synthetic text that an arm reads with a seed."""

    writer: str
    """Its synthesizer: what that was tuned on, and after which arm."""
    of_seed: int | None
    """The seed whose own text this is; None: that of all seeds, or of the first."""
    filter: Filter

    @property
    def sampled(self) -> str:
        """The name of what is sampled, before anything is thrown away."""
        return self.writer if self.of_seed is None else f"{self.writer},seed-{self.of_seed}"

    @property
    def name(self) -> str:
        """The name of what is left of it."""
        return f"{self.sampled},{self.filter.name}" if self.filter.chooses else self.sampled


def text_of(arm: Arm, seed: int, arms: Mapping[str, Arm], pretrain: Pretrain) -> SyntheticText:
    """The synthetic text that one of `arms` reads with a seed."""
    earlier = before(arm, arms)
    writer = f"{arm.synthetic}-after-{earlier}" if earlier else str(arm.synthetic)
    has_own = pretrain.text_per_seed and seed != pretrain.seeds[0]
    return SyntheticText(writer, seed if has_own else None, arm.filter)


def before(arm: Arm, arms: Mapping[str, Arm]) -> str | None:
    """The name of the arm of the previous round; None in the first."""
    wanted = arm.model_copy(update={"rounds": arm.rounds - 1})
    for name, other in arms.items():
        if other == wanted:
            return name
    return None
