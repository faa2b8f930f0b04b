"""A model from outside the corpus that is to write for the arms (`tune.init_from`), and the
documents in its tokens.

`model` is a Hugging Face folder with room for the separator, its tokenizer beside it. `pretrain`
and `validation` are token shards of the same documents, in the same order, as the corpus has:
whatever numbers a document there numbers it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from synthboot.artifacts.store import Shards
from synthboot.data import tokenizer as tokenizers
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens

EXTERNAL = "external"
"""The variant of the corpus that such an artifact is, and the role in which it is read."""

SETS = ("pretrain", "validation")


@dataclass(frozen=True)
class External:
    """An external model and its tokens. Its files are read when they are asked for."""

    folder: Path

    @staticmethod
    def open(folder: Path) -> External:
        """The artifact in a folder."""
        return External(folder)

    @property
    def model(self) -> Path:
        """The model that tuning starts from."""
        return self.folder / "model"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return tokenizers.load(self.model)

    def shards(self, name: str) -> Shards:
        """The shards of one of SETS."""
        return Shards(self.folder / name)

    @cached_property
    def pretrain(self) -> Tokens:
        """D_pretrain."""
        return Tokens.open(self.shards("pretrain"))

    @cached_property
    def validation(self) -> Tokens:
        """The validation set."""
        return Tokens.open(self.shards("validation"))
