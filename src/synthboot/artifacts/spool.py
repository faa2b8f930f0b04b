"""The text as it was read, until the corpus is made of it.

Records become documents in shards, and lie there by number. A shard remembers what its records
held. A run that goes on after a kill reads its source again, and makes a shard anew whose records
are others now, so that no spool mixes a file before and after it has changed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64, UInt32, UInt64

from synthboot import config, pool
from synthboot.artifacts.corpus import QUARANTINE
from synthboot.artifacts.parts import Part
from synthboot.artifacts.store import WORK, Progress, Shards
from synthboot.data import documents, files, near_duplicates
from synthboot.data.canaries import Canary
from synthboot.data.disk import end_to_end, load_array, remove, save_array, unreadable, write_bytes
from synthboot.errors import DataError

_Batch = tuple[list[documents.Record], bool]
"""The records of a shard, and whether they are those to replay."""

GIVE_UP_AFTER = 100_000
"""Bad records after which those to come are not waited for, where most are bad."""
SHARD_BYTES = 256 << 20
"""Bytes of records in a shard at most, so that long documents do not take a machine's memory."""


@dataclass(frozen=True)
class Ingested:
    """What was read, and what was passed over, by what it is.

    Some records were quarantined: `reasons` counts why.
    """

    records: int
    quarantined: int
    reasons: dict[str, int]
    ignored_files: dict[str, int]
    ignored_values: dict[str, int]


def ingest(
    cfg: config.Corpus,
    folder: Path,
    progress: Progress,
    expected: Mapping[str, Sequence[str]],
    workers: int = 1,
) -> Ingested:
    """Spool every record of the source in `folder`/work/ingest, and write quarantine.jsonl.

    One process reads; `workers` parse documents, sign them and write the shards.

    Raises DataError where a file is not what `expected` says, where there are no records, or where
    too many are bad.
    """
    shards = Shards(folder / WORK / "ingest")
    ignored = documents.Ignored()
    count = 0
    bad = 0
    num_shards = 0
    reasons: Counter[str] = Counter()
    batches, are_several = _several(_batches(cfg, expected, ignored))
    # nobody is started for the one shard of a small corpus
    kept = pool.imap(
        _keeper,
        (shards.folder, cfg),
        enumerate(batches),
        workers if are_several else 1,
    )
    for counts in kept:
        num_shards += 1
        count += counts["records"]
        bad += counts["quarantined"]
        reasons.update(counts["reasons"])
        progress(0.0, f"{count:,} records read")
        if bad > GIVE_UP_AFTER and bad > (1 + cfg.max_quarantine) / 2 * count:
            break  # a wrong field name is told at once, not after a night
    kept.close()  # type: ignore[attr-defined]

    shards.close(num_shards)
    if not count:
        raise DataError(f"corpus.source: {cfg.source}: holds no records")
    lines = b"".join((shard / QUARANTINE).read_bytes() for shard in shards)
    write_bytes(folder / QUARANTINE, lines)
    if bad > cfg.max_quarantine * count:
        first = json.loads(lines.splitlines()[0])
        what_to_do = documents.advice(reasons, cfg)
        raise DataError(
            f"{first['file']} line {first['line']}: {first['reason']}; "
            f"{bad:,} of {count:,} records are bad (limit {100 * cfg.max_quarantine:g}%): "
            f"{files.counted(reasons, 3)}; {what_to_do + '; ' if what_to_do else ''}"
            f"see {folder / QUARANTINE}, or raise corpus.max_quarantine"
        )
    return Ingested(
        records=count,
        quarantined=bad,
        reasons=dict(reasons),
        ignored_files=dict(+ignored.files),  # + drops what was counted to nothing
        ignored_values=dict(+ignored.values),
    )


def ingest_part(
    cfg: config.Corpus,
    folder: Path,
    progress: Progress,
    expected: Mapping[str, Sequence[str]],
    part: Part,
) -> tuple[Shards, int]:
    """Spool the records of one part as `ingest` does; returns the shards, and how many there are.

    All of the source is read, since where a shard begins depends on all before it; what takes the
    time, to parse documents and to sign them, is done for the part's own. Raises DataError where a
    file is not what `expected` says.
    """
    shards = Shards(folder / WORK / "ingest")
    count = 0
    for index, (batch, replay) in enumerate(_batches(cfg, expected, documents.Ignored())):
        count = index + 1
        if part.has(index):
            _keep(shards, index, batch, replay, cfg)
        progress(0.0, f"{count:,} shards read")
    return shards, count


