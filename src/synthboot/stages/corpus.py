"""Read, clean, split and tokenize the user's text: files -> validation, test, pool, and replay
where there is such text.

1. ingest: records in file order become spooled documents; bad ones are quarantined with file, line
   and reason,
2. drop exact duplicates, remove or flag near-duplicates (MinHash),
3. order everything by a hash of the id, groups of near-duplicates together: the first groups that
   have `validation_docs` are the validation set, then those that have `test_docs` the test set, the
   rest the pool, so that D_pretrain and the oracle's text are nested heads of one pool and no
   held-out document has a near-copy in training; with `split_field` documents say themselves where
   they go,
4. train the tokenizer on D_pretrain alone, plant the canaries in it, if any, and write documents
   and tokens in shards.

Memory is one shard of text as it is read, two more for each worker, and about 100 bytes a document
(texts and signatures are memory-mapped). A worker that writes holds 32 MB of text, and the tokens
of 2 MB, which take forty times as much.
Source: arXiv:2509.15248 takes a fixed subset of a cleaned pool; the paper does not say how its sets
were kept apart.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64

from synthboot import config
from synthboot.artifacts.corpus import DOCUMENTS, Corpus, Counts
from synthboot.artifacts.spool import Ingested, Spool, Texts, ingest
from synthboot.artifacts.store import WORK, Progress, Shards, silent, within
from synthboot.data import canaries, near_duplicates, tokenizer, tokens
from synthboot.data.files import counted
from synthboot.errors import BudgetError, DataError
from synthboot.pool import imap
from synthboot.rng import rng

_SETS = ("validation", "test", "pool")
_SPLITS = {"validation": 0, "test": 1, "pretrain": 2, "oracle": 3}
_REPLAY = len(_SPLITS)
_Shard = tuple[int, np.ndarray, np.ndarray]
"""A shard of a set: its number, its documents' numbers, and whether each was flagged."""

_COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("metadata", pa.string()),
        ("text", pa.string()),
        ("near_duplicate", pa.bool_()),
    ]
)
WRITTEN_AT_ONCE = 32 << 20  # characters of text that are held to be written
TOKENIZED_AT_ONCE = 2 << 20  # those that are tokens at a time, in lists: forty bytes each

_READ = 0.2  # share of the stage before anything is written: reading, comparing, a tokenizer
_BYTES_PER_TOKEN = 3.5  # a first guess at what a trained tokenizer makes of text


def corpus(
    cfg: config.Corpus,
    unique_tokens: int | Literal["all"],
    folder: Path,
    tokenizer_name: str | None = None,
    progress: Progress = silent,
    expected: Mapping[str, Sequence[str]] | None = None,
    workers: int = 1,
) -> Counts:
    """The corpus written to `folder`; work already there is kept.

    `tokenizer_name` overrides `cfg.tokenizer`; `expected` has the identities of `source` and
    `replay` that the artifact is recorded under; `workers` processes read and write.

    Raises DataError for unreadable files, for files that are not what was expected, and for too
    many bad records, BudgetError where the pool holds fewer than `unique_tokens`.
    """
    ingested = ingest(cfg, folder, progress, expected or {}, workers)
    spool = Spool(Shards(folder / WORK / "ingest"))
    splits = _named_splits(spool, cfg)
    kept, group, dropped = _deduplicate(spool, splits, cfg, folder / WORK, progress)
    replay = np.flatnonzero(kept & (splits == _REPLAY))
    if cfg.replay is not None and not len(replay):
        raise DataError(
            f"corpus.replay: {cfg.replay}: nothing is left of it beside the corpus; "
            f"dropped: {dropped}"
        )

    kept &= splits != _REPLAY
    by_set, oracle_docs = _sets(spool, kept, group, splits, cfg)
    # text for oracles alone lies at the end of the pool, and the tokenizer may not see it
    open_pool = by_set["pool"][: len(by_set["pool"]) - oracle_docs]
    fitted, tokenizer_docs, pretrain_docs = _fit_tokenizer(
        spool, open_pool, unique_tokens, cfg, tokenizer_name
    )
    out = Corpus.open(folder)
    fitted.save(out.tokenizer_folder)
    if cfg.canaries.count:
        pretrain_docs += _plant(spool, by_set, pretrain_docs, cfg.canaries, out)

    if cfg.replay is not None:
        by_set["replay"] = replay
    # counted after what was dropped: a document whose copies are gone is not flagged
    group_sizes = np.bincount(group[kept], minlength=int(group.max(initial=0)) + 1)
    flagged = np.append(group_sizes[group] > 1, np.zeros(len(spool.planted), bool))
    set_tokens = _write_sets(
        out=out,
        spool=spool,
        by_set=by_set,
        flagged=flagged,
        shard_docs=cfg.shard_docs,
        progress=progress,
        workers=workers,
    )
    unknown = _unknown(out, list(by_set))
    _check_unknown(unknown, sum(set_tokens.values()), tokenizer_name or cfg.tokenizer)

    # D_pretrain has no folder of its own: it is the head of the pool
    head = out.pool.head(pretrain_docs)
    result = Counts(
        **asdict(ingested),
        renamed_ids=len(spool.renamed),
        dropped=dropped,
        account=_account(ingested, len(spool.renamed), dropped, unknown, len(spool.planted)),
        flagged_docs=int(flagged[: len(spool)][kept].sum()) if cfg.near_duplicates == "flag" else 0,
        documents={name: len(chosen) for name, chosen in by_set.items()},
        tokens=set_tokens,
        pretrain_docs=pretrain_docs,
        pretrain_tokens=head.num_tokens,
        vocab_size=fitted.vocab_size,
        tokenizer_docs=tokenizer_docs,
        unknown_tokens=unknown,
    )
    out.save_summary(result)
    return result


