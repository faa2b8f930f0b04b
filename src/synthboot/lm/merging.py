"""Averages of the weights of two models: the one that tuning started from, and what it became.

A synthesizer that reads d1 has usually forgotten some of what base knows; between the two lie
weights that do both.

Source: arXiv:2109.01903 (weight-space ensembles of a model and its fine-tuned self), whose mixing
coefficient is a grid too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from synthboot.artifacts.model import Model
from synthboot.artifacts.store import WORK
from synthboot.data.disk import remove
from synthboot.data.tokenizer import Tokenizer
from synthboot.lm import model as models
from synthboot.lm.parallel import ALONE, Group

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def average_with_base(
    folder: Path,
    base: PreTrainedModel,
    shares: Sequence[float],
    loss: Callable[[PreTrainedModel, float], float],
    tokenizer: Tokenizer,
    group: Group = ALONE,
) -> list[tuple[float, float]]:
    """The loss at every share of base; `folder/best` becomes the average of least loss.

    `loss` is told the share beside the model. What `best` was is kept in `work`, for `undo`. All
    processes of the `group` take the losses, so that none waits for another longer than it may.
    """
    best = Model.open(folder).best
    model = models.load(best, base.device)
    group.wait()  # until all have read what one of them replaces
    tuned = {name: value.clone() for name, value in model.state_dict().items()}
    start = base.state_dict()

    def average(share: float) -> PreTrainedModel:
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    value.copy_(torch.lerp(tuned[name], start[name], share))
        return model

    losses = [(share, loss(average(share), share)) for share in shares]
    chosen, _ = min(losses, key=lambda pair: pair[1])
    if chosen and group.main:
        os.rename(best, folder / WORK / "tuned")
        models.save(average(chosen), best, tokenizer)
    return losses


def undo(folder: Path) -> None:
    """Bring back what `average_with_base` had averaged, where a run was killed after it."""
    kept = folder / WORK / "tuned"
    if kept.exists():
        best = Model.open(folder).best
        remove(best)
        os.rename(kept, best)
