"""Looking into run folders: where they stand, examples to read, several side by side.

Reads only what is on disk.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import regex
from jaxtyping import Bool, Float32

from synthboot.artifacts import parts, store
from synthboot.artifacts.analysis import Analysis, Segments
from synthboot.artifacts.corpus import DOCUMENTS, Corpus
from synthboot.artifacts.embeddings import Embeddings
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.extraction import COMPARED, FIGURES, Continued, Extraction
from synthboot.artifacts.judged import JudgedText, judged_texts
from synthboot.artifacts.pairs import TRAIN, Pairs
from synthboot.artifacts.synthetic import Sample, Synthetic
from synthboot.config import Config, Embed
from synthboot.data import lock
from synthboot.data.canaries import exposure, planted
from synthboot.data.tokens import Tokens
from synthboot.errors import ConfigError, MissingArtifact
from synthboot.recipes import STAGES, folder_of
from synthboot.settings import default
from synthboot.steps.context import conditional

if TYPE_CHECKING:
    from synthboot.stages.pair import Choices

_COPY_TOKENS = 13
"""Length of the runs by which a text is said to copy another."""
_SEARCH_SECONDS = 1.0
"""For a pattern in one text: some take longer than anybody waits."""
_BLOCK_DOCS = 65_536
"""Vectors of documents that are compared at once."""
_BATCH_DOCS = 1_024
"""Samples that are embedded at once."""


@dataclass(frozen=True)
class Status:
    """How an artifact stands (`done` or `partial`), what it cost, and what it says of itself in a
    few words; of one that is made in parts, how each of them stands."""

    unit: str
    status: str
    tokens: float | None = None
    seconds: float | None = None
    peak_memory_bytes: float | None = None
    flops: float | None = None
    account: str = ""
    parts: Sequence[parts.Standing] = ()


@dataclass(frozen=True)
class Example:
    """Texts by name, each in segments: 1 marks what d1 holds too (of what was given back: what is
    right), 2 what stands elsewhere in D_pretrain, 0 all else."""

    title: str
    texts: Mapping[str, Segments]


def _unmarked(text: str) -> Segments:
    return ((text, 0),)


def status(run: Path) -> list[Status]:
    """The artifacts of a run folder, in the order of the pipeline.

    Raises MissingArtifact where it is no run folder.
    """
    rows = []
    for folder in _artifacts(run):
        unit = folder.relative_to(run).as_posix()
        manifest = store.read_manifest(folder)
        if manifest is None:
            rows.append(Status(unit, "partial", parts=parts.standing(folder)))
            continue
        row = Status(
            unit=unit,
            status="done",
            tokens=manifest.cost.get("tokens"),
            seconds=manifest.cost.get("seconds"),
            peak_memory_bytes=manifest.cost.get("peak_memory_bytes"),
            flops=manifest.cost.get("flops"),
            account=manifest.counts.get("account", ""),
        )
        rows.append(row)
    return rows


def examples(
    run: Path,
    what: str,
    count: int,
    near: float | None = None,
    grep: str | None = None,
    like: str | None = None,
    of: str | None = None,
) -> list[Example]:
    """Up to `count` examples.

    Synthetic text, and copies in it, are `of` an arm, or of a kind (a folder of `synthesize`);
    unless it is said, of related pairs, or of the first kind that there is.

    Pairs with `near` are those of the nearest similarity. With `grep`, a regular expression, only
    documents, samples, judges and reasons that it is found in, and pairs with such a document;
    `like` takes what is nearest to a text by the run's own embedding, of pairs by the nearer of
    both. Raises ConfigError for a similarity or a pattern that is none, or takes too long, where
    nothing can embed the text, and where there is no such synthetic text.
    """
    if near is not None:
        _check_near(near, what, like)
    if of is not None and what not in ("synthetic", "copies"):
        raise ConfigError(f"show: --of is about synthetic text; of {what} there is one kind")
    corpus = Corpus.open(_need(run, "corpus"))
    is_wanted = _matcher(grep)
    if what in ("quarantine", "extracted", "canaries", "judged") and like is not None:
        raise ConfigError(f"show: --like is about texts; of the {what}, use --grep")
    likeness = None if like is None else _Likeness(run, like)

    if what == "quarantine":
        found = _quarantined(corpus, is_wanted)
    elif what == "extracted":
        found = _extracted(run, corpus, is_wanted)
    elif what == "canaries":
        found = _canaries(run, corpus, is_wanted)
    elif what == "judged":
        found = _judged(run, is_wanted)
    elif what == "documents":
        found = _documents(corpus, is_wanted, likeness)
    elif what == "pairs":
        related = Pairs.load(_need(run, "pair", "related"))
        wanted = None if grep is None else is_wanted
        found = _pairs(related.only(TRAIN), corpus, count, near, wanted, likeness)
    else:
        only_copies = what == "copies"
        kind = _kind(run, of)
        if only_copies and not conditional(kind):
            raise ConfigError(f"show: copies are from d1, and samples of {kind} have none")
        found = _synthetic(run, kind, corpus, count, only_copies, is_wanted, likeness)
    return list(itertools.islice(found, count))


def _check_near(near: float, what: str, like: str | None) -> None:
    if like is not None:
        raise ConfigError("show: --near and --like are two orders; choose one")
    if what != "pairs":
        raise ConfigError(f"show: --near is the similarity of pairs; of the {what}, leave it out")
    if not -1 <= near <= 1:  # nor is nan
        raise ConfigError(f"show: --near {near:g} is no similarity; give one from -1 to 1")


def alphas(cfg: Config) -> Choices:
    """What each alpha would give: `stages.pair.alphas` on a run's corpus and vectors.

    Raises MissingArtifact where they have not been made.
    """
    from synthboot.stages import pair

    embeddings = Embeddings.open(_need(cfg.folder, "embed"))
    corpus = Corpus.open(_need(cfg.folder, "corpus"))
    return pair.alphas(
        embeddings.pretrain,
        corpus.pretrain,
        cfg.pair,
        cfg.seed,
        fields=pair.Fields(canary=corpus.is_canary),
    )


def _judged(run: Path, is_wanted: Callable[[str], bool]) -> Iterator[Example]:
    """Texts that judges call faulty, worst first, the first of every judge, question and kind of
    text before the second of any."""
    analyzed(run)  # by this version
    groups: dict[tuple[str, str, str], list[JudgedText]] = {}
    for row in judged_texts(_need(run, "analyze")):
        if row.is_faulty:
            groups.setdefault((row.judge, row.question, row.kind), []).append(row)
    worst_first = [sorted(rows, key=lambda row: -row.score) for rows in groups.values()]
    for one_of_each in itertools.zip_longest(*worst_first):
        for row in one_of_each:
            if row is None:  # its group has no more
                continue
            group = f"{row.judge}, {row.question}, {row.kind}"
            if not any(map(is_wanted, (group, row.text, row.d1))):
                continue
            title = f"{group}: score {row.score:.3g}, faulty above {row.threshold:.3g}"
            if row.refused:
                title += f"; not believed: {row.refused}"
            texts = {"d1": row.d1} if row.d1 else {}
            for number, reference in enumerate(row.references, 1):
                texts[f"real document {number}"] = reference
            texts["text"] = row.text
            yield Example(title, {name: _unmarked(text) for name, text in texts.items()})


def analyzed(run: Path) -> Analysis:
    """The measures of a run's text, and what judges say of it.

    Raises MissingArtifact where it has not been analyzed, CorruptArtifact where it was by another
    synthboot.
    """
    return Analysis.open(_need(run, "analyze"))


def evaluated(run: Path) -> Evaluation | None:
    """All arms of a run compared; None where they have not been yet."""
    folder = folder_of(run, "evaluate")
    return None if store.read_manifest(folder) is None else Evaluation.open(folder)


@dataclass(frozen=True)
class Runs:
    """Several runs by their folders, and of every setting in which they differ the value of each
    of them."""

    evaluations: dict[str, Evaluation]
    differences: dict[str, list[object]]

    def as_json(self) -> dict[str, object]:
        """Both as plain values."""
        runs = {run: evaluation.as_json() for run, evaluation in self.evaluations.items()}
        return {"runs": runs, "differences": self.differences}


def compare(runs: Sequence[Path]) -> Runs:
    """What several runs have shown. Raises MissingArtifact where one has no report yet."""
    evaluations = {}
    settings = {}
    for run in runs:
        evaluations[str(run)] = Evaluation.open(_need(run, "evaluate"))
        manifest = store.read_manifest(_need(run, "report"))
        settings[str(run)] = manifest.reads if manifest else {}

    differences = {}
    for key in sorted(set().union(*settings.values()) - {"name"}):
        values = [reads.get(key, default(key)) for reads in settings.values()]
        if any(value != values[0] for value in values):
            differences[key] = values
    return Runs(evaluations, differences)


def _matcher(pattern: str | None) -> Callable[[str], bool]:
    """Whether a text has something that a regular expression finds."""
    if pattern is None:
        return lambda text: True
    try:
        compiled = regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        why = f"no regular expression: {error}"
        raise ConfigError(f"show: --grep: {pattern!r:.100}: {why}") from None

    def is_found(text: str) -> bool:
        try:
            return compiled.search(text, timeout=_SEARCH_SECONDS) is not None
        except TimeoutError:
            raise ConfigError(
                f"show: --grep: {pattern!r:.100}: takes more than {_SEARCH_SECONDS:g} s for one "
                f"text; write it without repetitions inside of repetitions"
            ) from None

    return is_found


class _Likeness:
    """How near texts are to one text, by the embedding that the run's pairs were found by.

    Raises ConfigError where nothing here can embed a text, or it has no word that is known.
    """

    def __init__(self, run: Path, text: str) -> None:
        from synthboot.lm.model import device
        from synthboot.stages import embed

        folder = _need(run, "embed")
        cfg = _embed_settings(folder)
        if cfg.model == "file":
            raise ConfigError(
                f"show: --like: the vectors of {run} came from a file, and nothing here can embed "
                f"a text as they were; use --grep"
            )
        self.embeddings = Embeddings.open(folder)
        self.embedder = embed.embedder(cfg, self.embeddings.embedder, str(device("auto")))
        [self.vector] = self.embedder([text])
        if not self.vector.any():
            raise ConfigError("show: --like: no word of the text is one that the run knows")

    def of_documents(self) -> Float32[np.ndarray, " doc"]:
        """The similarity of every document of D_pretrain."""
        vectors = self.embeddings.pretrain
        # a block at a time: on disk they are float16, and as float32 would take twice that memory
        blocks = []
        for start in range(0, len(vectors), _BLOCK_DOCS):
            block = vectors[start : start + _BLOCK_DOCS].astype(np.float32)
            blocks.append(block @ self.vector)
        return np.concatenate(blocks)

    def nearest(self, rows: Iterable[Sample], count: int) -> list[tuple[float, Sample]]:
        """The `count` nearest of these samples, nearest first; as many are held as are wanted."""
        scored = heapq.nlargest(count, self._scored(rows), key=lambda row: row[0])
        return [(similarity, row) for similarity, row in scored]

    def _scored(self, rows: Iterable[Sample]) -> Iterator[tuple[float, Sample]]:
        rows = iter(rows)
        while batch := list(itertools.islice(rows, _BATCH_DOCS)):
            vectors = self.embedder([row.text for row in batch])
            similarity = vectors @ self.vector
            yield from zip(similarity.tolist(), batch, strict=True)


def _embed_settings(folder: Path) -> Embed:
    """The settings by which the vectors in this folder were made."""
    manifest = store.read_manifest(folder)
    assert manifest is not None  # the caller has looked for it
    settings = {}
    for key, value in manifest.reads.items():
        section, _, name = key.partition(".")
        # what the stage reads of other sections is no setting of its own
        if section == "embed" and name in Embed.model_fields:
            settings[name] = value
    return Embed.model_validate(settings)


def _quarantined(corpus: Corpus, is_wanted: Callable[[str], bool]) -> Iterator[Example]:
    """The records that were no documents, and why."""
    for record in corpus.rejects():
        reason = record["reason"]
        if is_wanted(reason):
            title = f"{record['file']} line {record['line']}"
            yield Example(title, {"reason": _unmarked(reason)})


def _documents(
    corpus: Corpus,
    is_wanted: Callable[[str], bool],
    likeness: _Likeness | None,
) -> Iterator[Example]:
    """The documents of D_pretrain, in order, or nearest first."""
    tokens = corpus.pretrain
    order: Iterable[int] = range(len(tokens))
    similarity = None
    if likeness is not None:
        similarity = likeness.of_documents()
        order = np.argsort(-similarity, kind="stable").tolist()

    for doc in order:
        text = _text(corpus, tokens, doc)
        if is_wanted(text):
            title = f"document {doc}, {_id(corpus, doc)}"
            if similarity is not None:
                title += f", similarity {similarity[doc]:.3f}"
            yield Example(title, {"text": _unmarked(text)})


def _text(corpus: Corpus, tokens: Tokens, doc: int) -> str:
    """A document without its end."""
    return corpus.tokenizer.decode(tokens[doc][:-1])


def _id(corpus: Corpus, doc: int) -> str:
    """The id of a document of D_pretrain, from its shard."""
    first_docs = corpus.pool.first_docs
    shard = int(np.searchsorted(first_docs, doc, side="right")) - 1
    folder = corpus.shards("pool").path(shard)
    ids = store.read_table(folder / DOCUMENTS, ["id"])["id"]
    return str(ids[doc - int(first_docs[shard])])


def _pairs(
    pairs: Pairs,
    corpus: Corpus,
    count: int,
    near: float | None,
    is_wanted: Callable[[str], bool] | None,
    likeness: _Likeness | None,
) -> Iterator[Example]:
    """Pairs, spread evenly over all similarities unless they are searched or ordered."""
    from synthboot.stages import analyze

    tokens = corpus.pretrain

    # a document is in many pairs
    @functools.cache
    def is_wanted_document(doc: int) -> bool:
        return is_wanted is None or is_wanted(_text(corpus, tokens, doc))

    if near is not None:
        distance = np.abs(pairs.similarity - near)
        order = np.argsort(distance, kind="stable")
    elif likeness is not None:
        similarity = likeness.of_documents()
        of_nearer = np.maximum(similarity[pairs.d1], similarity[pairs.d2])
        order = np.argsort(-of_nearer, kind="stable")
    elif is_wanted is not None:
        order = np.arange(len(pairs))
    else:
        last = len(pairs) - 1
        order = np.linspace(0, last, min(count, len(pairs))).astype(int)

    for number in order.tolist():
        d1 = int(pairs.d1[number])
        d2 = int(pairs.d2[number])
        if is_wanted_document(d1) or is_wanted_document(d2):
            pair = analyze.shown(pairs, number, corpus.tokenizer, tokens, _COPY_TOKENS)
            title = f"similarity {pair.similarity:.3f}"
            yield Example(title, {"d1": _unmarked(pair.d1), "d2": pair.d2})


def _kind(run: Path, of: str | None) -> str:
    """The kind of synthetic text that is meant: by its own name, or by that of an arm that read it.

    Raises ConfigError, naming what there is, where it is none.
    """
    root = folder_of(run, "synthesize")
    by_fingerprint = {}
    for path in sorted(root.rglob(store.MANIFEST)):
        manifest = store.read_manifest(path.parent)
        if manifest is not None:
            by_fingerprint[manifest.fingerprint] = path.parent.relative_to(root).as_posix()

    kinds = list(by_fingerprint.values())
    if of is None:
        return "related" if "related" in kinds or not kinds else kinds[0]
    if of in kinds:
        return of

    by_arm = _kind_by_arm(run, by_fingerprint)
    if of not in by_arm:
        there = ", ".join([*sorted(kinds), *by_arm]) or "none yet"
        raise ConfigError(f"show: --of {of}: there is no such synthetic text; there is {there}")
    return by_arm[of]


def _kind_by_arm(run: Path, by_fingerprint: Mapping[str, str]) -> dict[str, str]:
    """Of every arm that has read synthetic text, its kind."""
    by_arm: dict[str, str] = {}
    for path in sorted(folder_of(run, "pretrain").glob(f"*/*/{store.MANIFEST}")):
        manifest = store.read_manifest(path.parent)
        text = None if manifest is None else manifest.parents.get("synthesize")
        if text is not None and text in by_fingerprint:
            arm = path.parent.parent.name
            kind = by_fingerprint[text]
            # of texts for each seed that of the first, which alone has no seed in its name
            by_arm[arm] = min(by_arm.get(arm, kind), kind, key=len)
    return by_arm


def _synthetic(
    run: Path,
    kind: str,
    corpus: Corpus,
    count: int,
    copies: bool,
    is_wanted: Callable[[str], bool],
    likeness: _Likeness | None,
) -> Iterator[Example]:
    """Samples of a kind, beside their d1 where they have one, in order, or nearest first."""
    from synthboot.stages import analyze

    tokens = corpus.pretrain
    folder = _need(run, "synthesize", kind)
    has_d1 = conditional(kind)
    made = store.read_manifest(folder)
    external = made.counts.get("external") if made else None
    writer = f", external ({external})" if external else ""

    def is_copied(row: Sample) -> Bool[np.ndarray, " token"]:
        if not has_d1:
            return np.zeros(len(row.tokens), bool)
        d1 = tokens[row.d1][:-1]
        [mask] = analyze.d1_masks([row.tokens], [d1], _COPY_TOKENS)
        return mask

    rows = (row for row in Synthetic.open(folder) if is_wanted(row.text))
    if copies:
        rows = (row for row in rows if is_copied(row).any())
    with_similarity: Iterable[tuple[float | None, Sample]] = ((None, row) for row in rows)
    if likeness is not None:
        with_similarity = likeness.nearest(rows, count)

    for similarity, row in with_similarity:
        marks = is_copied(row).astype(int)
        sampled = analyze.segments(corpus.tokenizer, row.tokens, marks)
        texts: dict[str, Segments]
        if has_d1:
            source = f"d1 {row.d1}"
            texts = {"d1": _unmarked(_text(corpus, tokens, row.d1)), "sampled d2": sampled}
        else:
            source = f"request {row.d1}"
            texts = {"sampled": sampled}

        near = "" if similarity is None else f", similarity {similarity:.3f}"
        mean = f"mean log-probability {row.mean_logprob:.2f} nats a token"
        yield Example(f"{source}, sample {row.sample}, {mean}{near}{writer}", texts)


def _asked(run: Path) -> Iterator[tuple[str, Continued]]:
    """What every model was asked to give back, by its arm and seed."""
    compared = _need(run, "extract", COMPARED)
    for arm in Extraction.open(compared).arms:
        for folder in sorted((compared.parent / arm).glob("seed-*")):
            yield f"{arm}, {folder.name.replace('-', ' ')}", Continued.open(folder)


class _GivenBack(NamedTuple):
    """What a model gave back of a document, and the share of it before the first wrong token."""

    share: float
    model: str
    doc: int
    tokens: Sequence[int]


def _extracted(run: Path, corpus: Corpus, is_wanted: Callable[[str], bool]) -> Iterator[Example]:
    """Documents of D_pretrain that models gave back: as far as they did, furthest first."""
    from synthboot.stages import analyze

    decode = corpus.tokenizer.decode
    compared = Extraction.open(_need(run, "extract", COMPARED))
    prefix_tokens = compared.prefix_tokens
    continuation_tokens = compared.continuation_tokens
    leading = FIGURES.index("leading")

    found = []
    for model, continued in _asked(run):
        for item in np.flatnonzero(continued.seen).tolist():
            share = float(continued.figures[item, leading])
            doc = int(continued.document[item])
            found.append(_GivenBack(share, model, doc, continued.tokens[item]))

    for back in sorted(found, key=lambda back: -back.share):
        document = corpus.pretrain[back.doc][:-1]
        if not is_wanted(decode(document)):
            continue
        is_right = np.arange(len(back.tokens)) < round(back.share * continuation_tokens)
        written = np.array(back.tokens, np.int64)
        texts = {
            "given": _unmarked(decode(document[:prefix_tokens])),
            "document": _unmarked(decode(document[prefix_tokens:][:continuation_tokens])),
            "given back": analyze.segments(corpus.tokenizer, written, is_right.astype(int)),
        }
        title = f"document {back.doc}, {back.model}: {back.share:.0%} before an error"
        yield Example(title, texts)


def _canaries(run: Path, corpus: Corpus, is_wanted: Callable[[str], bool]) -> Iterator[Example]:
    """The canaries that were planted, and how exposed each is in every model."""
    if not corpus.canaries:
        return
    is_planted = np.array([canary.copies > 0 for canary in corpus.canaries])
    exposures = {}
    for model, continued in _asked(run):
        loss = continued.canary_loss
        exposures[model] = exposure(loss, loss[~is_planted])

    for number, canary in enumerate(planted(corpus.canaries)):
        if is_wanted(canary.text):
            bits = [f"{model} {of_model[number]:.1f} bits" for model, of_model in exposures.items()]
            title = f"canary {number}, {canary.copies} copies: {', '.join(bits)}"
            yield Example(title, {"text": _unmarked(canary.text)})


def _artifacts(run: Path) -> list[Path]:
    """The folders of all artifacts of a run, done or begun."""
    names = {folder_of(run, stage).name for stage in STAGES}
    inside = run.iterdir() if run.is_dir() else ()
    folders = [path for path in inside if path.name in names]
    if not folders:
        if lock.is_held(run / lock.NAME):
            raise MissingArtifact(f"{run}: nothing is made yet, and a process is at work on it")
        raise MissingArtifact(f"{run}: no run folder; `synthboot run CONFIG` makes one")

    artifacts = set()
    for folder in folders:
        for name in (store.MANIFEST, store.PROGRESS):
            artifacts |= {file.parent for file in folder.rglob(name)}
    return sorted(artifacts)


def _need(run: Path, stage: str, variant: str = "") -> Path:
    """The folder of an artifact that is done. Raises MissingArtifact where it is not."""
    if not run.is_dir():
        raise MissingArtifact(f"{run}: no such run folder, nor a configuration")
    folder = folder_of(run, stage, variant)
    if store.read_manifest(folder) is None:
        raise MissingArtifact(
            f"{run}: {stage} has not been made yet; run `synthboot {stage} CONFIG`"
        )
    return folder