def _sets(
    spool: Spool,
    kept: np.ndarray,
    group: Int64[np.ndarray, " doc"],
    splits: Int64[np.ndarray, " doc"],
    cfg: config.Corpus,
) -> tuple[dict[str, np.ndarray], int]:
    """The documents of validation, test and pool, in order, and how many at the end of the pool are
    for oracles alone."""
    oracle_docs = 0
    if cfg.split_field:
        order, sets, oracle_docs = _by_named_split(spool, kept, splits)
    else:
        order, sets = split(spool, kept, group, cfg)
    return {name: order[sets == number] for number, name in enumerate(_SETS)}, oracle_docs


def _check_unknown(unknown: int, total: int, name: str) -> None:
    """Raise DataError where most of the text would be lost."""
    if unknown > total / 2:
        raise DataError(
            f"corpus.tokenizer: {name}: {unknown:,} of {total:,} tokens stand for text that it "
            f"does not know; choose another, or `train`"
        )


def _account(
    ingested: Ingested,
    renamed: int,
    dropped: dict[str, int],
    unknown: int,
    copies: int,
) -> str:
    """What was not kept as it came, and why, in one line; and what was planted."""
    kept = ingested.records - ingested.quarantined - sum(dropped.values())
    reasons = f" ({counted(ingested.reasons)})" if ingested.quarantined else ""
    parts = [
        f"{ingested.records:,} records: {kept:,} kept",
        f"{ingested.quarantined:,} quarantined{reasons}",
    ]
    for reason, count in dropped.items():
        if count:
            parts.append(f"{count:,} x {reason.replace('_', ' ')} dropped")
    if renamed:
        parts.append(f"{renamed:,} x repeated id of another text renamed")
    for what, ignored in (("files", ingested.ignored_files), ("values", ingested.ignored_values)):
        if ignored:
            parts.append(f"{sum(ignored.values()):,} {what} ignored ({counted(ignored)})")
    if unknown:
        parts.append(f"{unknown:,} tokens stand for text that the tokenizer does not know")
    if copies:
        parts.append(f"{copies:,} copies of canaries planted")
    return ", ".join(parts)


def _plant(
    spool: Spool,
    by_set: dict[str, np.ndarray],
    pretrain_docs: int,
    cfg: config.Canaries,
    out: Corpus,
) -> int:
    """How many copies of canaries are put among the documents of D_pretrain, anywhere.

    Neither these documents nor the tokenizer depend on them: a run with canaries and one without
    read the same text, but for the canaries.
    """
    pool = by_set["pool"]
    drawn = canaries.draw((spool[i] for i in pool[:pretrain_docs]), cfg)
    out.save_canaries(drawn)
    copies = spool.plant(canaries.planted(drawn))
    places = rng(cfg.seed, "corpus.planted").integers(pretrain_docs, size=len(copies))
    by_set["pool"] = np.insert(pool, places, copies)
    return len(copies)


def _unknown(corpus: Corpus, names: Sequence[str]) -> int:
    """Unknown tokens in these sets."""
    total = 0
    for name in names:
        shards = corpus.shards(name)
        for number, _ in enumerate(shards):
            total += shards.counts(number)["unknown"]
    return total


