"""What training the separator's row beside the adapters is worth: tuned on the same batches, with it and without.

python experiments/2026-11-26-external-writer/row.py runs/external-writer
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from synthboot import loading
from synthboot.artifacts.external import External
from synthboot.artifacts.pairs import TRAIN, VALIDATION, Pairs
from synthboot.lm import adapters, score
from synthboot.lm import model as models
from synthboot.lm.batches import PairPlan, d1_room, joined_contexts
from synthboot.lm.train import Settings, train

CONFIG = Path(__file__).with_name("config.yaml")
PAIRS = 48


def main(run: Path) -> None:
    """Print a row for each way: the loss of d2 given its d1, and how much more it is given a random one."""
    torch.set_num_threads(1)
    cfg = loading.load(CONFIG)
    tune = cfg.tune
    outside = External.open(run / "01-corpus" / "external")
    tokenizer = outside.tokenizer
    window = cfg.tune_seq_len
    related = Pairs.load(run / "03-pair" / "related")

    unseen = related.only(VALIDATION)
    once = np.sort(np.unique(unseen.d2, return_index=True)[1])  # the most similar d1 of each d2
    chosen = once[np.linspace(0, len(once) - 1, PAIRS).astype(int)]
    others = np.random.default_rng(cfg.seed).integers(0, len(outside.pretrain), PAIRS)
    d2 = [outside.validation[doc][: window - 1 - d1_room(window, tune.d1_share)] for doc in unseen.d2[chosen].tolist()]

    seen = related.only(TRAIN)
    plan = PairPlan(
        outside.pretrain,
        seen.d1.tolist(),
        seen.d2.tolist(),
        seq_len=window,
        d1_share=tune.d1_share,
        batch_tokens=tune.batch_tokens,
        tokens=tune.max_tokens or 0,
        seed=cfg.seed,
        end=tokenizer.end,
        separator=tokenizer.separator,
    )
    settings = Settings(
        lr=tune.lr, weight_decay=tune.weight_decay, warmup_steps=1, eval_steps=(plan.steps,), precision=cfg.optim.precision
    )

    print("| the separator's row | given d1 | given a random d1 | d1's worth |\n|---|--:|--:|--:|")
    for name, token in (("stays as drawn", None), ("trained", tokenizer.separator)):
        model = models.load(outside.model)
        adapters.add(model, tune.lora, cfg.seed, "tune", token)
        with tempfile.TemporaryDirectory() as folder:
            train(model, plan, settings, lambda _: 0.0, Path(folder), tokenizer)
        scores = []
        for docs in (unseen.d1[chosen].tolist(), others.tolist()):
            d1 = [joined_contexts([outside.pretrain[doc]], window, tune.d1_share, tokenizer.separator) for doc in docs]
            scores.append(score.pairs(model, d1, d2, window, tune.d1_share, tokenizer.end, tokenizer.separator))
        worth, error = scores[0].gain_over(scores[1])
        print(f"| {name} | {scores[0].mean:.3f} | {scores[1].mean:.3f} | {worth:.3f} +- {error:.3f} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
