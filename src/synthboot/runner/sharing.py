"""Artifacts that several runs have alike are made once: a run takes over what another has finished,
where the fingerprint says that it would make the same."""

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
"""Stages whose artifacts every run makes itself: `evaluate` counts how often a run was looked at,
the report holds its name. Both are cheap."""


def finished(runs: Iterable[Path]) -> dict[str, list[Path]]:
    """The finished artifacts of run folders that another run may take over, by fingerprint."""
    found: dict[str, list[Path]] = {}
    for run in runs:
        for path in sorted(run.glob(f"[0-9][0-9]-*/**/{store.MANIFEST}")):
            try:
                manifest = store.read_manifest(path.parent)
            except CorruptArtifact:
                continue  # its own run says so
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
    """Whether any artifact of the plan was taken over from `others` (folders by fingerprint).

    One that is damaged everywhere is made anew instead. `note` is told the unit and where its
    artifact is from.
    """
    marks = fingerprints(plan)
    done = {name for name, state in standing.items() if state.status == "done"}
    taken = False
    for name, unit in plan.items():
        # a child of what has yet to be made would be made anew with it
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
                # what was made of a parent that came out otherwise here is another's
                if manifest is None or not stands(unit, manifest, *wanted):
                    continue
                # an arm, or a synthesizer, of the settings of such a trial says so by itself
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