def _deduplicate(
    spool: Spool,
    splits: Int64[np.ndarray, " doc"],
    cfg: config.Corpus,
    work: Path,
    progress: Progress,
) -> tuple[np.ndarray, Int64[np.ndarray, " doc"], dict[str, int]]:
    """Which documents stay, the group of each, and how many went for what reason.

    Of equals the least id hash stays, or with marks a held-out one, then one of D_pretrain. `work`
    has room for the signatures of all.
    """
    # np.unique returns the first of equals, so the order says which of them stays
    by_id = np.lexsort((spool.ids, splits))
    _, first = np.unique(spool.digests[by_id], axis=0, return_index=True)
    kept = np.zeros(len(spool), bool)
    kept[by_id[first]] = True
    dropped = {"exact_duplicate": int((~kept).sum())}
    group = np.arange(len(spool), dtype=np.int64)
    if cfg.near_duplicates == "off":
        return kept, group, dropped

    progress(_READ / 2, "looking for near-duplicates")
    signatures = spool.signatures(work / "signatures.npy")
    group = near_duplicates.groups(signatures, spool, cfg.near_duplicate_jaccard)
    remaining = by_id[kept[by_id]]
    _, first = np.unique(group[remaining], return_index=True)
    stays = np.isin(np.arange(len(remaining)), first)
    if cfg.near_duplicates == "flag":
        # text to replay never stays beside what it resembles, which may be held out
        stays |= splits[remaining] != _REPLAY
        if cfg.split_field is not None:
            # nor does text that is marked as training text
            trains = splits[remaining] >= _SPLITS["pretrain"]
            held_out = group[remaining[~trains]]
            stays &= ~(trains & np.isin(group[remaining], held_out))
    dropped["near_duplicate"] = int((~stays).sum())
    kept[:] = False
    kept[remaining[stays]] = True
    return kept, group, dropped


def split(
    spool: Spool,
    kept: np.ndarray,
    group: Int64[np.ndarray, " doc"],
    cfg: config.Corpus,
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " kept"]]:
    """Kept documents, groups in the order of a hash, and the set (0 validation, 1 test, 2 pool) of
    each.

    A set takes the first groups that fill it; one that is too large for what is left comes later.
    Raises BudgetError where none fill it.
    """
    alive = np.flatnonzero(kept)
    wanted = {"validation_docs": cfg.validation_docs, "test_docs": cfg.test_docs}
    held_out = sum(wanted.values())
    if len(alive) <= held_out:
        raise BudgetError(
            f"corpus: {len(alive):,} documents are left after cleaning, and {held_out:,} are asked "
            f"for as validation_docs and test_docs; lower these or add text"
        )

    # groups by the sum of their documents' hashes, which favours no size, as the least would
    key = np.zeros(int(group.max(initial=0)) + 1, np.uint64)
    np.add.at(key, group[~spool.replay], spool.ids[~spool.replay])
    order = alive[np.lexsort((spool.ids[alive], group[alive], key[group[alive]]))]
    begins = np.concatenate(([True], np.diff(group[order]) != 0))
    sizes = np.diff(np.append(np.flatnonzero(begins), len(order)))  # (group)

    pool = len(wanted)
    set_of_group = np.full(len(sizes), pool)
    for number, (name, docs) in enumerate(wanted.items()):
        free = np.flatnonzero(set_of_group == pool)
        chosen = _filling(sizes[free].tolist(), docs)
        if chosen is None:
            raise BudgetError(
                f"corpus.{name}: no groups of near-duplicates, which stay together, have {docs:,} "
                f"documents in all; the largest of {len(sizes):,} has {sizes.max():,}; "
                f"ask for another number, or --set corpus.near_duplicates=remove"
            )
        set_of_group[free[chosen]] = number
    sets = np.repeat(set_of_group, sizes)  # (group) -> (doc)
    by_set = np.argsort(sets, kind="stable")
    return order[by_set], sets[by_set]


def _filling(
    sizes: Sequence[int],
    wanted: int,
) -> list[int] | None:
    """Indices of groups that have `wanted` documents in all, the first ones that do, or None.

    A subset-sum from the last group to the first: bit n of `reachable` says that the groups from
    there to the last can have n documents in all.
    """
    nothing = 1  # bit 0: no group, no documents
    reachable = [nothing]
    mask = (1 << (wanted + 1)) - 1
    for size in reversed(sizes):
        without = reachable[-1]
        if size <= wanted:
            with_group = without | (without << size) & mask
        else:
            with_group = without
        # the same object where nothing is added: a number of `wanted` bits for each group is much
        reachable.append(without if with_group == without else with_group)

    if not reachable.pop() >> wanted & 1:
        return None
    chosen = []
    for index, (size, after) in enumerate(zip(sizes, reversed(reachable), strict=True)):
        if size <= wanted and after >> (wanted - size) & 1:
            chosen.append(index)
            wanted -= size
    return chosen


