"""Which trial of a sweep is the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from synthboot.artifacts.model import Model, Sweep
from synthboot.steps.context import Context


def best_trial(
    c: Context,
    trials: Mapping[str, Any],
    swept: Iterable[str],
    loss: Callable[[Model], float],
) -> str:
    """The trial of the least loss; what all of them reached is recorded."""
    from synthboot.lm import parallel  # torch takes seconds

    losses = {}
    settings = {}  # only what the sweep varies
    for trial, setting in trials.items():
        losses[trial] = loss(c.model(f"trial/{trial}"))
        settings[trial] = {key: getattr(setting, key) for key in swept}

    best = min(losses, key=lambda trial: losses[trial])
    if parallel.rank() == 0:
        Model.open(c.folder).save_sweep(Sweep(losses, settings, best))
    return best


def best_loss(model: Model) -> float:
    """The least validation loss of a trained model."""
    return model.curve.best_loss
