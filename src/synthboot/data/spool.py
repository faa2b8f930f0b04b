"""The text as it was read: records become documents in shards, and lie there by number until the corpus is made of them.

A shard remembers what its records held. A run that goes on after a kill reads its source again, and makes a shard anew
whose records are others now, so that no spool mixes a file before and after it has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, UInt64

from synthboot import config
from synthboot.data import documents, files, ngrams
from synthboot.data.artifacts import WORK, Progress, Shards
from synthboot.data.disk import save_array, write_bytes
from synthboot.errors import DataError

_HOPELESS = 100_000  # bad records after which those to come are not waited for, where most are bad
_SHARD_BYTES = (
    256 << 20
)  # of records at most, so that long documents do not take a machine's memory


@dataclass(frozen=True)
class Ingested:
    """What was read: records, of which some were quarantined, by reason; and what was passed over, by what it is."""

    records: int
    quarantined: int
    reasons: dict[str, int]
    ignored_files: dict[str, int]
    ignored_values: dict[str, int]


def ingest(
    cfg: config.Corpus, folder: Path, progress: Progress, expected: Mapping[str, Sequence[str]]
) -> Ingested:
    """Spool every record of the source in `folder`/work/ingest, and write quarantine.jsonl.

    Raises DataError where a file is not what `expected` says, where there are no records, or where too many are bad.
    """
    shards = Shards(folder / WORK / "ingest")
    ignored = documents.Ignored()
    count = bad = 0
    index = -1
    reasons: Counter[str] = Counter()
    for index, (batch, replay) in enumerate(_batches(cfg, expected, ignored)):
        read = documents.digest(batch)
        if shards.done(index) and shards.counts(index)["read"] != read:
            shards.close(index)
        counts = shards.write(index, partial(_spool, batch, read, replay, cfg))
        count += counts["records"]
        bad += counts["quarantined"]
        reasons.update(counts["reasons"])
        progress(0.0, f"{count:,} records read")
        if bad > _HOPELESS and bad > (1 + cfg.max_quarantine) / 2 * count:
            break  # a wrong field name is told at once, not after a night
    shards.close(index + 1)
    if not count:
        raise DataError(f"corpus.source: {cfg.source}: holds no records")
    lines = b"".join((s / "quarantine.jsonl").read_bytes() for s in shards)
    write_bytes(folder / "quarantine.jsonl", lines)
    if bad > cfg.max_quarantine * count:
        first = json.loads(lines.splitlines()[0])
        raise DataError(
            f"{first['file']} line {first['line']}: {first['reason']}; {bad:,} of {count:,} records are bad "
            f"(limit {cfg.max_quarantine:.1%}): {files.counted(reasons, 3)}; see {folder / 'quarantine.jsonl'}, "
            f"or raise corpus.max_quarantine"
        )
    return Ingested(count, bad, dict(reasons), dict(+ignored.files), dict(+ignored.values))


class Spool(Sequence[str]):
    """The ingested texts by number, memory-mapped, with their digests, id hashes and MinHash signatures.

    No two different texts have one id: of those that come with the same, the one with the least digest keeps it, and the
    others, which are `renamed`, have theirs after it.
    """

    def __init__(self, ingested: Shards) -> None:
        shards = list(ingested)
        self.tables = [
            pa.ipc.open_file(pa.memory_map(str(s / "documents.arrow"))).read_all() for s in shards
        ]
        self.first = np.cumsum([0, *(len(t) for t in self.tables)])
        columns = [np.load(s / "hashes.npy", allow_pickle=False) for s in shards]
        stacked = np.concatenate(columns) if columns else np.empty((0, 4), np.uint64)
        self.ids: UInt64[np.ndarray, " doc"] = stacked[:, 0]
        self.digests: UInt64[np.ndarray, "doc 2"] = stacked[:, 1:3]
        self.bytes: UInt64[np.ndarray, " doc"] = stacked[:, 3]
        self.shards = shards
        replay = [ingested.counts(index)["replay"] for index in range(len(shards))]
        self.replay: Bool[np.ndarray, " doc"] = np.repeat(
            np.array(replay, bool), np.diff(self.first)
        )
        self.renamed: dict[int, str] = {}
        self._tell_apart()

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, index: Any) -> Any:
        return self.row(int(index), "text")

    def row(self, index: int, column: str) -> Any:
        """One value of one document."""
        if column == "id" and index in self.renamed:
            return self.renamed[index]
        shard = int(np.searchsorted(self.first, index, side="right")) - 1
        return self.tables[shard][column][index - int(self.first[shard])].as_py()

    def signatures(self) -> np.ndarray:
        """All MinHash signatures, (documents, permutations)."""
        return np.concatenate(
            [np.load(s / "signatures.npy", allow_pickle=False) for s in self.shards]
        )

    def _tell_apart(self) -> None:
        """Rename until no id is that of two texts. A name depends on the text alone, not on which file comes first."""
        while True:
            order = np.lexsort((self.digests[:, 1], self.digests[:, 0], self.ids))
            ids, digests = self.ids[order], self.digests[order]
            starts = (
                np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1])))
                if len(ids)
                else np.zeros(0, int)
            )
            keeper = np.repeat(starts, np.diff(np.append(starts, len(ids))))
            others = np.flatnonzero((digests != digests[keeper]).any(1))
            if not len(others):
                return
            for place in others:
                index = int(order[place])
                self.renamed[index] = f"{self.row(index, 'id')}#{int(digests[place, 0]):016x}"
                self.ids[index] = _hash_of(self.renamed[index])


def _batches(
    cfg: config.Corpus, expected: Mapping[str, Sequence[str]], ignored: documents.Ignored
) -> Iterator[tuple[list[documents.Record], bool]]:
    """The records a shard at a time, the source's before those to replay; which of the two they are."""
    settings: tuple[Literal["source", "replay"], ...] = ("source", "replay")
    for setting in settings:
        batch: list[documents.Record] = []
        size = 0
        for record in documents.records(cfg, setting, expected.get(setting), ignored):
            batch.append(record)
            size += documents.size_of(record)
            if len(batch) == cfg.shard_docs or size >= _SHARD_BYTES:
                yield batch, setting == "replay"
                batch, size = [], 0
        if batch:
            yield batch, setting == "replay"


