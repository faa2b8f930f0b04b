"""What d2 costs an untuned model given d1, by what the separator's row of its embedding begins as.

python experiments/2026-11-26-external-writer/separator.py runs/external-writer
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthboot import config, loading
from synthboot.artifacts.external import External
from synthboot.artifacts.pairs import VALIDATION, Pairs
from synthboot.lm import model as models
from synthboot.lm import score
from synthboot.lm.batches import PairForm, joined_contexts

CONFIG = Path(__file__).with_name("config.yaml")
PAIRS = 24


class Unseen:
    """So many d2 that no model of a run has read, each with its most similar d1 and with a random one."""

    def __init__(self, run: Path, cfg: config.Config, count: int) -> None:
        self.outside = External.open(run / "01-corpus" / "external")
        tokenizer = self.outside.tokenizer
        self.form = PairForm(cfg.tune_seq_len, cfg.tune.d1_share, tokenizer.end, tokenizer.separator)
        pairs = Pairs.load(run / "03-pair" / "related").only(VALIDATION)
        once = np.sort(np.unique(pairs.d2, return_index=True)[1])  # the most similar d1 of each d2
        chosen = once[np.linspace(0, len(once) - 1, count).astype(int)]
        others = np.random.default_rng(cfg.seed).integers(0, len(self.outside.pretrain), count)
        self.d1 = (pairs.d1[chosen].tolist(), others.tolist())
        room = self.form.seq_len - 1 - self.form.d1_room
        self.d2 = [self.outside.validation[doc][:room] for doc in pairs.d2[chosen].tolist()]

    def cells(self, model: Any) -> str:
        """The loss given each d1, and what the related ones are worth, as cells of a table."""
        scores = []
        for docs in self.d1:
            d1 = [joined_contexts([self.outside.pretrain[doc]], self.form) for doc in docs]
            scores.append(score.pairs(model, d1, self.d2, self.form))
        worth, error = scores[0].gain_over(scores[1])
        return f"{scores[0].mean:.3f} | {scores[1].mean:.3f} | {worth:.3f} +- {error:.3f}"


def main(run: Path) -> None:
    """Print a row for each beginning: the loss of d2 given its d1, and how much more it is given a random one."""
    torch.set_num_threads(1)
    unseen = Unseen(run, loading.load(CONFIG), PAIRS)
    tokenizer = unseen.outside.tokenizer

    model = models.load(unseen.outside.model)
    rows = model.get_input_embeddings().weight.data
    fresh = rows[tokenizer.separator].clone()
    blank_line = tokenizer.backend.encode("\n\n").ids
    beginnings = {
        "fresh": fresh,
        "the end token's": rows[tokenizer.end].clone(),
        "a blank line's": rows[blank_line].mean(0),
        "the mean of all": rows.mean(0),
    }
    print("| the separator's row | given d1 | given a random d1 | d1's worth |\n|---|--:|--:|--:|")
    for name, row in beginnings.items():
        rows[tokenizer.separator] = row
        print(f"| {name} | {unseen.cells(model)} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
