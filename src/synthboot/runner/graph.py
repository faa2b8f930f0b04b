"""Which artifacts a target needs, what each is known by, and which can be made now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from synthboot.artifacts import store
from synthboot.errors import ConfigError, MissingArtifact
from synthboot.recipes import VERSIONS, Unit, models


def fingerprints(plan: Mapping[str, Unit]) -> dict[str, str]:
    """The fingerprint every unit's artifact should have."""
    by_name: dict[str, str] = {}
    for name, unit in plan.items():
        parents = {role: by_name[parent] for role, parent in unit.parents.items()}
        # parents come first in a plan, so theirs are there; a change upstream changes all below
        by_name[name] = store.fingerprint(
            unit.stage,
            VERSIONS[unit.stage],
            unit.reads,
            parents,
        )
    return by_name


def needed(
    plan: Mapping[str, Unit],
    target: str,
    only: Sequence[str] = (),
) -> dict[str, Unit]:
    """The units of stage `target` and everything they read.

    `only` are shell patterns of which a unit's variant, or its whole name, fits one.

    Raises MissingArtifact where the stage has no unit, ConfigError for a pattern that none fits.
    """
    variants = {unit.variant: name for name, unit in plan.items() if unit.stage == target}
    if target == "pretrain":
        # by the names of all arms and seeds, for one of them is base
        variants = models(plan)
    if not variants and target == "extract":
        raise MissingArtifact(
            "extract: nothing is asked for; set extract.docs or corpus.canaries.count"
        )
    if not variants:
        raise MissingArtifact(
            f"{target}: no arm of this configuration needs it; add an arm with `synthetic: related`"
        )

    wanted = set(variants.values())
    if only:
        wanted = {name for pattern in only for name in _fitting(pattern, target, variants)}
    # children before parents, so that one pass finds all ancestors
    for name in reversed(list(plan)):
        if name in wanted:
            wanted.update(plan[name].parents.values())
    return {name: unit for name, unit in plan.items() if name in wanted}


def _fitting(pattern: str, target: str, variants: Mapping[str, str]) -> list[str]:
    """The units of a stage, by variant, that a shell pattern fits."""
    fitting = []
    for variant, name in variants.items():
        if any(fnmatchcase(called, pattern) for called in (variant, f"{target}/{variant}")):
            fitting.append(name)
    if not fitting:
        there = ", ".join(variant for variant in variants if variant) or "one artifact without any"
        raise ConfigError(f"--only: no variant of {target} fits {pattern!r}; there are: {there}")
    return fitting


def ready(
    waiting: Iterable[Unit],
    unfinished: Collection[str],
) -> list[str]:
    """The units, of those that wait, whose parents are all finished; in their order."""
    able = []
    for unit in waiting:
        if not any(parent in unfinished for parent in unit.parents.values()):
            able.append(unit.name)
    return able


def startable(
    able: Sequence[str],
    running: Collection[str],
    side_by_side: int,
    workers: Mapping[str, int],
    jobs: int,
) -> list[str]:
    """Which of the units that are ready to start now, in their order.

    Those with `workers` of their own run side by side as long as these are no more than `jobs` in
    all, and one of them in any case: more would be too much for the cores or GPUs, and for memory.
    """
    chosen: list[str] = []
    for name in able:
        at_work = [*running, *chosen]
        if len(at_work) >= side_by_side:
            break
        taken = sum(workers.get(other, 0) for other in at_work)
        if name in workers and taken and taken + workers[name] > jobs:
            continue
        chosen.append(name)
    return chosen
