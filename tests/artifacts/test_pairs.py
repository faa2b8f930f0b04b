"""Pairs are read back as written; a damaged file is named."""

from pathlib import Path

import numpy as np
import pytest

from synthboot.artifacts.pairs import Pairs
from synthboot.artifacts.store import read_table
from synthboot.errors import CorruptArtifact


@pytest.mark.parametrize("damage", ["cut", "zeros", "gone"])
def test_damaged_pairs_are_named_in_one_line(tmp_path: Path, damage: str) -> None:
    numbers = np.arange(3)
    Pairs(numbers, numbers, numbers.astype(np.float32), numbers).save(tmp_path)
    path = tmp_path / "pairs.parquet"
    assert read_table(path, ["d1"])["d1"].to_pylist() == [0, 1, 2]
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:40] if damage == "cut" else bytes(path.stat().st_size))
    with pytest.raises(CorruptArtifact, match=r"pairs.parquet: .*; delete its artifact and run again") as caught:
        Pairs.load(tmp_path)
    assert "\n" not in str(caught.value)
