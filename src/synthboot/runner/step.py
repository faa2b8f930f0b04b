"""One unit's step, run in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from synthboot import config
from synthboot.artifacts import parts
from synthboot.artifacts.store import Progress
from synthboot.recipes import Unit

if TYPE_CHECKING:
    from synthboot.steps.context import Context, Outcome


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

    context = _context(cfg, plan, unit, workers, progress, note=note)
    return steps.STEPS[unit.stage](context)


def run_part(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    unit: Unit,
    record: parts.Record,
    workers: int,
    progress: Progress,
) -> int:
    """Have the unit's step make the items of one part; returns how many these are."""
    from synthboot import steps

    context = _context(cfg, plan, unit, workers, progress, part=record.part, found=record.found)
    return steps.PART_STEPS[unit.stage](context)


def _context(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    unit: Unit,
    workers: int,
    progress: Progress,
    **others: Any,
) -> Context:
    from synthboot import steps

    return steps.Context(
        unit.settings,
        unit.folder(cfg.folder),
        {role: plan[parent].folder(cfg.folder) for role, parent in unit.parents.items()},
        workers,
        progress,
        outside=unit.outside,
        variant=unit.variant,
        recipe=unit.recipe,
        **unit.options,
        **others,
    )
