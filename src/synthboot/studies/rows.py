"""A row a run: what was trained, what d1 is worth there, and what the arms show, from the finished
artifacts of any run folder. Nothing is run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from synthboot import statistics
from synthboot.artifacts import store
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.evaluation import REPETITION, Evaluation
from synthboot.artifacts.model import Model, Tuning
from synthboot.errors import MissingArtifact
from synthboot.recipes import STAGES, VERSIONS, folder_of
from synthboot.settings import default, leaves
from synthboot.statistics import Difference, Interval

_COUNTS = (
    "train_tokens",
    "parameters",
    "batch_tokens",
    "pool_tokens",
    "contexts",
    "tuned_tokens",
    "seeds",
)

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

    `folder` is the run's, `settings` what sets it apart from the others. `test_set` is the same for
    runs whose losses are of the same validation and test documents. `pool_tokens` are the
    unique tokens of D_pretrain, `tuned_tokens` those that the synthesizer was tuned on.

    `ceiling` is what counting gets from the nearest d1, `d1_worth` and `net_worth` what the
    synthesizer gets (docs/will-it-work.md), `copy_score` base's at its end. `base_loss` is base's
    least validation loss, `late_gain` what the last tenth of its training saved, `losses` each
    arm's test loss at the checkpoint of the verdict.
    `minus_repetition` and `minus_self` are of the arm of the method, `method`; "self" is the
    control that reads unconditional samples. `confidence` is that of its intervals, 0.95 for a run
    that is collected before an evaluation. `looks` counts how often the run was evaluated, each
    time with other seeds.

    `failed` says whether the run could not be made; `note` why, or what is there and left out.
    """

    point: str
    folder: str
    settings: dict[str, object]
    test_set: str | None = None
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
    late_gain: float | None = None
    method: str | None = None
    losses: dict[str, Interval] = field(default_factory=dict)
    minus_repetition: Comparison | None = None
    minus_self: Comparison | None = None
    confidence: float = 0.95
    looks: int = 1
    failed: bool = False
    note: str = ""

    def flat(self) -> dict[str, object]:
        """One value a column: `d1_worth` and `d1_worth.error`, `loss.sbp`, `loss.sbp.low`, ..."""
        found: dict[str, object] = {"point": self.point, "folder": self.folder}
        found |= self.settings
        found["test_set"] = self.test_set
        for name in _COUNTS:
            found[name] = getattr(self, name)
        for name in ("ceiling", "d1_worth", "net_worth"):
            value, error = getattr(self, name) or (None, None)
            found[name] = value
            found[f"{name}.error"] = error
        found["copy_score"] = self.copy_score
        found["base_loss"] = self.base_loss
        found["late_gain"] = self.late_gain
        for arm, loss in self.losses.items():
            found |= _columns(f"loss.{arm}", loss, ("low", "high"))
        found["method"] = self.method
        for name in ("minus_repetition", "minus_self"):
            comparison = getattr(self, name)
            found |= _columns(name, comparison, ("low", "high", "p", "p_adjusted"))
        found["confidence"] = self.confidence
        found["note"] = self.note
        return found


def _columns(
    name: str,
    figure: Interval | Comparison | None,
    ends: Sequence[str],
) -> dict[str, object]:
    """A figure with what belongs to it; all of it None where there is no figure."""
    found: dict[str, object] = {name: getattr(figure, "value", None)}
    for end in ends:
        found[f"{name}.{end}"] = getattr(figure, end, None)
    return found


def read(
    run: Path,
    point: str,
    settings: Mapping[str, object],
    wanted: Collection[str] | None = None,
) -> Row:
    """The row of a run folder; its p-values are not adjusted for the other rows yet.

    Where `wanted` says which, it is made of artifacts of these fingerprints alone.

    Raises MissingArtifact where it is no run folder, CorruptArtifact where a file is damaged.
    """
    manifests = _manifests(run)
    whole = _whole(manifests, wanted)
    note = _stale(run, manifests, whole)
    row = Row(point, str(run), dict(settings), note=note)

    corpus = folder_of(run, "corpus")
    # of a sweep, the trial that was chosen
    chosen = folder_of(run, "base", "chosen")
    base = chosen if chosen in whole else folder_of(run, "base")
    pair = folder_of(run, "pair", "related")
    tune = folder_of(run, "tune", "related")
    evaluate = folder_of(run, "evaluate")

    if corpus in whole:
        counts = whole[corpus].counts
        test_set = _digest(Corpus.open(corpus))
        row = replace(row, pool_tokens=counts["pretrain_tokens"], test_set=test_set)
    if base in whole:
        row = _with_base(row, Model.open(base))
    if pair in whole and whole[pair].counts["ceiling"]:
        value, error = whole[pair].counts["ceiling"]["worth"]["1"]
        row = replace(row, ceiling=(value, error))
    if tune in whole:
        tuning = Model.open(tune).tuning
        row = _with_tune(row, tuning, whole[tune])
    if evaluate in whole:
        row = _with_evaluation(row, Evaluation.open(evaluate))
    return row


def settings_of(run: Path) -> dict[str, object]:
    """The settings that a run's artifacts were made with, where they are not their default, by
    dotted name; recipes of arms are left out."""
    known = set(leaves())
    found: dict[str, object] = {}
    manifests = _manifests(run)
    # of what the row shows: what is left from before was made with others
    for manifest in (_whole(manifests, None) or manifests).values():
        found |= {key: value for key, value in manifest.reads.items() if key in known}
    return found