def _several(batches: Iterator[_Batch]) -> tuple[Iterator[_Batch], bool]:
    """The same batches, and whether there is more than one."""
    head = list(itertools.islice(batches, 2))
    return itertools.chain(head, batches), len(head) == 2


def _keeper(folder: Path, cfg: config.Corpus) -> Callable[[tuple[int, _Batch]], dict[str, Any]]:
    """In a worker: from a batch and its number to the counts of its shard, which is committed."""

    def keep(numbered: tuple[int, _Batch]) -> dict[str, Any]:
        index, (batch, replay) = numbered
        return _keep(Shards(folder), index, batch, replay, cfg)

    return keep


def _keep(
    shards: Shards,
    index: int,
    batch: Sequence[documents.Record],
    replay: bool,
    cfg: config.Corpus,
) -> dict[str, Any]:
    """The counts of the shard of these records, which is made unless it is there."""
    read = documents.digest(batch)
    # a shard of other records is of the source before it changed
    if shards.done(index) and shards.counts(index)["read"] != read:
        remove(shards.path(index))
    return shards.write(index, partial(_spool, batch, read, replay, cfg))


class Texts(Sequence[str]):
    """The ingested texts by number, memory-mapped.

    Documents that are `renamed` have another id than they came with. What is `planted` lies after
    them and is not counted.
    """

    def __init__(
        self,
        ingested: Shards,
        renamed: Mapping[int, str] | None = None,
        planted: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self.folder = ingested.folder
        self.shards = list(ingested)
        self.renamed = dict(renamed or {})
        self.planted = list(planted)
        self.tables = []
        for shard in self.shards:
            path = shard / "documents.arrow"
            try:
                # what is closed stays mapped, and takes no descriptor of the thousand there are
                with pa.memory_map(str(path)) as mapped:
                    self.tables.append(pa.ipc.open_file(mapped).read_all())
            except (pa.ArrowException, OSError) as error:
                raise unreadable(path, error) from None
        sizes = [len(table) for table in self.tables]
        self.first = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, index: Any) -> Any:
        return self.row(int(index), "text")

    def row(self, index: int, column: str) -> Any:
        """One value of one document."""
        if index >= len(self):
            return self.planted[index - len(self)][column]
        if column == "id" and index in self.renamed:
            return self.renamed[index]
        shard = int(np.searchsorted(self.first, index, side="right")) - 1
        row = index - int(self.first[shard])
        return self.tables[shard][column][row].as_py()


class Spool(Texts):
    """The ingested texts with their digests, id hashes and MinHash signatures.

    No two different texts have one id: of those that come with the same, the one with the least
    digest keeps it, and the others are renamed: theirs stands after it.
    """

    def __init__(self, ingested: Shards) -> None:
        super().__init__(ingested)
        columns = [np.empty((0, 4), np.uint64)]
        for shard in self.shards:
            columns.append(load_array(shard / "hashes.npy"))
        hashed = np.concatenate(columns)  # (doc, 4), as `_hashes` has them
        self.ids: UInt64[np.ndarray, " doc"] = hashed[:, 0]
        self.digests: UInt64[np.ndarray, "doc 2"] = hashed[:, 1:3]
        self.bytes: UInt64[np.ndarray, " doc"] = hashed[:, 3]

        is_replay = [ingested.counts(index)["replay"] for index in range(len(self.shards))]
        # (shard,) -> (doc,)
        self.replay: Bool[np.ndarray, " doc"] = np.repeat(
            np.array(is_replay, bool),
            np.diff(self.first),
        )
        self._tell_apart()

    def plant(self, canaries: Sequence[Canary]) -> Int64[np.ndarray, " copy"]:
        """The numbers, after those of all documents, under which the copies of the canaries lie."""
        first = len(self) + len(self.planted)
        for number, canary in enumerate(canaries):
            for copy in range(canary.copies):
                self.planted.append(
                    {
                        "id": f"canary:{number}:{copy}",
                        "text": canary.text,
                        "metadata": fields_json({"canary": number}),
                    }
                )
        return np.arange(first, len(self) + len(self.planted))

    def signatures(self, path: Path) -> UInt32[np.ndarray, "doc perm"]:
        """All MinHash signatures, on disk: where there are several shards, in a new file at
        `path`."""
        return end_to_end((shard / "signatures.npy" for shard in self.shards), path)

    def _tell_apart(self) -> None:
        """Rename until no id is that of two texts.

        A name depends on the text alone, not on which file comes first.
        """
        while True:
            # By id, then by digest: the first of an id, with its least digest, is its keeper.
            order = np.lexsort((self.digests[:, 1], self.digests[:, 0], self.ids))
            ids = self.ids[order]
            digests = self.digests[order]
            is_first = np.ones(len(ids), bool)
            is_first[1:] = ids[1:] != ids[:-1]
            starts = np.flatnonzero(is_first)
            times = np.diff(np.append(starts, len(ids)))
            keeper = np.repeat(starts, times)  # (id,) -> (doc,)

            differs = (digests != digests[keeper]).any(1)
            others = np.flatnonzero(differs)
            if not len(others):
                return
            for position in others:
                index = int(order[position])
                digest = int(digests[position, 0])
                self.renamed[index] = f"{self.row(index, 'id')}#{digest:016x}"
                self.ids[index] = _hash_of(self.renamed[index])


