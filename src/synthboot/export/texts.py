"""Text as Parquet files that `datasets` reads: S_pretrain with where it came from, and real text.

A thousand documents are in memory at a time, however many there are; the ids and titles of
D_pretrain, which synthetic documents ask for in random order, lie in a file that is mapped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthboot.artifacts.corpus import PRETRAIN, Corpus
from synthboot.artifacts.synthetic import SAMPLED, Synthetic
from synthboot.data.disk import remove
from synthboot.data.documents import Document
from synthboot.export.finished import Finished, Made
from synthboot.recipes import is_filter
from synthboot.stages.pretrain import real_docs
from synthboot.steps.context import conditional

_BATCH_DOCS = 1_024
_BATCH_CHARS = 1 << 24
"""Text that is held at once; long documents come in smaller batches."""
_FILE_CHARS = 1 << 28
"""Text of one Parquet file, about; the next batch opens another."""

_SYNTHETIC = pa.schema(
    {
        "text": pa.string(),
        "seed_doc": pa.int64(),
        "seed_id": pa.string(),
        "seed_title": pa.string(),
        "sample": pa.int64(),
        "finish": pa.string(),
        "mean_logprob": pa.float64(),
        "tokens": pa.int64(),
        "kind": pa.string(),
        "synthesizer": pa.string(),
        "external": pa.string(),
        "run": pa.string(),
        "fingerprint": pa.string(),
    }
)
_REAL = pa.schema({"id": pa.string(), "text": pa.string(), "metadata": pa.string()})

SYNTHETIC_COLUMNS: Mapping[str, str] = {
    "text": "what was written",
    "seed_doc": "number in D_pretrain of the document that it was written from; of several, the "
    "nearest to it; empty where it was written from none",
    "seed_id": "that document's id",
    "seed_title": "that document's title, where its metadata have one",
    "sample": "how many samples of this document came before it",
    "finish": "why it ended: `end` by itself, `length` cut off",
    "mean_logprob": "mean log-probability of its tokens, by the model that wrote it",
    "tokens": "its length in tokens of the arms",
    "kind": "what it is: `related`, `random_pairs`, `scratch`, `unconditional`, by round, seed "
    "and filter",
    "synthesizer": "the artifact of the model that wrote it",
    "external": "the model from outside the corpus that it was tuned from, if it was",
    "run": "the run",
    "fingerprint": "the fingerprint of the artifact that holds it",
}
"""The columns of synthetic text, in words."""
REAL_COLUMNS: Mapping[str, str] = {
    "id": "the document's id",
    "text": "the document as it was read",
    "metadata": "its other fields, as JSON",
}
"""The columns of real text, in words."""


def synthetic(run: Finished, arm: str | None, folder: Path) -> dict[str, dict[str, int]]:
    """Write each S_pretrain (that of one arm, if it is named) to a folder by its kind.

    Returns the documents and tokens of each. Raises ConfigError where there is none, and
    MissingArtifact where one is not finished.
    """
    units = [run.made(name) for name in run.written(arm)]
    mapped = folder / "seeds.arrow"
    _write_seeds(run.corpus, mapped)
    seeds = _Seeds(mapped)

    parts = {}
    for made in units:
        texts = Synthetic.open(made.folder)
        place = folder / made.unit.variant
        docs = _write(_synthetic_rows(run, made, texts, seeds), _SYNTHETIC, place)
        parts[made.unit.variant] = {"documents": docs, "tokens": texts.tokens.num_tokens}
    remove(mapped)
    return parts


def real(run: Finished, arm: str | None, folder: Path) -> dict[str, dict[str, int]]:
    """Write D_pretrain (or the real text of one arm) as the split `train`, and the validation and
    test sets.

    Returns the documents and tokens of each.
    """
    corpus = run.corpus
    train = corpus.pretrain_docs
    if arm is not None:
        [name] = run.arms(arm)
        train = real_docs(run.cfg.arms[name], name, corpus.pool, train)

    splits = {
        "train": ("pool", corpus.pool.head(train)),
        "validation": ("validation", corpus.validation),
        "test": ("test", corpus.test),
    }
    parts = {}
    for split, (name, tokens) in splits.items():
        rows = map(_real_row, islice(corpus.texts(name), len(tokens)))
        docs = _write(rows, _REAL, folder / split)
        parts[split] = {"documents": docs, "tokens": tokens.num_tokens}
    return parts


def _synthetic_rows(
    run: Finished,
    made: Made,
    texts: Synthetic,
    seeds: _Seeds,
) -> Iterator[dict[str, Any]]:
    """The rows of one S_pretrain, in the order in which it was sampled."""
    unit = made.unit
    # of what a filter has left, who wrote what it chose from
    wrote = run.plan[unit.parents[SAMPLED]] if is_filter(unit) else unit
    of_all = {
        "kind": unit.variant,
        "synthesizer": wrote.parents["synthesizer"],
        "external": made.manifest.counts.get("external"),
        "run": run.cfg.name,
        "fingerprint": made.manifest.fingerprint,
    }
    has_seed = conditional(unit.variant)
    for row in texts:
        seed = {"seed_doc": row.d1, **seeds[row.d1]} if has_seed else {}
        yield {
            "text": row.text,
            "sample": row.sample,
            "finish": row.finish,
            "mean_logprob": row.mean_logprob,
            "tokens": len(row.tokens),
            **seed,
            **of_all,
        }


def _real_row(document: Document) -> dict[str, str]:
    metadata = json.dumps(document.metadata, ensure_ascii=False, allow_nan=False)
    return {"id": document.id, "text": document.text, "metadata": metadata}


def _write(rows: Iterator[dict[str, Any]], schema: pa.Schema, folder: Path) -> int:
    """Write rows as `NNNNN.parquet`, and return how many there are."""
    folder.mkdir()
    docs = 0
    files = 0
    room = 0
    with ExitStack() as opened:
        writer = None
        for batch in _batches(rows):
            if writer is None or room <= 0:
                opened.close()  # the file before it is whole
                path = folder / f"{files:05d}.parquet"
                writer = opened.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
                files += 1
                room = _FILE_CHARS
            writer.write_table(pa.Table.from_pylist(batch, schema))
            docs += len(batch)
            room -= sum(len(row["text"]) for row in batch)
        if writer is None:  # a set without documents is still a set
            pq.write_table(schema.empty_table(), folder / "00000.parquet")
    return docs


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch = []
    chars = 0
    for row in rows:
        batch.append(row)
        chars += len(row["text"])
        if len(batch) == _BATCH_DOCS or chars >= _BATCH_CHARS:
            yield batch
            batch = []
            chars = 0
    if batch:
        yield batch


def _write_seeds(corpus: Corpus, path: Path) -> None:
    """Write id and title of every document of D_pretrain, `_BATCH_DOCS` to a batch."""
    schema = pa.schema({"seed_id": pa.string(), "seed_title": pa.string()})
    texts = corpus.texts(PRETRAIN)
    rows = ({"seed_id": doc.id, "seed_title": _title(doc)} for doc in texts)  # not the texts too
    with pa.ipc.new_file(str(path), schema) as file:
        while batch := list(islice(rows, _BATCH_DOCS)):
            file.write_batch(pa.RecordBatch.from_pylist(batch, schema))


def _title(document: Document) -> str | None:
    title = document.metadata.get("title")
    return title if isinstance(title, str) else None


class _Seeds:
    """What `_write_seeds` wrote, by the document's number."""

    def __init__(self, path: Path) -> None:
        self.file = pa.ipc.open_file(pa.memory_map(str(path)))

    def __getitem__(self, doc: int) -> dict[str, str | None]:
        batch, row = divmod(doc, _BATCH_DOCS)
        record: dict[str, str | None]
        [record] = self.file.get_batch(batch).slice(row, 1).to_pylist()
        return record
