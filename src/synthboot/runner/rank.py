"""What torchrun starts in every process that trains one model together with others: `python -m
synthboot.runner.rank JOB`.

The process that makes the artifact starts torchrun, holds its standard input open, and reads
progress from its standard output, a JSON list a line. Where that process is gone, however it went,
these end too; and with torchrun itself.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from synthboot import config, pool, recipes, steps
from synthboot.data.disk import read_json, write_json
from synthboot.errors import SynthbootError
from synthboot.runner import executor


def main(job: Path) -> int:
    """Run the step that `job` names; the first process leaves its outcome beside it."""
    pool.end_with_parent()
    import torch

    from synthboot.lm import parallel

    # before anything that takes long: a rank nobody waits for must not train on
    threading.Thread(target=_end_with_input, daemon=True).start()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    order = read_json(job)
    cfg = config.Config.model_validate(order["config"])
    plan = recipes.units(cfg)
    unit = plan[order["unit"]]
    first = parallel.rank() == 0

    def progress(done: float, words: str) -> None:
        if first:
            sys.stdout.write(json.dumps([done, words]) + "\n")
            sys.stdout.flush()

    def leave(outcome: dict[str, Any]) -> None:
        if first:
            write_json(job.with_name("outcome.json"), outcome)

    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != cfg.engine.processes:
        error = (
            f"engine.processes is {cfg.engine.processes}, "
            f"but engine.launch started {started}; let both say the same"
        )
        leave({"error": error})
        return 2

    step = steps.STEPS[unit.stage]
    try:
        counts, cost = step(
            executor.context(
                cfg,
                plan,
                unit,
                1,
                progress,
            )
        )
    except SynthbootError as failure:
        leave({"error": str(failure)})
        return 2
    leave({"counts": counts, "cost": cost})
    # without this, torch warns of a leak at exit
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _end_with_input() -> None:
    """End this process once what started it is gone, which closes its input."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
