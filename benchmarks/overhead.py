r"""How much of a run is spent outside the steps of training and sampling, by the manifests of two runs of it.

    python benchmarks/overhead.py configs/demo.yaml
    python benchmarks/overhead.py configs/world.yaml --tokens 240000 --until pretrain --set 'pretrain.seeds=[0]'

The configuration is run with a budget of `--tokens` and with half of that, tuning too. What a unit took longer for its further
tokens is what their steps take; what is left of its seconds is start, imports, evaluation, saves and hashes. All that the other
stages take is outside the steps, and so is the time in which no unit ran. `--scale N` also tells of a run of N times the
tokens: the steps N times, the rest once. Runs go to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from synthboot import loading

STEPPING = ("base", "tune", "synthesize", "pretrain")
"""Stages whose time grows with the tokens of the budget."""


@dataclass(frozen=True)
class Ran:
    """A run: its seconds from the command to its end, how many units it ran at once, and each unit's seconds and tokens."""

    wall: float
    jobs: int
    units: dict[str, tuple[str, float, float]]


def run(config: str, tokens: int, tuning: int | None, until: str, settings: list[str], root: Path) -> Ran:
    """Run it with these budgets, from nothing."""
    changed = [*settings, f"budget.train_tokens={tokens}", f"root={root}"]
    if tuning is not None:
        changed.append(f"tune.max_tokens={tuning}")
    command = [sys.executable, "-m", "synthboot", until, config]
    command += [word for setting in changed for word in ("--set", setting)]
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - begun

    cfg = loading.load(config, set=loading.parse_set(changed))
    units = {}
    for path in sorted(root.glob("*/**/manifest.json")):
        manifest = json.loads(path.read_text())
        cost = manifest["cost"]
        unit = str(path.parent.relative_to(cfg.folder))
        units[unit] = (manifest["stage"], float(cost["seconds"]), float(cost.get("tokens", 0)))
    return Ran(wall, cfg.engine.jobs or len(os.sched_getaffinity(0)), units)


def in_steps(half: Ran, whole: Ran) -> dict[str, float]:
    """Seconds of every unit of the whole run that went into steps, by what its further tokens took."""
    found = dict.fromkeys(whole.units, 0.0)
    for unit, (stage, seconds, tokens) in whole.units.items():
        _, seconds_of_half, tokens_of_half = half.units.get(unit, (stage, 0.0, tokens))
        if stage in STEPPING and tokens > tokens_of_half:
            token_seconds = (seconds - seconds_of_half) / (tokens - tokens_of_half)
            found[unit] = min(seconds, max(0.0, token_seconds * tokens))
    return found


def main() -> None:
    """Run twice, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--tokens", type=int, help="the budget of the larger run; the configuration's unless given")
    parser.add_argument("--until", default="report")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    args = parser.parse_args()

    cfg = loading.load(args.config, set=loading.parse_set(args.settings))
    tokens = args.tokens or cfg.budget.train_tokens
    share = tokens / cfg.budget.train_tokens
    tuning = [int(cfg.tune.max_tokens * share * part) if cfg.tune.max_tokens else None for part in (0.5, 1)]
    with tempfile.TemporaryDirectory() as folder:
        half = run(args.config, tokens // 2, tuning[0], args.until, args.settings, Path(folder) / "half")
        whole = run(args.config, tokens, tuning[1], args.until, args.settings, Path(folder) / "whole")

    stepped = in_steps(half, whole)
    print(f"{args.config}, {tokens:,} tokens: {whole.wall:.0f} s, {half.wall:.0f} s with half of them, {whole.jobs} at once\n")
    print("| stage | units | seconds | in steps | outside |\n|---|--:|--:|--:|--:|")
    for stage in dict.fromkeys(stage for stage, _, _ in whole.units.values()):
        units = [unit for unit, (name, _, _) in whole.units.items() if name == stage]
        seconds = sum(whole.units[unit][1] for unit in units)
        steps = sum(stepped[unit] for unit in units)
        print(f"| {stage} | {len(units)} | {seconds:.1f} | {steps:.1f} | {seconds - steps:.1f} |")
    steps = sum(stepped.values())
    available = whole.wall * whole.jobs
    idle = available - sum(seconds for _, seconds, _ in whole.units.values())
    print(f"| between units, and idle | | {idle:.1f} | | {idle:.1f} |")
    print(f"\noutside the steps: {1 - steps / available:.0%} of {available:.0f} s of all jobs")
    if args.scale != 1:
        rest = available - steps
        print(f"with {args.scale:g} times the tokens: {rest / (rest + args.scale * steps):.1%}")


if __name__ == "__main__":
    main()
