"""`make kill`: two hundred kills, every stage evenly, and a table of what came of them. Goes on where it was stopped."""

import argparse
import functools
import json
import random
import shutil
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from synthboot.recipes import STAGES
from tests.conftest import small_config, world_documents, write_jsonl
from tests.kill.campaign import Campaign, Kill, aim


def main() -> int:
    """The number of kills that did not end as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60, help="begin no campaign after that")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/kill"), help="where it works; kills.jsonl there is kept")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    log = asked.folder / "kills.jsonl"
    kills = [Kill(**json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []
    began, number = time.monotonic(), max((k.campaign + 1 for k in kills), default=0)
    whole = functools.cache(functools.partial(undisturbed, asked.folder))
    while len(kills) < asked.kills and time.monotonic() - began < 60 * asked.minutes:
        found = campaign(asked, number, whole(number % 5 == 3), kills)
        with log.open("a") as file:
            file.writelines(json.dumps(asdict(kill)) + "\n" for kill in found)
        kills, number = kills + found, number + 1
    text = f"{tables(kills)}\n"
    (asked.folder / "kills.json").write_text(json.dumps([asdict(k) for k in kills], indent=1) + "\n")
    (asked.folder / "kills.md").write_text(text)
    print(text)
    return sum(not fine(k) for k in kills)


def settings(folder: Path, together: bool) -> dict[str, Any]:
    """A known world and a run with every stage, one unit each, that takes seconds."""
    world = write_jsonl(folder.resolve() / "world.jsonl", world_documents(40))
    return small_config(
        world,
        folder,
        budget={"unique_tokens": 2_000, "train_tokens": 12_288 if not together else 6_144},
        optim__evals=4,
        engine={"device": "cpu", "jobs": 2, "processes": 2 if together else 1},
        corpus__shard_docs=32,
        tune={"batch_tokens": 384, "max_tokens": 6_144},
        analyze={"docs": 40, "examples": 3},
        arms={"repetition": {}, "sbp": {"synthetic": "related", "share": 0.5}},
        pretrain={"seeds": [0]},
    )


def undisturbed(folder: Path, together: bool) -> Campaign:
    """The run that all others are held to."""
    place = folder.resolve() / ("together" if together else "alone")
    made = Campaign(settings(folder, together), place, -1 - together)
    if problem := made.finish():
        sys.exit(f"the run that nobody touches fails: {problem}")
    return made


def campaign(asked: argparse.Namespace, number: int, whole: Campaign, before: list[Kill]) -> list[Kill]:
    """A hit in every stage that has had fewer than its share, then the end; what is wrong there is held against every hit."""
    place, rng = asked.folder.resolve() / f"campaign-{number}", random.Random(f"{asked.seed} {number}")
    shutil.rmtree(place, ignore_errors=True)
    tried = Campaign(whole.settings, place, number)
    share, hits = -(-asked.kills // len(STAGES)), Counter(k.stage for k in before)
    same_kind = Counter(k.stage for k in before if k.together == whole.together)
    beside = ["embed", "pair", "base"] if number % 2 else ["base", "embed", "pair"]  # they run side by side
    for stage in ["corpus", *beside, *STAGES[4:]]:
        if hits[stage] < share and len(before) + len(tried.kills) < asked.kills:
            target, name = aim(stage, same_kind[stage], asked.seed, whole.together)
            tried.hit(stage, target, name, whole.lengths(), rng)
    problem = tried.finish() or tried.differs_from(whole)
    for kill in tried.kills:
        kill.outcome += f"; {problem}" * bool(problem)
        words = f"{kill.outcome}, {kill.left} left ({kill.seconds:.1f} s) {kill.said[:150]}"
        print(f"{number}: {kill.stage}, {kill.target}, {kill.signal}: {words}", flush=True)
    if not problem:
        shutil.rmtree(place)
    return tried.kills


def fine(kill: Kill) -> bool:
    """Whether a kill ended as promised."""
    return kill.outcome in ("stopped", "went on") and not kill.left


def tables(kills: list[Kill]) -> str:
    """Markdown: kills by stage, and by what was hit with what."""
    return "\n".join(
        [
            f"{len(kills)} kills, {sum(map(fine, kills))} as promised: same files, same bytes, no process left.",
            "",
            *table("stage", kills, lambda k: k.stage, list(STAGES)),
            "",
            *table("target, signal", kills, lambda k: f"{k.target}, {k.signal}", []),
        ]
    )


def table(head: str, kills: list[Kill], key: Callable[[Kill], str], order: list[str]) -> list[str]:
    """The lines of a table with a row per value of the key."""
    rows: dict[str, list[Kill]] = defaultdict(list, {name: [] for name in order})
    for kill in kills:
        rows[key(kill)].append(kill)
    lines = [
        f"| {head} | kills | same bytes | went on | processes left | seconds until the error: median, longest |",
        "|---|---|---|---|---|---|",
    ]
    for name in order or sorted(rows):
        found = rows[name]
        times = [k.seconds for k in found if k.outcome == "stopped"]
        until = f"{statistics.median(times):.1f}, {max(times):.1f}" if times else ""
        on = sum(k.outcome == "went on" for k in found)
        lines.append(f"| {name} | {len(found)} | {sum(map(fine, found))} | {on} | {sum(k.left for k in found)} | {until} |")
    return lines


if __name__ == "__main__":
    sys.exit(min(main(), 100))
