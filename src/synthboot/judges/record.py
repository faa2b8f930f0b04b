"""Scores that judges have given, and what they took, appended to a file one by one.

A score is known by everything it depends on, so that a run that was killed, or whose server fell
silent, asks for no score twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO

from synthboot.artifacts.judged import NOTHING, Question, Spent
from synthboot.judges.protocol import Item, Judge


class Record:
    """The scores in a file, and a place for more of them.

    A line that a kill has cut short, or a disk has damaged, is dropped: its score is asked for
    again.
    """

    def __init__(self, path: Path) -> None:
        self.scores: dict[str, float] = {}
        self.spent: dict[str, Spent] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        written = path.read_bytes()
        whole = written[: written.rfind(b"\n") + 1]
        for line in whole.splitlines():
            # lines are not flushed to the disk one by one
            with suppress(ValueError, TypeError, OverflowError):
                name, score, *spent = json.loads(line)
                self.spent[str(name)] = Spent(*map(int, spent))
                self.scores[str(name)] = float(score)
        os.truncate(path, len(whole))
        self._file: IO[bytes] = open(path, "ab")  # noqa: SIM115

    def add(self, name: str, score: float, spent: Spent = NOTHING) -> None:
        """Keep a score and what it took; from here on they survive a kill of this process."""
        self.scores[name] = score
        self.spent[name] = spent
        line = [name, score, spent.prompt, spent.completion, spent.untold]
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def name_of(judge: Judge, question: Question, pass_number: int, item: Item) -> str:
    """What a score is known by: the judge and what it depends on, the question, the pass, and every
    text of the item."""
    identity: Mapping[str, str] = {"judge": judge.name, **judge.identity}
    known = json.dumps([identity, question, pass_number, asdict(item)], sort_keys=True)
    return hashlib.blake2b(known.encode(errors="surrogatepass"), digest_size=16).hexdigest()
