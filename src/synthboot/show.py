"""Looking into run folders: where they stand, examples to read, several side by side.

Reads only what is on disk.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import regex
from jaxtyping import Float32

from synthboot.artifacts import parts, store
from synthboot.artifacts.analysis import Analysis
from synthboot.artifacts.corpus import DOCUMENTS, Corpus
from synthboot.artifacts.embeddings import Embeddings
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.pairs import TRAIN, Pairs
from synthboot.artifacts.synthetic import Sample, Synthetic
from synthboot.config import Config, Embed
from synthboot.errors import ConfigError, MissingArtifact
from synthboot.recipes import STAGES, folder_of
from synthboot.settings import default

_COPY = 13
_SEARCH_SECONDS = 1.0
"""For a pattern in one text: some take longer than anybody waits."""
_BLOCK_DOCS = 65_536
_BATCH_DOCS = 1_024


def status(run: Path) -> list[dict[str, Any]]:
    """One row per artifact of a run folder, in pipeline order.

    Raises MissingArtifact where it is no run folder.
    """
    rows = []
    for folder in _artifacts(run):
        manifest = store.read_manifest(folder)
        cost = manifest.cost if manifest else {}
        rows.append(
            {
                "unit": folder.relative_to(run).as_posix(),
                "status": "done" if manifest else "partial",
                "tokens": cost.get("tokens"),
                "seconds": cost.get("seconds"),
                "peak_memory_bytes": cost.get("peak_memory_bytes"),
                "flops": cost.get("flops"),
                "account": manifest.counts.get("account", "") if manifest else "",
                "parts": [] if manifest else [asdict(part) for part in parts.standing(folder)],
            }
        )
    return rows


def examples(
    run: Path,
    what: str,
    count: int,
    near: float | None = None,
    grep: str | None = None,
    like: str | None = None,
) -> list[dict[str, Any]]:
    """Up to `count` examples: a title and texts by name, each a list of (part, mark), mark 1 for
    what d1 holds too and 2 for what stands elsewhere in D_pretrain.

    Pairs with `near` are those of the nearest similarity. With `grep`, a regular expression, only
    documents, samples and reasons that it is found in, and pairs with such a document; `like` takes
    what is nearest to a text by the run's own embedding, of pairs by the nearer of both. Raises
    ConfigError for a pattern that is none, or takes too long, and where nothing can embed the text.
    """
    if near is not None and like is not None:
        raise ConfigError("show: --near and --like are two orders; choose one")
    corpus = Corpus.open(_need(run, "corpus"))
    is_wanted = _matcher(grep)
    if what == "quarantine":
        if like is not None:
            raise ConfigError("show: --like is about texts; of the quarantine, use --grep")
        rejects = (r for r in corpus.rejects() if is_wanted(r["reason"]))
        return [
            {"title": f"{r['file']} line {r['line']}", "texts": {"reason": [(r["reason"], 0)]}}
            for r in itertools.islice(rejects, count)
        ]
    likeness = None if like is None else _Likeness(run, like)
    if what == "documents":
        found = _documents(corpus, is_wanted, likeness)
    elif what == "pairs":
        pairs = Pairs.load(_need(run, "pair", "related")).only(TRAIN)
        found = _pairs(pairs, corpus, count, near, None if grep is None else is_wanted, likeness)
    else:
        found = _synthetic(run, corpus, count, what == "copies", is_wanted, likeness)
    return list(itertools.islice(found, count))


def alphas(cfg: Config) -> dict[str, Any]:
    """What each alpha would give: `stages.pair.alphas` on a run's corpus and vectors.

    Raises MissingArtifact where they have not been made.
    """
    from synthboot.stages import pair

    embeddings = Embeddings.open(_need(cfg.folder, "embed"))
    corpus = Corpus.open(_need(cfg.folder, "corpus"))
    return pair.alphas(embeddings.pretrain, corpus.pretrain, cfg.pair, cfg.seed)


def analyzed(run: Path) -> dict[str, Any]:
    """The measures of a run's text, and what judges say of it.

    Raises MissingArtifact where it has not been analyzed, or by an older synthboot.
    """
    result = Analysis.open(_need(run, "analyze")).result
    if "judged" not in result:
        raise MissingArtifact(
            f"{run}: was analyzed by an older synthboot; run `synthboot analyze CONFIG` again"
        )
    return result


def compare(runs: list[Path]) -> dict[str, Any]:
    """The evaluated scores of several runs, and every setting in which they differ."""
    scores, settings = {}, {}
    for run in runs:
        evaluation = Evaluation.open(_need(run, "evaluate"))
        scores[str(run)] = evaluation.arms
        for task, results in evaluation.result["questions"].items():
            for arm, answers in results["groups"]["all"].items():
                scores[str(run)][arm].setdefault("questions", {})[task] = answers
        manifest = store.read_manifest(_need(run, "report"))
        settings[str(run)] = manifest.reads if manifest else {}
    keys = sorted(set().union(*settings.values()))
    values = {key: [s.get(key, default(key)) for s in settings.values()] for key in keys}
    differences = {k: v for k, v in values.items() if any(x != v[0] for x in v) and k != "name"}
    return {"scores": scores, "differences": differences}


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
        manifest = store.read_manifest(folder)
        assert manifest is not None  # it is needed
        settings = {}
        for key, value in manifest.reads.items():
            section, _, name = key.partition(".")
            if section == "embed" and name in Embed.model_fields:
                settings[name] = value
        cfg = Embed.model_validate(settings)
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
        blocks = range(0, len(vectors), _BLOCK_DOCS)
        # a block at a time, since numpy makes all of them float32 first
        similar = [vectors[at : at + _BLOCK_DOCS].astype(np.float32) @ self.vector for at in blocks]
        return np.concatenate(similar)

    def nearest(self, rows: Iterable[Sample], count: int) -> list[tuple[float, Sample]]:
        """The `count` nearest of these samples, nearest first; as many are held as are wanted."""
        scored = heapq.nlargest(count, self._scored(rows), key=lambda row: row[0])
        return [(similarity, row) for similarity, row in scored]

    def _scored(self, rows: Iterable[Sample]) -> Iterator[tuple[float, Sample]]:
        rows = iter(rows)
        while batch := list(itertools.islice(rows, _BATCH_DOCS)):
            vectors = self.embedder([row.text for row in batch])
            yield from zip((vectors @ self.vector).tolist(), batch, strict=True)


def _documents(
    corpus: Corpus, is_wanted: Callable[[str], bool], likeness: _Likeness | None
) -> Iterator[dict[str, Any]]:
    """The documents of D_pretrain, in order, or nearest first."""
    tokens = corpus.pretrain
    order: Iterable[int] = range(len(tokens))
    similar = None
    if likeness is not None:
        similar = likeness.of_documents()
        order = np.argsort(-similar, kind="stable").tolist()
    for doc in order:
        text = corpus.tokenizer.decode(tokens[doc][:-1])
        if is_wanted(text):
            near = "" if similar is None else f", similarity {similar[doc]:.3f}"
            title = f"document {doc}, {_id(corpus, doc)}{near}"
            yield {"title": title, "texts": {"text": [(text, 0)]}}


def _id(corpus: Corpus, doc: int) -> str:
    """The id of a document of D_pretrain, from its shard."""
    first_docs = corpus.pool.first_docs
    shard = int(np.searchsorted(first_docs, doc, side="right")) - 1
    table = store.read_table(corpus.shards("pool").path(shard) / DOCUMENTS, ["id"])
    return str(table["id"][doc - int(first_docs[shard])])


def _pairs(
    pairs: Pairs,
    corpus: Corpus,
    count: int,
    near: float | None,
    is_wanted: Callable[[str], bool] | None,
    likeness: _Likeness | None,
) -> Iterator[dict[str, Any]]:
    """Pairs, spread evenly over all similarities unless they are searched or ordered."""
    from synthboot.stages import analyze

    tokens = corpus.pretrain

    # a document is in many pairs
    @functools.cache
    def has_it(doc: int) -> bool:
        return is_wanted is None or is_wanted(corpus.tokenizer.decode(tokens[doc][:-1]))

    if near is not None:
        order = np.argsort(np.abs(pairs.similarity - near), kind="stable")
    elif likeness is not None:
        similar = likeness.of_documents()
        nearer = np.maximum(similar[pairs.d1], similar[pairs.d2])
        order = np.argsort(-nearer, kind="stable")
    elif is_wanted is not None:
        order = np.arange(len(pairs))
    else:
        order = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)
    for number in order.tolist():
        if has_it(int(pairs.d1[number])) or has_it(int(pairs.d2[number])):
            pair = analyze.shown(pairs, number, corpus.tokenizer, tokens, _COPY)
            texts = {"d1": [(pair["d1"], 0)], "d2": pair["d2"]}
            yield {"title": f"similarity {pair['similarity']:.3f}", "texts": texts}


def _synthetic(
    run: Path,
    corpus: Corpus,
    count: int,
    copies: bool,
    is_wanted: Callable[[str], bool],
    likeness: _Likeness | None,
) -> Iterator[dict[str, Any]]:
    """Samples from related documents, in order, or nearest first."""
    from synthboot.stages import analyze

    tokens = corpus.pretrain
    folder = _need(run, "synthesize", "related")
    made = store.read_manifest(folder)
    external = made.counts.get("external") if made else None
    by = f", external ({external})" if external else ""

    def copied(row: Sample) -> np.ndarray:
        [mask] = analyze.d1_masks([row.tokens], [tokens[row.d1][:-1]], _COPY)
        return mask

    rows = (row for row in Synthetic.open(folder) if is_wanted(row.text))
    if copies:
        rows = (row for row in rows if copied(row).any())
    similar: Iterable[tuple[float | None, Sample]] = ((None, row) for row in rows)
    if likeness is not None:
        similar = likeness.nearest(rows, count)
    for similarity, row in similar:
        near = "" if similarity is None else f", similarity {similarity:.3f}"
        mean = f"mean log-probability {row.mean_logprob:.2f}"
        marks = copied(row).astype(int)
        texts = {
            "d1": [(corpus.tokenizer.decode(tokens[row.d1][:-1]), 0)],
            "sampled d2": analyze.segments(corpus.tokenizer, row.tokens, marks),
        }
        title = f"d1 {row.d1}, sample {row.sample}, {mean}{near}{by}"
        yield {"title": title, "texts": texts}


def _artifacts(run: Path) -> list[Path]:
    names = {folder_of(run, stage).name for stage in STAGES}
    folders = sorted(p for p in run.iterdir() if p.name in names) if run.is_dir() else []
    if not folders:
        raise MissingArtifact(f"{run}: no run folder; `synthboot run CONFIG` makes one")
    records = (store.MANIFEST, store.PROGRESS)
    files = (file for folder in folders for name in records for file in folder.rglob(name))
    return sorted({file.parent for file in files})


def _need(run: Path, stage: str, variant: str = "") -> Path:
    folder = folder_of(run, stage, variant)
    if store.read_manifest(folder) is None:
        raise MissingArtifact(
            f"{run}: {stage} has not been made yet; run `synthboot {stage} CONFIG`"
        )
    return folder