def _named_splits(
    spool: Spool,
    cfg: config.Corpus,
) -> Int64[np.ndarray, " doc"]:
    """Where each document says it goes, as `_SPLITS` counts, 0 for all without `split_field`; text
    to replay is `_REPLAY`."""
    if cfg.split_field is None:
        return np.where(spool.replay, _REPLAY, 0)
    splits = np.zeros(len(spool), np.int64)
    for number in range(len(spool)):
        if spool.replay[number]:
            splits[number] = _REPLAY
            continue
        name = json.loads(spool.row(number, "metadata")).get(cfg.split_field)
        if not isinstance(name, str) or name not in _SPLITS:
            raise DataError(
                f"corpus.split_field: document {spool.row(number, 'id')!r} has {cfg.split_field} "
                f"{name!r}; {', '.join(_SPLITS)} are known"
            )
        splits[number] = _SPLITS[name]
    return splits


def _by_named_split(
    spool: Spool, kept: np.ndarray, splits: Int64[np.ndarray, " doc"]
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " kept"], int]:
    """Kept documents by hash of their id, the set of each as its mark says, and how many of the
    pool, which come last, are for oracles alone.

    Raises DataError where a set is empty.
    """
    alive = np.flatnonzero(kept)
    for name in ("validation", "test", "pretrain"):
        if not (splits[alive] == _SPLITS[name]).any():
            raise DataError(f"corpus.split_field: no document is marked {name}")
    order = alive[np.lexsort((spool.ids[alive], splits[alive]))]
    sets = np.minimum(splits[order], _SPLITS["pretrain"])  # what oracles alone read is pool too
    oracle_docs = int((splits[order] == _SPLITS["oracle"]).sum())
    return order, sets, oracle_docs


def _fit_tokenizer(
    spool: Spool,
    pool: Int64[np.ndarray, " doc"],
    unique_tokens: int | Literal["all"],
    cfg: config.Corpus,
    name: str | None,
) -> tuple[tokenizer.Tokenizer, int, int]:
    """The tokenizer, the documents it saw, and the size of D_pretrain in documents.

    How many documents make `unique_tokens` depends on the tokenizer, and the tokenizer may see
    D_pretrain alone: fit on a first guess, count, and fit again until the documents seen are a head
    of D_pretrain of at least 90 %.
    """
    name = name or cfg.tokenizer
    if name != "train":
        fitted = tokenizer.from_hugging_face(name)
        if unique_tokens == "all":
            return fitted, 0, len(pool)
        return fitted, 0, _docs_for(spool, pool, unique_tokens, fitted)

    size = np.cumsum(spool.bytes[pool].astype(np.int64))
    most = max(1, min(len(pool), int(np.searchsorted(size, cfg.tokenizer_bytes)) + 1))
    if unique_tokens == "all":
        return _train(spool, pool[:most], cfg), most, len(pool)

    docs = int(np.searchsorted(size, _BYTES_PER_TOKEN * unique_tokens)) + 1
    for attempt in itertools.count():
        docs = max(1, min(docs, most))
        fitted = _train(spool, pool[:docs], cfg)
        cut = _docs_for(spool, pool, unique_tokens, fitted)
        if docs > cut:  # it saw more than D_pretrain
            docs = min(docs - 1, int(0.97 * cut))
            continue
        enough = docs >= 0.9 * cut or size[docs - 1] >= cfg.tokenizer_bytes
        # a handful of documents may never settle: fewer is allowed
        if enough or attempt >= 4:
            return fitted, docs, cut
        # it saw too little of D_pretrain: fit again, on nearly all of it
        docs = int(0.97 * cut)
    raise AssertionError("docs falls until it is at most cut, which is at least 1")


def _train(
    spool: Spool, docs: Int64[np.ndarray, " doc"], cfg: config.Corpus
) -> tokenizer.Tokenizer:
    return tokenizer.train((spool[i] for i in docs), cfg.vocab_size)


def _docs_for(
    spool: Spool,
    pool: Int64[np.ndarray, " doc"],
    unique_tokens: int,
    fitted: tokenizer.Tokenizer,
) -> int:
    """How many documents from the head of the pool hold `unique_tokens`."""
    total = 0
    docs = 0
    for texts in _by_size((spool[i] for i in pool), TOKENIZED_AT_ONCE):
        running = np.cumsum([len(ids) for ids in fitted.documents(texts)])
        if total + running[-1] >= unique_tokens:
            return docs + int(np.searchsorted(running, unique_tokens - total)) + 1
        total += int(running[-1])
        docs += len(texts)
    raise BudgetError(
        f"budget.unique_tokens: {unique_tokens:,} asked for, the corpus has {total:,} in the "
        f"{len(pool):,} documents that are neither dropped nor held out; lower it or add text"
    )


