"""How the artifacts of a run stand: done, missing, partial, or stale and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from synthboot import config
from synthboot.artifacts import model, parts, store
from synthboot.data import disk
from synthboot.errors import CorruptArtifact, FinishedWork
from synthboot.recipes import VERSIONS, Unit
from synthboot.runner.graph import fingerprints

ASKED_SECONDS = 600.0
"""Work that took longer than this is given up only with `--replace`."""

_SUMMARIES = ("evaluate", "analyze", "report")
"""Stages that every new arm makes stale: they are made anew without asking."""


@dataclass(frozen=True)
class State:
    """How an artifact stands: its `status` is done, missing, partial, or stale for `reasons`.

    - `seconds`: what the work that is there took.
    - `stamped`: whether the manifest of a done artifact has the fingerprint that it is known by
      now; one that was kept, though its parents were made anew, has the older one.
    - `may_stand`: a stale artifact whose settings are as they were. It is kept if what it reads
      comes out as it was.
    - `changed`: a stale artifact that will most likely hold something else. So will every artifact
      that was `made_of` it: this names the parents that still hold what was read of them.
    """

    status: str
    reasons: tuple[str, ...] = ()
    seconds: float = 0.0
    stamped: bool = True
    may_stand: bool = False
    changed: bool = False
    made_of: frozenset[str] = frozenset()


def states(
    cfg: config.Config,
    plan: Mapping[str, Unit],
) -> dict[str, State]:
    """How every unit's artifact stands now.

    Raises CorruptArtifact for a manifest that cannot be read, or that a newer synthboot wrote, and
    StorageError where the disk does not let one look.
    """
    expected = fingerprints(plan)
    contents: dict[str, str] = {}  # of stale artifacts too
    result: dict[str, State] = {}
    for name, unit in plan.items():
        manifest = _finished(cfg, unit)
        unfinished = {}
        held = {}
        made_of = set()
        for role, parent in unit.parents.items():
            if result[parent].status == "done":
                held[role] = contents[parent]
            else:
                unfinished[parent] = result[parent].status
            if manifest is not None and manifest.contents.get(role, "") == contents.get(parent):
                made_of.add(parent)
        now = _state(cfg, unit, manifest, expected, held, unfinished)
        result[name] = replace(now, made_of=frozenset(made_of))
        if manifest is not None:
            contents[name] = store.content(manifest)
    return result


def state(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    name: str,
    expected: Mapping[str, str],
) -> State:
    """How the artifact of one unit stands, whose parents are all finished."""
    unit = plan[name]
    return _state(cfg, unit, _finished(cfg, unit), expected, contents(cfg, plan, unit), {})


def contents(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    unit: Unit,
) -> dict[str, str]:
    """What the finished parents of a unit hold, by role."""
    held = {}
    for role, parent in unit.parents.items():
        manifest = _finished(cfg, plan[parent])
        if manifest is not None:
            held[role] = store.content(manifest)
    return held


def stands(
    unit: Unit,
    manifest: store.Manifest,
    fingerprint: str,
    contents: Mapping[str, str],
) -> bool:
    """Whether a finished artifact is what the unit would make now of parents that hold `contents`.

    A trial that was stopped by a leap of its loss is, as long as it would be stopped again.
    """
    is_made_so = store.stands(manifest, fingerprint, VERSIONS[unit.stage], unit.reads, contents)
    return is_made_so and not _would_pass(unit, manifest)


def ask(
    plan: Mapping[str, Unit],
    standing: Mapping[str, State],
    folder: Path,
    replace: bool,
) -> None:
    """Raise FinishedWork where a run that was not told to `replace` it would make anew more than
    `ASKED_SECONDS` of work: artifacts whose settings are others now, and those that read them.

    An artifact that may stand is asked about only when it is its turn and it does not stand. So
    nothing is asked where settings were changed and changed back.
    """
    first = ""
    changed: set[str] = set()
    lost = []
    for name, unit in plan.items():
        now = standing[name]
        follows = not changed.isdisjoint(now.made_of)
        # without reasons it is done, missing, or will be gone on from
        if now.status == "done" or not now.reasons or (now.may_stand and not follows):
            continue
        if now.changed or follows:
            changed.add(name)
        if unit.stage not in _SUMMARIES:
            lost.append(name)
            first = first or f"{name}: {', '.join(now.reasons)}"

    seconds = sum(standing[name].seconds for name in lost)
    if seconds > ASKED_SECONDS and not replace:
        raise FinishedWork(
            f"{folder}: would make {len(lost)} artifacts anew, which took "
            f"{seconds / 3600:.1f} hours ({first}); keep them and make others beside them with "
            f"`--set name=NAME --from {folder}`, or give these up with `--replace`"
        )


def _finished(cfg: config.Config, unit: Unit) -> store.Manifest | None:
    """The manifest of a unit's artifact; None where it is not finished."""
    folder = unit.folder(cfg.folder)
    with disk.storage_errors(folder):
        manifest = store.read_manifest(folder)
    if manifest is not None and manifest.version > VERSIONS[unit.stage]:
        raise CorruptArtifact(
            f"{folder}: a newer synthboot made it "
            f"(stage version {manifest.version}, here {VERSIONS[unit.stage]}); "
            f"update synthboot, or delete {folder} to make it again"
        )
    return manifest


