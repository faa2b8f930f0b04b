"""Where the figures of a training run go while it runs: TensorBoard, Weights & Biases, trackio; nowhere unless asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synthboot.errors import ConfigError

Watch = Callable[[int, Mapping[str, float]], None]
"""Takes the tokens trained on so far and figures by name."""


def unwatched(tokens: int, values: Mapping[str, float]) -> None:
    """Drops everything."""


def watch(kinds: Sequence[str], folder: Path, run: str, name: str) -> Watch:
    """Send figures to every tracker of `kinds`. TensorBoard's files lie in `folder`; the others get `run` as the project and
    `name` as the run. Raises ConfigError where one is not installed."""
    targets = [_OPEN[kind](folder, run, name) for kind in kinds]
    if not targets:
        return unwatched

    def send(tokens: int, values: Mapping[str, float]) -> None:
        for target in targets:
            target(tokens, values)

    return send


def _tensorboard(folder: Path, run: str, name: str) -> Watch:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _missing("tensorboard") from None
    writer: Any = SummaryWriter(str(folder / name))

    def send(tokens: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, tokens)
        writer.flush()

    return send


def _wandb(folder: Path, run: str, name: str) -> Watch:
    return _logger("wandb", project=run, name=name, dir=str(folder))


def _trackio(folder: Path, run: str, name: str) -> Watch:
    return _logger("trackio", project=run, name=name)


def _logger(module: str, **options: Any) -> Watch:
    import importlib

    try:
        tracker: Any = importlib.import_module(module)
    except ImportError:
        raise _missing(module) from None
    opened = tracker.init(**options)
    return lambda tokens, values: opened.log({**values, "tokens": tokens})


def _missing(package: str) -> ConfigError:
    return ConfigError(
        f"engine.track: {package}: is not installed: pip install {package}, or leave it out"
    )


_OPEN: dict[str, Callable[[Path, str, str], Watch]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
