"""A row a run: what was trained, what d1 is worth there, and what the arms show, from the finished
artifacts of any run folder. Nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from synthboot import statistics
from synthboot.artifacts import store
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.model import Model
from synthboot.errors import MissingArtifact
from synthboot.recipes import STAGES, VERSIONS, folder_of
from synthboot.settings import default, leaves
from synthboot.statistics import Interval

Worth = tuple[float, float]
"""A gain in nats a token, and its standard error."""


@dataclass(frozen=True)
class Comparison:
    """One arm's loss minus another's, in nats a token; `p_adjusted` for all comparisons of the
    study (Holm) and the looks that were taken at this run."""

    value: float
    low: float
    high: float
    p: float
    p_adjusted: float


@dataclass(frozen=True)
class Row:
    """What one run shows; None where it has not got that far.

    `folder` is the run's, `settings` what sets it apart from the others. `pool_tokens` are the
    unique tokens of D_pretrain, `tuned_tokens` those that the synthesizer was tuned on.

    `ceiling` is what counting gets from the nearest d1, `d1_worth` and `net_worth` what the
    synthesizer gets (docs/will-it-work.md), `copy_score` base's at its end. `base_loss` is base's
    least validation loss, `losses` each arm's test loss at the checkpoint of the verdict.
    `minus_repetition` and `minus_self` are of the arm of the method, `method`; "self" is the
    control that reads unconditional samples. `looks` counts how often the run was evaluated with a
    new number of seeds.

    `failed` says whether the run could not be made; `note` why, or what is there and left out.
    """

    point: str
    folder: str
    settings: dict[str, object]
    train_tokens: int | None = None
    parameters: int | None = None
    batch_tokens: int | None = None
    pool_tokens: int | None = None
    contexts: int | None = None
    tuned_tokens: int | None = None
    seeds: int | None = None
    ceiling: Worth | None = None
    copy_score: float | None = None
    d1_worth: Worth | None = None
    net_worth: Worth | None = None
    base_loss: float | None = None
    method: str | None = None
    losses: dict[str, Interval] = field(default_factory=dict)
    minus_repetition: Comparison | None = None
    minus_self: Comparison | None = None
    looks: int = 1
    failed: bool = False
    note: str = ""

    def flat(self) -> dict[str, object]:
        """One value a column: `d1_worth` and `d1_worth.error`, `loss.sbp`, `loss.sbp.low`, ..."""
        plain = ("train_tokens", "parameters", "batch_tokens", "pool_tokens", "contexts")
        found: dict[str, object] = {"point": self.point, "folder": self.folder, **self.settings}
        found |= {name: getattr(self, name) for name in (*plain, "tuned_tokens", "seeds")}
        for name in ("ceiling", "d1_worth", "net_worth"):
            worth = getattr(self, name)
            found[name], found[f"{name}.error"] = worth or (None, None)
        found |= {"copy_score": self.copy_score, "base_loss": self.base_loss}
        for arm, loss in self.losses.items():
            found |= _columns(f"loss.{arm}", loss, ("low", "high"))
        found["method"] = self.method
        for name in ("minus_repetition", "minus_self"):
            found |= _columns(name, getattr(self, name), ("low", "high", "p", "p_adjusted"))
        return found | {"note": self.note}


def _columns(name: str, value: Any, parts: Sequence[str]) -> dict[str, object]:
    found = {name: None if value is None else value.value}
    for part in parts:
        found[f"{name}.{part}"] = None if value is None else getattr(value, part)
    return found


def read(run: Path, point: str, settings: Mapping[str, object]) -> Row:
    """The row of a run folder; its p-values are not adjusted for the other rows yet.

    Raises MissingArtifact where it is no run folder, CorruptArtifact where a file is damaged.
    """
    manifests = _manifests(run)
    whole = _whole(manifests)
    row = Row(point, str(run), dict(settings), note=_stale(run, manifests, whole))

    corpus = folder_of(run, "corpus")
    base = _first(whole, folder_of(run, "base", "chosen"), folder_of(run, "base"))
    pair = folder_of(run, "pair", "related")
    tune = folder_of(run, "tune", "related")
    evaluate = folder_of(run, "evaluate")

    if corpus in whole:
        row = replace(row, pool_tokens=whole[corpus].counts["pretrain_tokens"])
    if base is not None:
        row = _with_base(row, Model.open(base))
    if pair in whole and whole[pair].counts["ceiling"]:
        row = replace(row, ceiling=_worth(whole[pair].counts["ceiling"]["worth"]["1"]))
    if tune in whole:
        row = _with_tune(row, whole[tune])
    if evaluate in whole:
        row = _with_evaluation(row, Evaluation.open(evaluate))
    return row


def settings_of(run: Path) -> dict[str, object]:
    """The settings that a run's artifacts were made with, where they are not their default, by
    dotted name; recipes of arms are left out."""
    known = set(leaves())
    found: dict[str, object] = {}
    for manifest in _manifests(run).values():
        found |= {key: value for key, value in manifest.reads.items() if key in known}
    return found


def differing(runs: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """Of settings by run, those that are not the same in all of them, defaults filled in."""
    keys = sorted({key for settings in runs.values() for key in settings})
    found: dict[str, dict[str, object]] = {run: {} for run in runs}
    for key in keys:
        values = {run: settings.get(key, default(key)) for run, settings in runs.items()}
        if len({repr(value) for value in values.values()}) > 1:
            for run, value in values.items():
                found[run][key] = value
    return found


def adjusted(rows: Sequence[Row]) -> list[Row]:
    """The rows with p-values adjusted for all that they compare, and for looks."""
    kinds = ("minus_repetition", "minus_self")
    p_values = {}
    for number, row in enumerate(rows):
        for kind in kinds:
            comparison = getattr(row, kind)
            if comparison is not None:
                p_values[number, kind] = comparison.p

    result = list(rows)
    for (number, kind), p in statistics.holm(p_values).items():
        row = result[number]
        comparison = replace(getattr(row, kind), p_adjusted=min(1.0, p * row.looks))
        result[number] = replace(row, **{kind: comparison})
    return result


def _manifests(run: Path) -> dict[Path, store.Manifest]:
    """The manifests of a run's finished artifacts by folder, in the order of the pipeline."""
    found = {}
    for stage in STAGES:
        place = folder_of(run, stage)
        for path in sorted(place.rglob(store.MANIFEST)):
            manifest = store.read_manifest(path.parent)
            if manifest is not None:
                found[path.parent] = manifest
    if not found:
        raise MissingArtifact(
            f"{run}: no run folder with anything finished in it; `synthboot run CONFIG` makes one"
        )
    return found


