"""One unit's step, run in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from synthboot import config
from synthboot.artifacts.store import Progress
from synthboot.recipes import Unit

if TYPE_CHECKING:
    from synthboot.steps.context import Outcome


def run_step(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    unit: Unit,
    workers: int,
    progress: Progress,
    note: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """What the unit's step returns, (counts, cost), once its folder holds the artifact.

    The step may start as many as `workers` processes of its own.
    """
    # it brings torch along, which whoever only plans should not wait for
    from synthboot import steps

    context = steps.Context(
        unit.settings,
        unit.folder(cfg.folder),
        {role: plan[parent].folder(cfg.folder) for role, parent in unit.parents.items()},
        workers,
        progress,
        note=note,
        outside=unit.outside,
        variant=unit.variant,
        recipe=unit.recipe,
        **unit.options,
    )
    return steps.STEPS[unit.stage](context)
