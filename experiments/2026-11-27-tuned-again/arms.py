"""Train and score the arms whose texts are there, without the writers that wrote these.

python experiments/2026-11-27-tuned-again/arms.py              # every arm and seed whose text is there
python experiments/2026-11-27-tuned-again/arms.py 'sbp/*'      # of these

A card had tuned the writers and sampled, and its time was up before all had been copied from it: `synthboot evaluate` would
tune and sample again.
"""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from synthboot.artifacts import store
from synthboot.loading import load
from synthboot.recipes import units
from synthboot.runner.graph import fingerprints
from synthboot.runner.unit import make

CONFIG = Path(__file__).parent / "config.yaml"


class Printed:
    """Who is told how a unit gets on."""

    def send(self, message: tuple[str, Any], /) -> None:
        """Print what is said."""
        print(*message, flush=True)


def main() -> None:
    """Make what can be made and is not there."""
    cfg = load(CONFIG, {"engine.jobs": 1})
    plan = units(cfg)
    marks = fingerprints(plan)
    for name, unit in plan.items():
        stage, _, model = name.partition("/")
        if stage not in ("pretrain", "score") or not any(fnmatch(model, wanted) for wanted in sys.argv[1:] or ("*",)):
            continue
        if all(store.read_manifest(plan[parent].folder(cfg.folder)) for parent in unit.parents.values()):
            print(name, make(cfg, plan, name, marks, 1, Printed()), flush=True)


if __name__ == "__main__":
    main()