def _whole(manifests: Mapping[Path, store.Manifest]) -> dict[Path, store.Manifest]:
    """Those artifacts of this version whose parents, and theirs, are there as they were when it was
    made."""
    # what another version left may have other fields
    whole = {f: m for f, m in manifests.items() if m.version == VERSIONS[m.stage]}
    changed = True
    while changed:
        standing = {manifest.fingerprint for manifest in whole.values()}
        left = {
            folder: manifest
            for folder, manifest in whole.items()
            if standing.issuperset(manifest.parents.values())
        }
        changed = len(left) < len(whole)
        whole = left
    return whole


def _stale(
    run: Path,
    manifests: Mapping[Path, store.Manifest],
    whole: Mapping[Path, store.Manifest],
) -> str:
    stale = [folder.relative_to(run).as_posix() for folder in manifests if folder not in whole]
    if not stale:
        return ""
    return f"{stale[0]} is left out: of another version, or made from what is not there any more"


def _first(whole: Mapping[Path, store.Manifest], *folders: Path) -> Path | None:
    return next((folder for folder in folders if folder in whole), None)


def _with_base(row: Row, base: Model) -> Row:
    counts = base.token_counts
    curve = base.curve
    return replace(
        row,
        train_tokens=counts["train_tokens"],
        parameters=counts["parameters"],
        batch_tokens=counts["batch_tokens"],
        base_loss=curve["best_loss"],
        copy_score=curve["copying"][-1][1] if curve["copying"] else None,
    )


def _with_tune(row: Row, manifest: store.Manifest) -> Row:
    unseen = manifest.counts["conditioning"]["unseen"]
    tokens = manifest.cost.get("tokens")
    contexts = manifest.reads.get("tune.contexts", default("tune.contexts"))
    return replace(
        row,
        contexts=contexts,
        tuned_tokens=None if tokens is None else int(tokens),
        d1_worth=(unseen["d1_worth"], unseen["d1_worth_error"]),
        # one that starts from fresh weights has no base to be compared with
        net_worth=(unseen["net_worth"], unseen["net_worth_error"])
        if "net_worth" in unseen
        else None,
    )


def _with_evaluation(row: Row, evaluation: Evaluation) -> Row:
    chosen = evaluation.chosen
    arms = evaluation.arms
    method = chosen["subject"]
    row = replace(
        row,
        seeds=chosen["seeds"],
        looks=max(1, len(chosen["looks"])),
        losses={arm: scores["loss"] for arm, scores in arms.items()},
        method=method,
    )
    if method is None:
        return row
    against = arms[method]["against"]
    repetition = against["repetition"]
    self_arm = _self(evaluation, method)
    return replace(
        row,
        minus_repetition=_comparison(repetition),
        minus_self=None if self_arm is None else _comparison(against[self_arm]),
    )


def _self(evaluation: Evaluation, method: str) -> str | None:
    """The arm of unconditional samples: that whose recipe is the method's otherwise, else the
    first."""
    recipes = {}
    for arm, by_seed in evaluation.result["token_counts"].items():
        recipes[arm] = next(iter(by_seed.values()))["recipe"]
    wanted = {**recipes[method], "synthetic": "unconditional"}
    controls = [arm for arm, r in recipes.items() if r["synthetic"] == "unconditional"]
    alike = [arm for arm in controls if recipes[arm] == wanted]
    return next(iter([*alike, *controls]), None)


def _worth(found: Sequence[float]) -> Worth:
    value, error = found
    return float(value), float(error)


def _comparison(found: Sequence[float]) -> Comparison:
    value, low, high, p = found
    return Comparison(value, low, high, p, p_adjusted=p)