def _state(
    cfg: config.Config,
    unit: Unit,
    manifest: store.Manifest | None,
    expected: Mapping[str, str],
    held: Mapping[str, str],
    unfinished: Mapping[str, str],
) -> State:
    """How an artifact stands: `held` is what its finished parents hold, by role, `unfinished` the
    status of its other parents, by name."""
    if manifest is None:
        return _begun(unit.folder(cfg.folder), expected[unit.name])

    mark = expected[unit.name]
    version = VERSIONS[unit.stage]
    seconds = float(manifest.cost.get("seconds", 0.0))
    if not unfinished and stands(unit, manifest, mark, held):
        stamped = manifest.fingerprint == mark and manifest.contents == held
        return State("done", seconds=seconds, stamped=stamped)
    if _would_pass(unit, manifest):
        # it has no model, so nothing of it is given up; what was chosen without it may be
        spike = unit.settings.optim.max_spike
        reason = f"its loss leapt, and optim.max_spike is {spike:g} now"
        return State("stale", (reason,), changed=True)

    parents = {role: expected[parent] for role, parent in unit.parents.items()}
    reasons = store.drift(manifest, version, unit.reads, parents)
    has_parents = manifest.contents.keys() == unit.parents.keys()
    is_same = has_parents and store.has_settings(manifest, unit.reads)
    has_version = manifest.version == version
    may_stand = is_same and has_version and bool(unfinished)
    if not reasons and unfinished:
        parent, status = next(iter(unfinished.items()))
        reasons = [f"{parent} is {status}"]
        if may_stand:
            reasons.append("kept if it comes out as it was")
    if not reasons:
        others = [role for role in held if manifest.contents.get(role) != held[role]]
        reasons = [f"{role} holds something else" for role in others]
    return State(
        "stale",
        tuple(reasons),
        seconds,
        may_stand=may_stand,
        changed=not is_same or (has_version and not may_stand),
    )


def _would_pass(unit: Unit, manifest: store.Manifest) -> bool:
    """Whether the loss of a trial leapt by no more than is let pass now."""
    leap = model.leap(manifest)
    return leap is not None and leap <= unit.settings.optim.max_spike


def _begun(folder: Path, mark: str) -> State:
    """How an unfinished artifact stands, where the one with this fingerprint is wanted."""
    in_parts = sum(cost.get("seconds", 0.0) for cost in parts.spent(folder))
    seconds = store.invested(folder) + in_parts
    if not (folder / store.PROGRESS).exists():
        # nobody but a disk or a user takes that away and leaves what was worked on
        lost = State("partial", (f"{store.PROGRESS} is lost",), seconds)
        return lost if seconds else State("missing")
    if store.begun_as(folder) in (mark, ""):
        return State("partial")
    return State("partial", ("begun as another",), seconds)
