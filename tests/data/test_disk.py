"""Arrays are read back as written; a damaged one is named."""

from pathlib import Path

import numpy as np
import pytest

from synthboot.data.disk import load_array, save_array
from synthboot.errors import CorruptArtifact


@pytest.mark.parametrize("mapped", [False, True])
def test_an_array_is_read_back(tmp_path: Path, mapped: bool) -> None:
    save_array(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    assert np.array_equal(load_array(tmp_path / "a.npy", mapped), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("damage", ["cut", "zeros", "empty", "gone"])
def test_a_damaged_array_is_named_in_one_line(tmp_path: Path, mapped: bool, damage: str) -> None:
    path = tmp_path / "a.npy"
    save_array(path, np.arange(600))
    if damage == "gone":
        path.unlink()
    else:
        size = path.stat().st_size
        path.write_bytes({"cut": path.read_bytes()[:-8], "zeros": bytes(size), "empty": b""}[damage])
    with pytest.raises(CorruptArtifact, match=r"a.npy: .*; delete its artifact and run again") as caught:
        load_array(path, mapped)
    assert "\n" not in str(caught.value)
