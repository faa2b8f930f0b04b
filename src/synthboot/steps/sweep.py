"""Which trial of a sweep is the best. One that diverged has lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from synthboot.artifacts.model import Model, Sweep
from synthboot.errors import TrainingError
from synthboot.steps.context import Context


def best_trial(
    c: Context,
    trials: Mapping[str, Any],
    swept: Iterable[str],
    loss: Callable[[Model], float],
) -> str:
    """The trial of the least loss; what all of them reached is recorded.

    Raises TrainingError where every one of them has diverged.
    """
    from synthboot.lm import parallel  # torch takes seconds

    losses = {}
    diverged = {}
    settings = {}  # only what the sweep varies
    for trial, setting in trials.items():
        model = c.model(f"trial/{trial}")
        settings[trial] = {key: getattr(setting, key) for key in swept}
        if model.diverged:
            diverged[trial] = model.diverged
        else:
            losses[trial] = loss(model)
    if not losses:
        raise _none_left(c, swept, diverged)

    best = min(losses, key=lambda trial: losses[trial])
    if parallel.rank() == 0:
        Model.open(c.folder).save_sweep(Sweep(losses, settings, best, diverged))
    return best


def _none_left(
    c: Context,
    swept: Iterable[str],
    diverged: Mapping[str, str],
) -> TrainingError:
    """What to raise where no trial has a model."""
    section = "tune" if c.training is None else f"arms.{c.training.arm}"
    rate = "tune.lr" if c.training is None else "optim.lr"
    advice = f"put lower rates into {section}.sweep.lr" if "lr" in swept else f"lower {rate}"
    trial, reason = next(iter(diverged.items()))
    return TrainingError(
        f"{c.folder}: all {len(diverged)} trials of {section}.sweep diverged "
        f"({trial}: {reason}); {advice}"
    )


def best_loss(model: Model) -> float:
    """The least validation loss of a trained model."""
    return model.curve.best_loss