def _batches(
    cfg: config.Corpus,
    expected: Mapping[str, Sequence[str]],
    ignored: documents.Ignored,
) -> Iterator[_Batch]:
    """The records a shard at a time, those of the source first."""
    settings: tuple[Literal["source", "replay"], ...] = ("source", "replay")
    for setting in settings:
        batch: list[documents.Record] = []
        size = 0
        for record in documents.records(cfg, setting, expected.get(setting), ignored):
            batch.append(record)
            size += documents.size_of(record)
            if len(batch) == cfg.shard_docs or size >= SHARD_BYTES:
                yield batch, setting == "replay"
                batch, size = [], 0
        if batch:
            yield batch, setting == "replay"


def _spool(
    batch: Sequence[documents.Record],
    read: str,
    replay: bool,
    cfg: config.Corpus,
    out: Path,
) -> dict[str, Any]:
    """The counts of a shard of the records of `batch`, which is written to `out`."""
    good: list[documents.Document] = []
    metadata: list[str] = []
    bad: list[documents.Reject] = []
    for record in batch:
        parsed = documents.parse(record, cfg)
        try:
            fields = "" if isinstance(parsed, documents.Reject) else fields_json(parsed.metadata)
        except RecursionError:  # what can just be read cannot always be written
            parsed = documents.Reject(record.file, record.line, "fields nested too deeply")
        if isinstance(parsed, documents.Reject):
            bad.append(parsed)
        else:
            good.append(replace(parsed, id=f"replay:{parsed.id}") if replay else parsed)
            metadata.append(fields)
    values_of = {
        "id": [document.id for document in good],
        "text": [document.text for document in good],
        "metadata": metadata,
    }
    columns = {name: pa.array(values, pa.large_string()) for name, values in values_of.items()}
    table = pa.table(columns)
    with (
        pa.OSFile(str(out / "documents.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)

    hashed = [_hashes(document) for document in good]
    # (doc, 4), also where there is none
    save_array(out / "hashes.npy", np.array(hashed, np.uint64).reshape(-1, 4))
    if cfg.near_duplicates != "off":
        save_array(out / "signatures.npy", near_duplicates.signatures(values_of["text"]))
    lines = [json.dumps(asdict(reject)) + "\n" for reject in bad]
    (out / QUARANTINE).write_text("".join(lines), "utf-8")

    reasons = dict(Counter(reject.reason for reject in bad))
    return {
        "records": len(batch),
        "quarantined": len(bad),
        "replay": replay,
        "reasons": reasons,
        "read": read,
    }


def fields_json(metadata: Mapping[str, object]) -> str:
    """Fields as JSON that every reader knows.

    A lone surrogate becomes a question mark, what is no number null, bytes hexadecimal digits, and
    anything else (dates, decimals) its text.
    """
    text = json.dumps(_known(metadata), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode()


def _known(value: object) -> object:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _known(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_known(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str | int | None) else str(value)


def _hashes(document: documents.Document) -> tuple[int, int, int, int]:
    """Hash of the id, two halves of the text's digest, bytes of the text."""
    text = document.text.encode()
    digest = hashlib.blake2b(text, digest_size=16).digest()
    first = int.from_bytes(digest[:8], "little")
    second = int.from_bytes(digest[8:], "little")
    return _hash_of(document.id), first, second, len(text)


def _hash_of(identifier: str) -> int:
    digest = hashlib.blake2b(identifier.encode(), digest_size=8, person=b"split").digest()
    return int.from_bytes(digest, "little")
