"""What `optim.precision: auto` and `synthesize.dtype: auto` mean: what is faster here, by trying it, and from then on the same.

A run's first model decides for the run: the choice goes to `precision.json` in its folder before anything is trained, and from
there into every configuration that is read beside it, so that arms agree, processes agree, and a run that is moved or killed
goes on as it began. Where models were made with a precision that was named, and `auto` comes later, theirs is the choice.

Only products are timed, the bulk of both kinds of work, at the model's own sizes: in turns, so that what else the machine does
slows both alike, and by medians. bfloat16 rounds, and has to be clearly faster for that; on a GPU, where it also opens faster
attention, it only must not be slower.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from synthboot import config
from synthboot.data.artifacts import MANIFEST, read_manifest
from synthboot.data.disk import read_json, write_json
from synthboot.errors import CorruptArtifact

if TYPE_CHECKING:
    import torch

FILE = "precision.json"
SETTINGS = {"training": ("optim", "precision"), "sampling": ("synthesize", "dtype")}
MARGIN = {"cpu": 1.3, "cuda": 0.9}
"""How many times as fast as float32 bfloat16 has to be, to be chosen."""

SECONDS = 0.3
"""How long each kind of work is timed, where three rounds take no longer."""

_CHOICES = ("float32", "bfloat16")
_WORK = {"cpu": 3e8, "cuda": 3e11}  # FLOPs of a round: a few milliseconds in float32


def recorded(cfg: config.Config) -> config.Config:
    """The configuration with every `auto` that its run has decided replaced by what was decided."""
    for kind, choice in _record(cfg).items():
        section, name = SETTINGS[kind]
        found = getattr(cfg, section)
        if getattr(found, name) == "auto":
            cfg = cfg.model_copy(update={section: found.model_copy(update={name: choice})})
    return cfg


def undecided(cfg: config.Config) -> list[str]:
    """The kinds of work, of `training` and `sampling`, that are left to `auto` and that the run has not decided."""
    known = _record(cfg)
    return [
        k
        for k, (section, name) in SETTINGS.items()
        if getattr(getattr(cfg, section), name) == "auto" and k not in known
    ]


def decide(cfg: config.Config, speeds: Mapping[str, float]) -> None:
    """Record what these speeds, as of `measure`, choose; what is decided already stays."""
    write_json(
        cfg.folder / FILE, {k: choice(cfg, speed) for k, speed in speeds.items()} | _record(cfg)
    )


def choice(cfg: config.Config, speed: float) -> str:
    """What a speed of bfloat16, in those of float32, leads to."""
    from synthboot.lm import model as models

    return "bfloat16" if speed >= MARGIN[models.device(cfg.engine.device).type] else "float32"


def sentence(cfg: config.Config, speeds: Mapping[str, float], ahead: bool = False) -> str:
    """The choice in words, made or, `ahead` of a run, to be made."""
    parts = [
        f"{choice(cfg, s)} for {kind} (bfloat16 is {s:.2g} times as fast)"
        for kind, s in speeds.items()
    ]
    way = "would choose" if ahead else "chose"
    kept = "" if ahead else f"; the run keeps it ({cfg.folder / FILE})"
    return f"auto {way} {', '.join(parts)}{kept}"


def measure(cfg: config.Config, *_: object) -> dict[str, float]:
    """How many times as fast as float32 bfloat16 is here, for every kind of work that is undecided. About a second."""
    import torch

    from synthboot.lm import model as models

    device = models.device(cfg.engine.device)
    width, inner = _sizes(cfg.model)
    rows = {
        "training": cfg.engine.micro_batch_tokens or cfg.optim.batch_tokens,
        "sampling": cfg.engine.sample_batch or 64,
    }
    found = {}
    for kind in undecided(cfg):
        most = int(_WORK[device.type] / (6 * width * inner))
        shape = (max(16, min(rows[kind], most)), width, inner)
        trained = kind == "training"
        single, half = (
            _products(shape, d, device, trained) for d in (torch.float32, torch.bfloat16)
        )
        found[kind] = _ratio(single, half)
    return found


def _sizes(model: config.Model) -> tuple[int, int]:
    """The width of a model's rows and that inside its MLP."""
    if model.init_from is None:
        return model.width, model.ffn or 3 * model.width
    from transformers import AutoConfig

    try:
        layout = AutoConfig.from_pretrained(
            model.init_from, trust_remote_code=False
        ).get_text_config()
    except (OSError, ValueError):
        return model.width, 3 * model.width  # base will say what is wrong with it
    return layout.hidden_size, getattr(layout, "intermediate_size", None) or 4 * layout.hidden_size


def _products(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, trained: bool
) -> Callable[[], None]:
    """The products of a linear layer: forwards, and where it is trained for both gradients."""
    import torch

    rows, width, inner = shape
    x, weight, up = (
        torch.ones(size, dtype=dtype, device=device)
        for size in ((rows, width), (inner, width), (rows, inner))
    )

    def run() -> None:
        torch.nn.functional.linear(x, weight)
        if trained:
            up @ weight
            up.T @ x
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _ratio(single: Callable[[], None], half: Callable[[], None]) -> float:
    """The median time of the first over that of the second, run in turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    begun = time.perf_counter()
    while len(taken[0]) < 4 or (time.perf_counter() - begun < SECONDS and len(taken[0]) < 200):
        for run, times in zip((single, half), taken, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return statistics.median(taken[0][1:]) / statistics.median(
        taken[1][1:]
    )  # the first round makes ready


def _record(cfg: config.Config) -> dict[str, str]:
    """What the run has decided of what is left to `auto`, by kind of work: as recorded, or as its models were made."""
    path = cfg.folder / FILE
    known = read_json(path) if path.exists() else {}
    if not isinstance(known, dict) or not all(
        k in SETTINGS and v in _CHOICES for k, v in known.items()
    ):
        raise CorruptArtifact(
            f"{path}: not a choice of precision; put back the one that was there, or delete the run"
        )
    for kind, stage in (("training", "base"), ("sampling", "synthesize")):
        if kind not in known and (made := _made(cfg.folder, stage, *SETTINGS[kind])):
            known[kind] = made
    return known


def _made(folder: Path, stage: str, section: str, name: str) -> str | None:
    """What a finished artifact of this stage was made with."""
    for path in sorted(folder.glob(f"*-{stage}/**/{MANIFEST}")):
        manifest = read_manifest(path.parent)
        found = manifest and manifest.reads.get(f"{section}.{name}")
        if found in _CHOICES:
            return str(found)
    return None
