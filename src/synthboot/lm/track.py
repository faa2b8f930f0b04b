"""Where the figures of a training run go while it runs: nowhere unless asked.

TensorBoard, Weights & Biases, trackio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synthboot.errors import ConfigError

Watch = Callable[[int, Mapping[str, float]], None]
"""Takes the tokens trained on so far and figures by name."""


def unwatched(tokens: int, values: Mapping[str, float]) -> None:
    """Drops everything."""


def watch(
    kinds: Sequence[str],
    folder: Path,
    run: str,
    name: str,
) -> Watch:
    """What sends figures to every tracker of `kinds`.

    TensorBoard's files lie in `folder`; the others get `run` as the project and `name` as the run.
    Raises ConfigError where one is not installed.
    """
    targets: list[Watch] = []
    for kind in kinds:
        if kind == "tensorboard":
            targets.append(_tensorboard(folder / name))
        else:
            places = {"dir": str(folder)} if kind == "wandb" else {}
            targets.append(_logger(kind, project=run, name=name, **places))
    if not targets:
        return unwatched

    def send(tokens: int, values: Mapping[str, float]) -> None:
        for target in targets:
            target(tokens, values)

    return send


def _tensorboard(folder: Path) -> Watch:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _missing("tensorboard") from None
    writer: Any = SummaryWriter(str(folder))

    def send(tokens: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, tokens)
        writer.flush()  # a run that is killed leaves what it had

    return send


def _logger(module: str, **options: Any) -> Watch:
    import importlib

    try:
        tracker: Any = importlib.import_module(module)
    except ImportError:
        raise _missing(module) from None
    run = tracker.init(**options)
    return lambda tokens, values: run.log({**values, "tokens": tokens})


def _missing(package: str) -> ConfigError:
    return ConfigError(
        f"engine.track: {package}: is not installed: pip install {package}, or leave it out"
    )
