"""How the artifacts of a run stand: done, missing, partial, or stale and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from synthboot import config
from synthboot.artifacts import store
from synthboot.data import disk
from synthboot.errors import CorruptArtifact
from synthboot.recipes import VERSIONS, Unit
from synthboot.runner.graph import fingerprints


@dataclass(frozen=True)
class State:
    """How an artifact stands: `done`, `missing`, `partial`, or `stale` with the reasons."""

    status: str
    reasons: tuple[str, ...] = ()


def states(
    cfg: config.Config,
    plan: Mapping[str, Unit],
) -> dict[str, State]:
    """How every unit's artifact stands now.

    Raises CorruptArtifact for a manifest that cannot be read, or that a newer synthboot wrote, and
    StorageError where the disk does not let one look.
    """
    expected = fingerprints(plan)
    result: dict[str, State] = {}
    for name, unit in plan.items():
        folder = unit.folder(cfg.folder)
        with disk.storage_errors(folder):
            manifest = store.read_manifest(folder)
        if manifest is not None and manifest.version > VERSIONS[unit.stage]:
            raise CorruptArtifact(
                f"{folder}: a newer synthboot made it "
                f"(stage version {manifest.version}, here {VERSIONS[unit.stage]}); "
                f"update synthboot, or delete {folder} to make it again"
            )

        unfinished = [p for p in unit.parents.values() if result[p].status != "done"]
        if manifest is None:
            begun = (folder / store.PROGRESS).exists()
            result[name] = State("partial" if begun else "missing")
        elif manifest.fingerprint != expected[name]:
            parents = {role: expected[parent] for role, parent in unit.parents.items()}
            reasons = store.drift(
                manifest,
                VERSIONS[unit.stage],
                unit.reads,
                parents,
            )
            result[name] = State("stale", tuple(reasons))
        elif unfinished:
            first = unfinished[0]
            result[name] = State("stale", (f"{first} is {result[first].status}",))
        else:
            result[name] = State("done")
    return result
