"""What torchrun starts in every process that trains one model together with others: `python -m synthboot.ranks JOB`.

The process that makes the artifact starts torchrun, holds its standard input open, and reads progress from its standard
output, a JSON list a line. Where that process is gone, however it went, these end too; and with torchrun itself.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from synthboot import config, pipeline, recipes, steps
from synthboot.data.disk import read_json, write_json
from synthboot.engine import local
from synthboot.errors import SynthbootError


def main(job: Path) -> int:
    """Run the step that `job` names; the first process leaves its outcome beside it."""
    local.end_with_parent()
    import torch

    from synthboot.lm import parallel

    threading.Thread(target=_end_with_input, daemon=True).start()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    asked = read_json(job)
    cfg = config.Config.model_validate(asked["config"])
    plan = recipes.units(cfg)
    first = parallel.rank() == 0

    def progress(done: float, words: str) -> None:
        if first:
            sys.stdout.write(json.dumps([done, words]) + "\n")
            sys.stdout.flush()

    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != cfg.engine.processes:
        what = f"engine.processes is {cfg.engine.processes}, but engine.launch started {started}; let both say the same"
        if first:
            write_json(job.with_name("outcome.json"), {"error": what})
        return 2
    context = pipeline.context(cfg, plan, plan[asked["unit"]], 1, progress)
    try:
        counts, cost = steps.STEPS[plan[asked["unit"]].stage](context)
    except SynthbootError as error:
        if first:
            write_json(job.with_name("outcome.json"), {"error": str(error)})
        return 2
    if first:
        write_json(job.with_name("outcome.json"), {"counts": counts, "cost": cost})
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