def _spool(
    batch: Sequence[documents.Record], read: str, replay: bool, cfg: config.Corpus, out: Path
) -> dict[str, Any]:
    good: list[documents.Document] = []
    metadata: list[str] = []
    bad: list[documents.Reject] = []
    for record in batch:
        parsed = documents.parse(record, cfg)
        try:
            fields = "" if isinstance(parsed, documents.Reject) else _json(parsed.metadata)
        except RecursionError:  # what can just be read cannot always be written
            parsed = documents.Reject(record.file, record.line, "fields nested too deeply")
        if isinstance(parsed, documents.Reject):
            bad.append(parsed)
        else:
            good.append(replace(parsed, id=f"replay:{parsed.id}") if replay else parsed)
            metadata.append(fields)
    columns = {"id": [d.id for d in good], "text": [d.text for d in good], "metadata": metadata}
    table = pa.table(
        {name: pa.array(values, pa.large_string()) for name, values in columns.items()}
    )
    with (
        pa.OSFile(str(out / "documents.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    hashed = np.array([_hashes(d) for d in good], np.uint64).reshape(-1, 4)
    save_array(out / "hashes.npy", hashed)
    if cfg.near_duplicates != "off":
        save_array(out / "signatures.npy", ngrams.signatures([d.text for d in good]))
    (out / "quarantine.jsonl").write_text(
        "".join(json.dumps(asdict(r)) + "\n" for r in bad), "utf-8"
    )
    reasons = dict(Counter(r.reason for r in bad))
    return {
        "records": len(batch),
        "quarantined": len(bad),
        "replay": replay,
        "reasons": reasons,
        "read": read,
    }


def _json(metadata: Mapping[str, Any]) -> str:
    """Fields as JSON that every file can hold: a lone surrogate becomes a question mark."""
    text = json.dumps(metadata, default=str, sort_keys=True, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()


def _hashes(document: documents.Document) -> tuple[int, int, int, int]:
    text = document.text.encode()
    digest = hashlib.blake2b(text, digest_size=16).digest()
    halves = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"))
    return _hash_of(document.id), *halves, len(text)


def _hash_of(identifier: str) -> int:
    digest = hashlib.blake2b(identifier.encode(), digest_size=8, person=b"split").digest()
    return int.from_bytes(digest, "little")