def differing(runs: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """Of settings by run, those that are not the same in all of them, defaults filled in."""
    found: dict[str, dict[str, object]] = {run: {} for run in runs}
    for key in sorted(set().union(*runs.values())):
        values = {}
        for run, settings in runs.items():
            values[run] = settings.get(key, default(key))
        if len(set(map(repr, values.values()))) > 1:
            for run, value in values.items():
                found[run][key] = value
    return found


def adjusted(rows: Sequence[Row]) -> list[Row]:
    """The rows with p-values adjusted for looks, and then for all that they compare."""
    kinds = ("minus_repetition", "minus_self")
    p_values = {}
    for number, row in enumerate(rows):
        for kind in kinds:
            comparison = getattr(row, kind)
            if comparison is not None:
                # first: Holm orders them, and looks may be others in every run
                p_values[number, kind] = min(1.0, comparison.p * row.looks)

    result = list(rows)
    for (number, kind), p_adjusted in statistics.holm(p_values).items():
        row = result[number]
        comparison = replace(getattr(row, kind), p_adjusted=p_adjusted)
        result[number] = replace(row, **{kind: comparison})
    return result


def has_begun(run: Path) -> bool:
    """Whether a folder is that of a run with anything finished in it."""
    return bool(_finished(run))


def _finished(run: Path) -> dict[Path, store.Manifest]:
    """The manifests of a run's finished artifacts by folder, in the order of the pipeline."""
    found = {}
    for stage in STAGES:
        place = folder_of(run, stage)
        for path in sorted(place.rglob(store.MANIFEST)):
            manifest = store.read_manifest(path.parent)
            if manifest is not None:
                found[path.parent] = manifest
    return found


def _manifests(run: Path) -> dict[Path, store.Manifest]:
    """The same; raises MissingArtifact where there is none."""
    found = _finished(run)
    if not found:
        raise MissingArtifact(
            f"{run}: no run folder with anything finished in it; `synthboot run CONFIG` makes one"
        )
    return found


def _whole(
    manifests: Mapping[Path, store.Manifest],
    wanted: Collection[str] | None,
) -> dict[Path, store.Manifest]:
    """Those artifacts of this version, and of the fingerprints `wanted`, whose parents, and theirs,
    are there as they were when it was made."""
    # what another version left may have other fields
    whole = {}
    for folder, manifest in manifests.items():
        is_wanted = wanted is None or manifest.fingerprint in wanted
        if is_wanted and manifest.version == VERSIONS[manifest.stage]:
            whole[folder] = manifest
    changed = True
    while changed:
        standing = {manifest.fingerprint for manifest in whole.values()}
        left = {}
        for folder, manifest in whole.items():
            if standing.issuperset(manifest.parents.values()):
                left[folder] = manifest
        changed = len(left) < len(whole)
        whole = left
    return whole


def _stale(
    run: Path,
    manifests: Mapping[Path, store.Manifest],
    whole: Mapping[Path, store.Manifest],
) -> str:
    """What is left out of the row, by its first."""
    for folder in manifests:
        if folder not in whole:
            name = folder.relative_to(run).as_posix()
            return (
                f"{name} is left out: of other settings or another version, or made from what "
                f"is not there any more"
            )
    return ""


def _digest(corpus: Corpus) -> str:
    """8 hex digits of the documents that losses are measured on, whatever tokens these are."""
    digest = blake2b(digest_size=4)
    for name in ("validation", "test"):
        for document in corpus.texts(name):
            # text may hold anything, but each has its length
            text = document.text.encode("utf-8", "surrogatepass")
            digest.update(f"{name} {len(text)} ".encode())
            digest.update(text)
    return digest.hexdigest()


def _with_base(row: Row, base: Model) -> Row:
    counts = base.token_counts
    curve = base.curve
    return replace(
        row,
        train_tokens=counts.train_tokens,
        parameters=counts.parameters,
        batch_tokens=counts.batch_tokens,
        base_loss=curve.best_loss,
        late_gain=None if math.isnan(curve.late_gain) else curve.late_gain,
        copy_score=curve.copying[-1][1] if curve.copying else None,
    )


def _with_tune(row: Row, tuning: Tuning, manifest: store.Manifest) -> Row:
    unseen = tuning.conditioning["unseen"]
    tokens = manifest.cost.get("tokens")
    contexts = manifest.reads.get("tune.contexts", default("tune.contexts"))
    return replace(
        row,
        contexts=contexts,
        tuned_tokens=None if tokens is None else int(tokens),
        d1_worth=_worth(unseen.d1_worth, unseen.d1_worth_error),
        net_worth=_worth(unseen.net_worth, unseen.net_worth_error),
    )


def _with_evaluation(row: Row, evaluation: Evaluation) -> Row:
    chosen = evaluation.chosen
    method = chosen.subject
    row = replace(
        row,
        seeds=chosen.seeds,
        confidence=chosen.confidence,
        looks=max(1, len(chosen.looks)),
        losses={arm: result.loss for arm, result in chosen.arms.items()},
        method=method,
    )
    if method is None:
        return row
    against = chosen.arms[method].against
    self_arm = _self(evaluation, method)
    return replace(
        row,
        minus_repetition=_comparison(against[REPETITION]),
        minus_self=None if self_arm is None else _comparison(against[self_arm]),
    )


def _self(evaluation: Evaluation, method: str) -> str | None:
    """The arm of unconditional samples: that whose recipe is the method's otherwise, else the
    first."""
    counts = evaluation.counts_by_arm
    wanted = counts[method].recipe.model_copy(update={"synthetic": "unconditional"})
    controls = []
    for arm, of_arm in counts.items():
        if of_arm.recipe.synthetic == "unconditional":
            controls.append(arm)
    for arm in controls:
        if counts[arm].recipe == wanted:
            return arm
    return controls[0] if controls else None


def _worth(value: float | None, error: float | None) -> Worth | None:
    return None if value is None or error is None else (value, error)


def _comparison(difference: Difference) -> Comparison:
    return Comparison(*difference, p_adjusted=difference.p)