def _write_sets(
    out: Corpus,
    spool: Spool,
    by_set: Mapping[str, Int64[np.ndarray, " doc"]],
    flagged: np.ndarray,
    shard_docs: int,
    progress: Progress,
    workers: int,
) -> dict[str, int]:
    """Write every set, by name the documents chosen for it; returns the tokens of each."""
    total = sum(map(len, by_set.values()))
    written = 0
    set_tokens = {}
    for name, chosen in by_set.items():
        before = written / total
        written += len(chosen)
        set_tokens[name] = _write_set(
            shards=out.shards(name),
            spool=spool,
            chosen=chosen,
            flagged=flagged,
            tokenizer_folder=out.tokenizer_folder,
            shard_docs=shard_docs,
            progress=within(
                progress, _READ + (1 - _READ) * before, _READ + (1 - _READ) * written / total
            ),
            workers=workers,
        )
    return set_tokens


def _write_set(
    shards: Shards,
    spool: Spool,
    chosen: Int64[np.ndarray, " doc"],
    flagged: np.ndarray,
    tokenizer_folder: Path,
    shard_docs: int,
    progress: Progress,
    workers: int,
) -> int:
    """Write the chosen documents in order, text and tokens side by side; returns the tokens
    written."""
    count = max(1, -(-len(chosen) // shard_docs))  # an empty set has a shard too
    missing = [index for index in range(count) if not shards.done(index)]

    def rows() -> Iterator[_Shard]:
        for index in missing:
            start = index * shard_docs
            of_shard = chosen[start : start + shard_docs]
            yield index, of_shard, flagged[of_shard]

    arguments = (shards.folder, spool.folder, spool.renamed, spool.planted, tokenizer_folder)
    # nobody is started for the one shard of a small set
    for index in imap(_writer, arguments, rows(), workers if len(missing) > 1 else 1):
        progress((index + 1) / count, f"{shards.folder.name}: shard {index + 1:,} of {count:,}")
    shards.close(count)
    return sum(shards.counts(index)["tokens"] for index in range(count))


def _writer(
    folder: Path,
    ingested: Path,
    renamed: Mapping[int, str],
    planted: Sequence[Mapping[str, str]],
    tokenizer_folder: Path,
) -> Callable[[_Shard], int]:
    """In a worker: from a shard's documents to its number, once it is committed."""
    texts = Texts(Shards(ingested), renamed, planted)
    fitted = tokenizer.load(tokenizer_folder)
    shards = Shards(folder)

    def write(shard: _Shard) -> int:
        index, rows, flagged = shard
        shards.write(index, partial(_write_shard, texts, fitted, rows, flagged))
        return index

    return write


def _write_shard(
    texts: Texts,
    fitted: tokenizer.Tokenizer,
    rows: Int64[np.ndarray, " doc"],
    flagged: Bool[np.ndarray, " doc"],
    out: Path,
) -> dict[str, Any]:
    """Write the documents of these numbers to `out`; returns their counts."""
    unknown = 0

    def tokenized() -> Iterator[list[int]]:
        """The tokens of all documents, which are written as text on the way."""
        nonlocal unknown
        written = 0
        with pq.ParquetWriter(out / DOCUMENTS, _COLUMNS, compression="zstd") as writer:
            for chosen in _by_size((texts[i] for i in rows), WRITTEN_AT_ONCE):
                some = slice(written, written + len(chosen))
                columns = {
                    "id": [texts.row(int(i), "id") for i in rows[some]],
                    "metadata": [texts.row(int(i), "metadata") for i in rows[some]],
                    "text": chosen,
                    "near_duplicate": flagged[some].tolist(),
                }
                writer.write_table(pa.table(columns, _COLUMNS))
                written += len(chosen)
                for few in _by_size(chosen, TOKENIZED_AT_ONCE):
                    for document in fitted.documents(few):
                        if fitted.unknown is not None:
                            unknown += document.count(fitted.unknown)
                        yield document
            if not written:  # an empty set has its columns too
                writer.write_table(_COLUMNS.empty_table())

    # The number of unknown tokens is known once all are written.
    written = tokens.write(out, tokenized(), fitted.vocab_size)
    return {"docs": len(rows), "tokens": written, "unknown": unknown}


def _by_size(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """The texts in order, `size` characters of them at a time and the one that goes beyond."""
    batch: list[str] = []
    total = 0
    for text in texts:
        batch.append(text)
        total += len(text)
        if total >= size:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
