"""Artifacts that several runs have in common are made once: a run takes over what another has
finished, where the fingerprint says that it would make the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from synthboot import config
from synthboot.artifacts import store
from synthboot.artifacts.model import has_diverged
from synthboot.errors import CorruptArtifact
from synthboot.recipes import Unit
from synthboot.runner.graph import fingerprints
from synthboot.runner.state import State, contents, stands, state
from synthboot.runner.unit import held

OWN = ("evaluate", "report")
"""Stages whose artifacts every run makes itself, since `evaluate` counts how often this run was
looked at, and the report holds its name. Both are cheap."""


def finished(runs: Iterable[Path]) -> dict[str, list[Path]]:
    """The finished artifacts of run folders that another run may take over, by fingerprint."""
    found: dict[str, list[Path]] = {}
    for run in runs:
        for path in sorted(run.glob(f"[0-9][0-9]-*/**/{store.MANIFEST}")):
            try:
                manifest = store.read_manifest(path.parent)
            except CorruptArtifact:
                continue  # the run that it belongs to reports that
            if manifest is not None and manifest.stage not in OWN:
                found.setdefault(manifest.fingerprint, []).append(path.parent)
    return found


def take_over(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    standing: Mapping[str, State],
    others: Mapping[str, Sequence[Path]],
    note: Callable[[str, str], None],
) -> bool:
    """Take over artifacts of the plan from `others`, folders by fingerprint; returns whether there
    were any.

    An artifact that is damaged in all of them will be made anew. `note` is told of each unit and
    where its artifact is from.
    """
    marks = fingerprints(plan)
    done = {name for name, state in standing.items() if state.status == "done"}
    taken = False
    for name, unit in plan.items():
        # until its parents are made, what they will hold is not known
        if name in done or not done.issuperset(unit.parents.values()):
            continue
        if _is_whole(cfg, plan, name, marks):
            done.add(name)  # it was stale only for as long as a parent was missing
            continue

        folder = unit.folder(cfg.folder)
        wanted = (marks[name], contents(cfg, plan, unit))
        problem = None
        for source in others.get(marks[name], ()):
            if source.resolve() == folder.resolve():
                continue
            try:
                manifest = store.read_manifest(source)
                # made from parents that hold something else than here, it is not the same
                if manifest is None or not stands(unit, manifest, *wanted):
                    continue
                # a diverged trial is a result of a sweep; outside of one it is an error to meet
                if has_diverged(manifest) and not unit.is_trial:
                    continue
                with held(folder):
                    store.adopt(source, folder)
            except CorruptArtifact as error:
                problem = error
                continue
            done.add(name)
            taken = True
            note(name, f"taken over from {source}")
            break
        if problem is not None and name not in done:
            note(name, f"{problem}; made anew")
    return taken


def _is_whole(
    cfg: config.Config,
    plan: Mapping[str, Unit],
    name: str,
    marks: Mapping[str, str],
) -> bool:
    """Whether the artifact of a unit, whose parents are finished, is done and undamaged."""
    if state(cfg, plan, name, marks).status != "done":
        return False
    folder = plan[name].folder(cfg.folder)
    manifest = store.read_manifest(folder)
    assert manifest is not None  # it is done
    try:
        store.verify(folder, manifest)
    except CorruptArtifact:
        return False
    return True
