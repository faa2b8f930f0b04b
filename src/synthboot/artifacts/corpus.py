"""The corpus as the other stages read it: sets of documents, as text and as tokens, and the
tokenizer.

A set (`pool`, `validation`, `test`, and `replay` where there is such text) is a folder of shards,
each with `documents.parquet` and the token shard of the same documents. D_pretrain has none of its
own: it is the head of the pool.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from synthboot.artifacts.store import Shards, declared, read_listed, read_rows, typed
from synthboot.data import tokenizer as tokenizers
from synthboot.data.canaries import Canary, among, planted
from synthboot.data.disk import unreadable, write_json
from synthboot.data.documents import Document
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens

PRETRAIN = "pretrain"
DOCUMENTS = "documents.parquet"
_SUMMARY = "corpus.json"
_CANARIES = "canaries.json"
QUARANTINE = "quarantine.jsonl"


@declared
@dataclass(frozen=True)
class Counts:
    """What the corpus holds. records = documents + quarantined + dropped, summed over all of
    `dropped`, where no canaries are among the documents of the pool.

    `unknown_tokens` stand for text that the tokenizer has no token for, which is lost. `account`
    says in one line what was not kept as it came.
    """

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


@dataclass(frozen=True)
class Corpus:
    """A corpus artifact. Its files are read when they are asked for."""

    folder: Path

    @staticmethod
    def open(folder: Path) -> Corpus:
        """The corpus in a folder."""
        return Corpus(folder)

    def shards(self, name: str) -> Shards:
        """The shards of a set that has a folder."""
        return Shards(self.folder / name)

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer lies, as Hugging Face has it."""
        return self.folder / "tokenizer"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return tokenizers.load(self.tokenizer_folder)

    @cached_property
    def summary(self) -> Counts:
        """What it holds, and what was left out of it.

        Raises CorruptArtifact where it is not what the manifest lists.
        """
        return typed(read_listed(self.folder, _SUMMARY), Counts, self.folder / _SUMMARY)

    def save_summary(self, counts: Counts) -> None:
        """Write what `summary` reads."""
        write_json(self.folder / _SUMMARY, asdict(counts))

    @cached_property
    def canaries(self) -> list[Canary]:
        """The canaries that were planted in D_pretrain, and the candidates; none where nothing was
        planted. Raises as `summary` does."""
        if not (self.folder / _CANARIES).exists():
            return []
        path = self.folder / _CANARIES
        return [typed(record, Canary, path) for record in read_listed(self.folder, _CANARIES)]

    def save_canaries(self, canaries: Sequence[Canary]) -> None:
        """Write what `canaries` reads."""
        write_json(self.folder / _CANARIES, [asdict(canary) for canary in canaries])

    @cached_property
    def is_canary(self) -> Bool[np.ndarray, " doc"]:
        """Which documents of D_pretrain are copies of canaries. Raises as `summary` does."""
        texts = [canary.text for canary in planted(self.canaries)]
        return among(self.pretrain, Tokens.of(self.tokenizer.documents(texts)))

    @property
    def pretrain_docs(self) -> int:
        """Documents in D_pretrain."""
        return self.summary.pretrain_docs

    @property
    def pretrain(self) -> Tokens:
        """The tokens of D_pretrain."""
        return self.pool.head(self.pretrain_docs)

    @cached_property
    def pool(self) -> Tokens:
        """The tokens of D_pretrain, then of what only oracles read."""
        return self.tokens("pool")

    @cached_property
    def validation(self) -> Tokens:
        """The tokens of the validation set."""
        return self.tokens("validation")

    @cached_property
    def test(self) -> Tokens:
        """The tokens of the test set."""
        return self.tokens("test")

    @property
    def has_replay(self) -> bool:
        """Whether there is text to replay."""
        return self.shards("replay").folder.exists()

    @cached_property
    def replay(self) -> Tokens:
        """The tokens of the text to replay."""
        return self.tokens("replay")

    def tokens(self, name: str) -> Tokens:
        """The tokens of a set that has a folder."""
        return Tokens.open(self.shards(name))

    def texts(self, name: str) -> Iterator[Document]:
        """The documents of a set, or of `pretrain`, in order."""
        if name == PRETRAIN:
            return itertools.islice(self.texts("pool"), self.pretrain_docs)
        return self._documents(name)

    def _documents(self, name: str) -> Iterator[Document]:
        for shard in self.shards(name):
            for row in read_rows(shard / DOCUMENTS, ["id", "text", "metadata"]):
                yield Document(row["id"], row["text"], json.loads(row["metadata"]))

    def rejects(self) -> Iterator[dict[str, Any]]:
        """What was quarantined: `file`, `line` and `reason` of each record.

        Raises CorruptArtifact where the file is gone or damaged.
        """
        path = self.folder / QUARANTINE
        try:
            for line in path.read_bytes().splitlines():
                record = json.loads(line)
                if not (isinstance(record, dict) and record.keys() >= {"file", "line", "reason"}):
                    raise ValueError("a line is no record of a file, a line and a reason")
                yield record
        except (ValueError, OSError, RecursionError) as error:
            raise unreadable(path, error) from None
