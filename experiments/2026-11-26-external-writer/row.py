"""What training the separator's row beside the adapters is worth: tuned on the same batches, with it and without.

python experiments/2026-11-26-external-writer/row.py runs/external-writer
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from separator import CONFIG, Unseen

from synthboot import loading
from synthboot.artifacts.pairs import TRAIN, Pairs
from synthboot.lm import adapters
from synthboot.lm import model as models
from synthboot.lm.batches import PairPlan
from synthboot.lm.train import Settings, train

PAIRS = 48


def main(run: Path) -> None:
    """Print a row for each way: the loss of d2 given its d1, and how much more it is given a random one."""
    torch.set_num_threads(1)
    cfg = loading.load(CONFIG)
    tune = cfg.tune
    unseen = Unseen(run, cfg, PAIRS)
    tokenizer = unseen.outside.tokenizer
    seen = Pairs.load(run / "03-pair" / "related").only(TRAIN)
    plan = PairPlan(
        unseen.outside.pretrain,
        seen.d1.tolist(),
        seen.d2.tolist(),
        unseen.form,
        batch_tokens=tune.batch_tokens,
        tokens=tune.max_tokens or 0,
        seed=cfg.seed,
    )
    settings = Settings(
        lr=tune.lr, weight_decay=tune.weight_decay, warmup_steps=1, eval_steps=(plan.steps,), precision=cfg.optim.precision
    )

    print("| the separator's row | given d1 | given a random d1 | d1's worth |\n|---|--:|--:|--:|")
    for name, token in (("stays as drawn", None), ("trained", tokenizer.separator)):
        model = models.load(unseen.outside.model)
        adapters.add(model, tune.lora, cfg.seed, "tune", token)
        with tempfile.TemporaryDirectory() as folder:
            train(model, plan, settings, lambda _: 0.0, Path(folder), tokenizer)
        print(f"| {name} | {unseen.cells(model)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
