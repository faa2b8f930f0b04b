"""Which trial of a sweep is the best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from synthboot.artifacts.model import Model
from synthboot.steps.context import Context


def best_trial(
    c: Context,
    trials: Mapping[str, Any],
    swept: Iterable[str],
) -> str:
    """The trial of the least validation loss; what all of them reached is recorded."""
    losses = {}
    settings = {}  # only what the sweep varies
    for trial, setting in trials.items():
        losses[trial] = c.model(f"trial/{trial}").curve["best_loss"]
        settings[trial] = {key: getattr(setting, key) for key in swept}

    best = min(losses, key=lambda trial: losses[trial])
    record = {"losses": losses, "settings": settings, "chosen": best}
    Model.open(c.folder).save_sweep(record)
    return best
