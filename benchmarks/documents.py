r"""How the stages before any model grow with the number of documents: seconds, memory and disk of corpus, embed and pair.

    python benchmarks/documents.py --docs 100000 300000 1000000 --folder FOLDER --plot growth.svg
    python benchmarks/documents.py --docs 10000000 --folder FOLDER --jobs 16

Documents are generated, a file of 250,000 at a time: a log-normal number of words with a median of 90, half of them of
one of as many topics as there are five hundreds of documents, half of all words by Zipf's law, and one document in twenty a
near-copy of the one before. Each stage is a command of its own. CPU seconds are those of all its processes together, and
tell of growth where other work ran beside it. Memory is what all its processes together have for themselves or share with
each other, at the worst of the looks taken up to twice a second, for a twentieth of the time; files that are mapped are not
in it, as they can be dropped at any time. A command that is killed goes on where it was if it is given the same folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import draw
import numpy as np
import psutil
import yaml

STAGES = ("corpus", "embed", "pair")
FILE_DOCS = 250_000
WORDS = 50_000
TOPIC_WORDS = 200


def vocabulary() -> np.ndarray:
    """Words of two to four syllables, all different."""
    rng = np.random.default_rng(0)
    syllables = np.array([a + b for a in "bcdfghjklmnprstvz" for b in "aeiou"])
    found: dict[str, None] = {}
    while len(found) < WORDS:
        for count in rng.integers(2, 5, 1_000):
            found["".join(syllables[rng.integers(0, len(syllables), count)])] = None
    return np.array(list(found)[:WORDS], object)


def texts(number: int, count: int, topics: int) -> Iterator[str]:
    """The documents of a file."""
    rng = np.random.default_rng((1, number))
    words = vocabulary()
    lengths = np.maximum(10, np.exp(rng.normal(np.log(90), 0.6, count)).astype(int))
    before = None
    for length, topic, is_copy in zip(lengths, rng.integers(0, topics, count), rng.random(count) < 0.05, strict=True):
        if is_copy and before is not None:
            chosen = before.copy()
            chosen[rng.integers(0, len(chosen), max(1, len(chosen) // 50))] = rng.integers(0, WORDS)
        else:
            common = np.minimum(rng.zipf(1.3, length), WORDS) - 1
            own = (topic * 7_919 + rng.integers(0, TOPIC_WORDS, length) * 104_729) % WORDS
            chosen = np.where(rng.random(length) < 0.5, common, own)
        before = chosen
        yield " ".join(words[chosen])


def write(folder: Path, docs: int) -> None:
    """The documents, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, docs, FILE_DOCS)):
        path = folder / f"{number:04d}.jsonl"
        if path.exists():
            continue
        with open(path.with_suffix(".part"), "w") as file:
            for i, text in enumerate(texts(number, min(FILE_DOCS, docs - start), max(1, docs // 500))):
                file.write(json.dumps({"id": f"{number}-{i}", "text": text}) + "\n")
        os.replace(path.with_suffix(".part"), path)


@dataclass
class Taken:
    """What a process and all below it have taken so far: the most bytes at once, and CPU seconds by process."""

    most_bytes: int = 0
    cpu_seconds: dict[tuple[int, float], float] = field(default_factory=dict)

    def look(self, process: psutil.Process) -> None:
        """Each byte that several share is counted once, files that are mapped are not."""
        total = 0
        for one in (process, *process.children(recursive=True)):
            with suppress(OSError, psutil.Error):
                times = one.cpu_times()
                self.cpu_seconds[one.pid, one.create_time()] = times.user + times.system
                for line in Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                        total += int(line.split()[1]) * 1024
        self.most_bytes = max(self.most_bytes, total)


@contextmanager
def watched(process: subprocess.Popen[bytes]) -> Iterator[Taken]:
    """Looks at a process twice a second."""
    taken = Taken()
    over = threading.Event()

    def look() -> None:
        with suppress(psutil.Error):
            own = psutil.Process(process.pid)
            took = 0.0
            while not over.wait(max(0.5, 20 * took)):  # adding up gigabytes of pages takes a while
                begun = time.perf_counter()
                taken.look(own)
                took = time.perf_counter() - begun

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield taken
    finally:
        over.set()
        thread.join()


def on_disk(folder: Path) -> int:
    """Bytes of all files below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def grown(docs: int, folder: Path, jobs: int) -> dict[str, Any]:
    """What each stage takes for so many documents; a stage that is done is not run again."""
    source = folder / f"{docs}" / "source"
    write(source, docs)
    config = folder / f"{docs}" / "config.yaml"
    settings = {
        "name": "run",
        "root": str(folder / f"{docs}"),
        "budget": {"unique_tokens": "all", "train_tokens": 1_000_000},
        "corpus": {"source": str(source), "vocab_size": 8_192, "validation_docs": 500, "test_docs": 500},
        "arms": {"repetition": {}, "sbp": {"synthetic": "related", "share": 0.5}},
        "engine": {"jobs": jobs},
    }
    config.write_text(yaml.safe_dump(settings))
    row: dict[str, Any] = {"docs": docs}
    for stage in STAGES:
        kept = folder / f"{docs}" / f"{stage}.json"
        if not kept.exists():
            begun = time.perf_counter()
            command = [sys.executable, "-m", "synthboot", stage, str(config)]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process, watched(process) as taken:
                code = process.wait()
            if code:
                raise SystemExit(f"{stage} of {docs:,} documents ended with {code}")
            took = {
                "seconds": time.perf_counter() - begun,
                "cpu": sum(taken.cpu_seconds.values()),
                "bytes": taken.most_bytes,
            }
            kept.write_text(json.dumps(took))
        row[stage] = json.loads(kept.read_text())
    row["source"] = on_disk(source)
    row["run"] = on_disk(folder / f"{docs}" / "run")
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def exponent(rows: list[dict[str, Any]], stage: str, what: str) -> float:
    """Of the seconds of a stage, by least squares in logarithms."""
    docs = np.log([row["docs"] for row in rows])
    return float(np.polyfit(docs, np.log([row[stage][what] for row in rows]), 1)[0])


def drawn(rows: list[dict[str, Any]]) -> str:
    """Seconds and memory of each stage over the number of documents, on logarithmic scales."""
    x = [math.log10(row["docs"]) for row in rows]
    ticks = [f"{row['docs'] / 1e6:g}M" for row in rows]
    lines = []
    for what, scale, unit in (("seconds", 1, "s"), ("bytes", 2**30, "GiB")):
        for stage in STAGES:
            values = [row[stage][what] / scale for row in rows]
            labels = [f"{value:.3g}" for value in values]
            lines.append(draw.Line(f"{stage}, {unit}", x, [math.log10(value) for value in values], ticks, labels))
    return draw.svg(lines)


def main() -> None:
    """Run it, print the table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=int, nargs="+", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    rows = [grown(docs, args.folder, args.jobs) for docs in args.docs]

    print("| documents | " + " | ".join(f"{stage}: s | CPU s | GiB" for stage in STAGES) + " | source, GB | run, GB |")
    print("|" + "--:|" * (3 + 3 * len(STAGES)))
    for row in rows:
        cells = []
        for stage in STAGES:
            took = row[stage]
            cells += [f"{took['seconds']:,.0f}", f"{took['cpu']:,.0f}", f"{took['bytes'] / 2**30:.2f}"]
        print(f"| {row['docs']:,} | {' | '.join(cells)} | {row['source'] / 1e9:.2f} | {row['run'] / 1e9:.2f} |")
    if len(rows) > 1:
        for what in ("seconds", "cpu"):
            told = ", ".join(f"{stage} {exponent(rows, stage, what):.2f}" for stage in STAGES)
            print(f"\n{what}: grow as documents to the power of {told}")
    if args.plot:
        args.plot.write_text(drawn(rows))


if __name__ == "__main__":
    main()
