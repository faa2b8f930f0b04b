"""Vectors of documents, in the shards of the corpus, and the embedder that was fitted for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float16

from synthboot.artifacts.store import Shards
from synthboot.data.disk import end_to_end, load_array, save_array

_VECTORS = "vectors.npy"


@dataclass(frozen=True)
class Embeddings:
    """The vectors of D_pretrain (`pool`, its head) and of the validation set."""

    folder: Path

    @staticmethod
    def open(folder: Path) -> Embeddings:
        """The vectors in a folder."""
        return Embeddings(folder)

    def shards(self, name: str) -> Shards:
        """The shards of a set, one for each of the corpus."""
        return Shards(self.folder / name)

    @property
    def embedder(self) -> Path:
        """Where the `self` embedder lies, in a folder that is whole or absent."""
        return self.folder / "embedder" / "embedder.safetensors"

    @cached_property
    def pretrain(self) -> Float16[np.ndarray, "doc dim"]:
        """The vectors of D_pretrain, of length 1."""
        return self._vectors("pool")

    @property
    def validation(self) -> Float16[np.ndarray, "doc dim"]:
        """The vectors of the validation set, of length 1."""
        return self._vectors("validation")

    def mapped(self, path: Path) -> Float16[np.ndarray, "doc dim"]:
        """The vectors of D_pretrain, on disk: where they have several shards, in a new file at
        `path`."""
        return end_to_end((shard / _VECTORS for shard in self.shards("pool")), path)

    def _vectors(self, name: str) -> np.ndarray:
        return load_vectors(self.shards(name))


def load_vectors(folders: Iterable[Path]) -> Float16[np.ndarray, "doc dim"]:
    """What `save_vectors` wrote into several folders, one after the other."""
    return np.concatenate([load_array(folder / _VECTORS) for folder in folders])


def save_vectors(vectors: np.ndarray, folder: Path) -> dict[str, int]:
    """Write one shard, (doc, dim), and return its counts."""
    save_array(folder / _VECTORS, vectors)
    return {"docs": len(vectors), "dim": vectors.shape[1]}
