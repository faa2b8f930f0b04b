"""What a damaged file of a corpus artifact is to its reader: one line that names it."""

from pathlib import Path

import pytest

from synthboot.artifacts.corpus import QUARANTINE, Corpus
from synthboot.errors import CorruptArtifact

GOOD = b'{"file": "a.jsonl", "line": 3, "reason": "empty text"}\n'


def test_rejects_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / QUARANTINE).write_bytes(GOOD * 2)
    assert [r["line"] for r in Corpus.open(tmp_path).rejects()] == [3, 3]


@pytest.mark.parametrize(
    "content",
    [b"[", GOOD[:30], b"\xed\xa0\x80" + GOOD, b"{}\n", b"[1]\n", b"null\n", b"[" * 100_000, None],
    ids=lambda content: "gone" if content is None else repr(content[:12]),
)
def test_a_damaged_quarantine_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / QUARANTINE).write_bytes(content)
    with pytest.raises(CorruptArtifact, match=r"quarantine.jsonl: unreadable .*; delete .* and run again"):
        list(Corpus.open(tmp_path).rejects())
