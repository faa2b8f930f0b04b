"""Read, clean, split and tokenize the user's text: files -> validation, test, pool, and replay where there is such text.

1. ingest: records in file order become spooled documents; bad ones are quarantined with file, line and reason,
2. drop exact duplicates, remove or flag near-duplicates (MinHash),
3. order everything by a hash of the id, groups of near-duplicates together: the first groups that have `validation_docs`
   are the validation set, then those that have `test_docs` the test set, the rest the pool, so that D_pretrain and the
   oracle's text are nested heads of one pool and no held-out document has a near-copy in training; with `split_field`
   documents say themselves where they go,
4. train the tokenizer on D_pretrain alone and write documents and tokens in shards.

Memory is one shard of text plus about 600 bytes a document (signatures are memory-mapped).
Source: arXiv:2509.15248 takes a fixed subset of a cleaned pool; the paper does not say how its sets were kept apart.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from synthboot import config
from synthboot.data import documents, ngrams, tokenizer, tokens
from synthboot.data.artifacts import WORK, Progress, Shards, silent
from synthboot.data.disk import write_json
from synthboot.data.files import counted
from synthboot.data.spool import Ingested, Spool, ingest
from synthboot.errors import BudgetError, DataError

_SETS = ("validation", "test", "pool", "replay")
_SPLITS = {"validation": 0, "test": 1, "pretrain": 2, "oracle": 3}
_REPLAY = len(_SPLITS)


@dataclass(frozen=True)
class Corpus:
    """What the corpus holds. records = documents + quarantined + dropped, summed over all of `dropped`. `unknown_tokens` stand
    for text that the tokenizer has no token for, which is lost. `account` says in one line what was not kept as it came."""

    records: int
    quarantined: int
    reasons: dict[str, int]
    renamed_ids: int
    ignored_files: dict[str, int]
    ignored_values: dict[str, int]
    dropped: dict[str, int]
    flagged_docs: int
    documents: dict[str, int]
    tokens: dict[str, int]
    pretrain_docs: int
    pretrain_tokens: int
    vocab_size: int
    tokenizer_docs: int
    unknown_tokens: int
    account: str


def corpus(
    cfg: config.Corpus,
    unique_tokens: int | Literal["all"],
    folder: Path,
    tokenizer_name: str | None = None,
    progress: Progress = silent,
    expected: Mapping[str, Sequence[str]] | None = None,
) -> Corpus:
    """The corpus written to `folder`; work already there is kept.

    `tokenizer_name` overrides `cfg.tokenizer`; `expected` has the identities of `source` and `replay` that the artifact is
    recorded under. Raises DataError for unreadable files, for files that are not what was expected, and for too many bad
    records, BudgetError where the pool holds fewer than `unique_tokens`.
    """
    ingested = ingest(cfg, folder, progress, expected or {})
    spool = Spool(Shards(folder / WORK / "ingest"))
    marks = _marks(spool, cfg)
    kept, group, dropped = _deduplicate(spool, marks, cfg, progress)
    kept, replay = kept & (marks != _REPLAY), np.flatnonzero(kept & (marks == _REPLAY))
    order, sets, oracle_docs = (
        _as_marked(spool, kept, marks) if cfg.split_field else (*_split(spool, kept, group, cfg), 0)
    )
    if cfg.replay is not None and not len(replay):
        raise DataError(
            f"corpus.replay: {cfg.replay}: nothing is left of it beside the corpus; dropped: {dropped}"
        )
    order, sets = np.concatenate((order, replay)), np.concatenate((sets, np.full(len(replay), 3)))
    pool = order[sets == 2]
    open_pool = pool[: len(pool) - oracle_docs]
    fitted, fitted_docs, pretrain_docs = _fit_tokenizer(
        spool, open_pool, unique_tokens, cfg, tokenizer_name
    )
    fitted.save(folder / "tokenizer")
    sizes = np.bincount(group[kept], minlength=int(group.max(initial=0)) + 1)
    flagged = sizes[group] > 1
    lengths: dict[str, int] = {}
    names = _SETS if cfg.replay is not None else _SETS[:3]
    for number, name in enumerate(names):
        chosen = order[sets == number]
        lengths[name] = _write_set(
            Shards(folder / name), spool, chosen, flagged, fitted, cfg.shard_docs, progress
        )
    head = tokens.Tokens.open(Shards(folder / "pool")).head(pretrain_docs)
    unknown = _unknown(folder, names)
    result = Corpus(
        **asdict(ingested),
        renamed_ids=len(spool.renamed),
        dropped=dropped,
        account=_account(ingested, len(spool.renamed), dropped, unknown),
        flagged_docs=int(flagged[kept].sum()) if cfg.near_duplicates == "flag" else 0,
        documents={name: int((sets == number).sum()) for number, name in enumerate(names)},
        tokens=lengths,
        pretrain_docs=pretrain_docs,
        pretrain_tokens=head.num_tokens,
        vocab_size=fitted.vocab_size,
        tokenizer_docs=fitted_docs,
        unknown_tokens=unknown,
    )
    total = sum(lengths.values())
    if result.unknown_tokens > total / 2:
        raise DataError(
            f"corpus.tokenizer: {tokenizer_name or cfg.tokenizer}: {result.unknown_tokens:,} of {total:,} tokens stand for "
            f"text that it does not know; choose another, or `train`"
        )
    write_json(folder / "corpus.json", asdict(result))
    return result


def _account(found: Ingested, renamed: int, dropped: dict[str, int], unknown: int) -> str:
    """What was not kept as it came, and why, in one line."""
    kept = found.records - found.quarantined - sum(dropped.values())
    why = f" ({counted(found.reasons)})" if found.quarantined else ""
    said = [f"{found.records:,} records: {kept:,} kept", f"{found.quarantined:,} quarantined{why}"]
    said += [
        f"{count:,} x {what.replace('_', ' ')} dropped" for what, count in dropped.items() if count
    ]
    if renamed:
        said.append(f"{renamed:,} x repeated id of another text renamed")
    for what, ignored in (("files", found.ignored_files), ("values", found.ignored_values)):
        if ignored:
            said.append(f"{sum(ignored.values()):,} {what} ignored ({counted(ignored)})")
    if unknown:
        said.append(f"{unknown:,} tokens stand for text that the tokenizer does not know")
    return ", ".join(said)


def _unknown(folder: Path, names: Sequence[str]) -> int:
    """Unknown tokens in these sets."""
    sets = [Shards(folder / name) for name in names]
    return sum(
        shards.counts(number)["unknown"] for shards in sets for number, _ in enumerate(shards)
    )


def read_texts(folder: Path, name: str, docs: int | None = None) -> Iterator[documents.Document]:
    """The first `docs` documents of a set, in order, from a corpus folder."""
    remaining = docs if docs is not None else 1 << 62
    for shard in Shards(folder / name):
        for batch in pq.ParquetFile(shard / "documents.parquet").iter_batches(batch_size=1_024):
            for row in batch.to_pylist()[:remaining]:
                yield documents.Document(row["id"], row["text"], json.loads(row["metadata"]))
            remaining -= min(remaining, len(batch))
        if not remaining:
            return


def _deduplicate(
    spool: Spool, marks: Int64[np.ndarray, " doc"], cfg: config.Corpus, progress: Progress
) -> tuple[np.ndarray, Int64[np.ndarray, " doc"], dict[str, int]]:
    """Which documents stay, the group of each, and how many went for what reason. Of equals the least id hash stays, or
    with marks a held-out one, then one of D_pretrain."""
    by_id = np.lexsort((spool.ids, marks))
    kept = np.zeros(len(spool), bool)
    _, unique = np.unique(spool.digests[by_id], axis=0, return_index=True)
    kept[by_id[unique]] = True
    dropped = {"exact_duplicate": int((~kept).sum())}
    group = np.arange(len(spool), dtype=np.int64)
    if cfg.near_duplicates != "off":
        progress(0.1, "looking for near-duplicates")
        group = ngrams.near_duplicate_groups(spool.signatures(), spool, cfg.near_duplicate_jaccard)
        remaining = by_id[kept[by_id]]
        first = np.unique(group[remaining], return_index=True)[1]
        alone = np.isin(np.arange(len(remaining)), first)
        if (
            cfg.near_duplicates == "flag"
        ):  # text to replay never stays beside what it resembles, which may be held out
            alone |= marks[remaining] != _REPLAY
        dropped["near_duplicate"] = int((~alone).sum())
        kept[:] = False
        kept[remaining[alone]] = True
    return kept, group, dropped


def _split(
    spool: Spool, kept: np.ndarray, group: Int64[np.ndarray, " doc"], cfg: config.Corpus
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " kept"]]:
    """Kept documents, groups in the order of a hash, and the set (0 validation, 1 test, 2 pool) of each. A set takes the
    first groups that fill it; one that is too large for what is left comes later. Raises BudgetError where none fill it."""
    alive = np.flatnonzero(kept)
    wanted = {"validation_docs": cfg.validation_docs, "test_docs": cfg.test_docs}
    last = sum(wanted.values())
    if len(alive) <= last:
        raise BudgetError(
            f"corpus: {len(alive):,} documents are left after cleaning, and {last:,} are asked for as validation_docs "
            f"and test_docs; lower these or add text"
        )
    key = np.zeros(
        int(group.max(initial=0)) + 1, np.uint64
    )  # a sum of hashes favours no size, as the least of them would
    np.add.at(key, group[~spool.replay], spool.ids[~spool.replay])
    order = alive[np.lexsort((spool.ids[alive], group[alive], key[group[alive]]))]
    starts = np.flatnonzero(np.concatenate(([True], np.diff(group[order]) != 0)))
    sizes = np.diff(np.append(starts, len(order)))
    place = np.full(len(sizes), len(wanted))
    for number, (name, docs) in enumerate(wanted.items()):
        free = np.flatnonzero(place == len(wanted))
        chosen = _filling(sizes[free].tolist(), docs)
        if chosen is None:
            raise BudgetError(
                f"corpus.{name}: no groups of near-duplicates, which stay together, have {docs:,} documents in all; the "
                f"largest of {len(sizes):,} has {sizes.max():,}; ask for another number, or --set corpus.near_duplicates=remove"
            )
        place[free[chosen]] = number
    sets = np.repeat(place, sizes)
    by_set = np.argsort(sets, kind="stable")
    return order[by_set], sets[by_set]


def _filling(sizes: Sequence[int], wanted: int) -> list[int] | None:
    """Places of groups that have `wanted` documents in all, the first ones that do; None where there are none."""
    reachable = [1]  # bit n: the groups from here to the last can have n documents in all
    full = (1 << (wanted + 1)) - 1
    for size in reversed(sizes):
        more = reachable[-1] | (reachable[-1] << size) & full if size <= wanted else reachable[-1]
        reachable.append(reachable[-1] if more == reachable[-1] else more)
    if not reachable.pop() >> wanted & 1:
        return None
    chosen = []
    for place, (size, after) in enumerate(zip(sizes, reversed(reachable), strict=True)):
        if size <= wanted and after >> (wanted - size) & 1:
            chosen.append(place)
            wanted -= size
    return chosen


def _marks(spool: Spool, cfg: config.Corpus) -> Int64[np.ndarray, " doc"]:
    """Where each document says it goes, as `_SPLITS` counts, 0 for all without `split_field`; text to replay is `_REPLAY`."""
    if cfg.split_field is None:
        return np.where(spool.replay, _REPLAY, 0)
    said = [json.loads(spool.row(i, "metadata")).get(cfg.split_field) for i in range(len(spool))]
    for number, name in enumerate(said):
        if name not in _SPLITS and not spool.replay[number]:
            raise DataError(
                f"corpus.split_field: document {spool.row(number, 'id')!r} has {cfg.split_field} {name!r}; "
                f"{', '.join(_SPLITS)} are known"
            )
    return np.where(
        spool.replay, _REPLAY, np.array([_SPLITS.get(str(name), 0) for name in said], np.int64)
    )


def _as_marked(
    spool: Spool, kept: np.ndarray, marks: Int64[np.ndarray, " doc"]
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " kept"], int]:
    """Kept documents by hash of their id, the set of each as its mark says, and how many of the pool, which come last, are
    for oracles alone. Raises DataError where a set is empty."""
    alive = np.flatnonzero(kept)
    for name in ("validation", "test", "pretrain"):
        if not (marks[alive] == _SPLITS[name]).any():
            raise DataError(f"corpus.split_field: no document is marked {name}")
    order = alive[np.lexsort((spool.ids[alive], marks[alive]))]
    return order, np.minimum(marks[order], 2), int((marks[order] == _SPLITS["oracle"]).sum())


def _fit_tokenizer(
    spool: Spool,
    pool: Int64[np.ndarray, " doc"],
    unique_tokens: int | Literal["all"],
    cfg: config.Corpus,
    name: str | None,
) -> tuple[tokenizer.Tokenizer, int, int]:
    """The tokenizer, the documents it saw, and the size of D_pretrain in documents.

    How many documents make `unique_tokens` depends on the tokenizer, and the tokenizer may see D_pretrain alone: fit on
    a first guess, count, and fit again until the documents seen are a head of D_pretrain of at least 90 %.
    """
    name = name or cfg.tokenizer
    if name != "train":
        fitted = tokenizer.from_hugging_face(name)
        return (
            fitted,
            0,
            len(pool) if unique_tokens == "all" else _docs_for(spool, pool, unique_tokens, fitted),
        )
    size = np.cumsum(spool.bytes[pool].astype(np.int64))
    if unique_tokens == "all":
        docs = max(1, min(len(pool), int(np.searchsorted(size, cfg.tokenizer_bytes)) + 1))
        return tokenizer.train((spool[i] for i in pool[:docs]), cfg.vocab_size), docs, len(pool)
    docs = int(np.searchsorted(size, 3.5 * unique_tokens)) + 1
    for attempt in itertools.count():
        docs = max(1, min(docs, int(np.searchsorted(size, cfg.tokenizer_bytes)) + 1, len(pool)))
        fitted = tokenizer.train((spool[i] for i in pool[:docs]), cfg.vocab_size)
        cut = _docs_for(spool, pool, unique_tokens, fitted)
        enough = docs >= 0.9 * cut or size[docs - 1] >= cfg.tokenizer_bytes
        if docs <= cut and (
            enough or attempt >= 4
        ):  # a handful of documents may never settle: fewer is allowed
            return fitted, docs, cut
        docs = int(0.97 * cut) if docs <= cut else min(docs - 1, int(0.97 * cut))
    raise AssertionError("docs falls until it is at most cut, which is at least 1")


def _docs_for(
    spool: Spool, pool: Int64[np.ndarray, " doc"], unique_tokens: int, fitted: tokenizer.Tokenizer
) -> int:
    """How many documents from the head of the pool hold `unique_tokens`."""
    total = 0
    for start in range(0, len(pool), 1_024):
        lengths = np.cumsum(
            [len(d) for d in fitted.documents([spool[i] for i in pool[start : start + 1_024]])]
        )
        if total + lengths[-1] >= unique_tokens:
            return start + int(np.searchsorted(lengths, unique_tokens - total)) + 1
        total += int(lengths[-1])
    raise BudgetError(
        f"budget.unique_tokens: {unique_tokens:,} asked for, the corpus has {total:,} after cleaning and holding out "
        f"{len(spool) - len(pool):,} documents; lower it or add text"
    )


def _write_set(
    shards: Shards,
    spool: Spool,
    chosen: Int64[np.ndarray, " doc"],
    flagged: np.ndarray,
    fitted: tokenizer.Tokenizer,
    shard_docs: int,
    progress: Progress,
) -> int:
    """Write the chosen documents in order, text and tokens side by side; returns the tokens written."""

    def write(rows: Int64[np.ndarray, " doc"], out: Path) -> dict[str, Any]:
        texts = [spool[i] for i in rows]
        columns = {name: [spool.row(int(i), name) for i in rows] for name in ("id", "metadata")}
        table = pa.table({**columns, "text": texts, "near_duplicate": flagged[rows].tolist()})
        pq.write_table(table, out / "documents.parquet", compression="zstd")
        ids = fitted.documents(texts)
        unknown = 0 if fitted.unknown is None else sum(found.count(fitted.unknown) for found in ids)
        return {
            "docs": len(rows),
            "tokens": tokens.write(out, ids, fitted.vocab_size),
            "unknown": unknown,
        }

    total = 0
    starts = range(0, max(1, len(chosen)), shard_docs)
    for index, start in enumerate(starts):
        rows = chosen[start : start + shard_docs]
        total += shards.write(index, partial(write, rows))["tokens"]
        progress((index + 1) / len(starts), f"{shards.folder.name}: {total:,} tokens")
    shards.close(len(starts))
    return total
