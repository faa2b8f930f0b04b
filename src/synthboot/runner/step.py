"""One unit's step, run in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from synthboot import config
from synthboot.artifacts import model, parts
from synthboot.artifacts.store import Progress, silent
from synthboot.errors import Diverged
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

    The step may start as many as `workers` processes of its own. A trial of a sweep that diverges
    is finished by that: it has no model, and its counts say why, so that the others go on and it
    is not tried again unless its settings would let it pass (`state.stands`).
    """
    # it brings torch along, which whoever only plans should not wait for
    from synthboot.steps import STEPS

    context = context_of(cfg, plan, unit, workers, progress, note)
    try:
        return STEPS[unit.stage](context)
    except Diverged as error:
        if not unit.is_trial:
            raise
        return model.diverged_counts(error.reason, error.leap), error.cost


def run_part(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    unit: Unit,
    record: parts.Record,
    workers: int,
    progress: Progress,
) -> int:
    """Have the unit's step make the items of one part; returns how many these are."""
    from synthboot.steps import PART_STEPS

    context = context_of(cfg, plan, unit, workers, progress)
    own = replace(context, part=record.part, found=record.found)
    return PART_STEPS[unit.stage](own)


def context_of(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    unit: Unit,
    workers: int = 1,
    progress: Progress = silent,
    note: Callable[[str], None] = lambda _: None,
) -> Context:
    """What a unit's step is given."""
    from synthboot.steps.context import Context

    return Context(
        cfg=unit.settings,
        folder=unit.folder(cfg.folder),
        parents={role: plan[parent].folder(cfg.folder) for role, parent in unit.parents.items()},
        workers=workers,
        progress=progress,
        note=note,
        outside=unit.outside,
        variant=unit.variant,
        training=unit.training,
        synthesis=unit.synthesis,
    )
