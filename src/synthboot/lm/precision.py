"""What `optim.precision: auto` and `synthesize.dtype: auto` mean: what is faster here, as tried.

A run's first model decides for the run: the choice goes to `precision.json` in its folder before
anything is trained, and from there into every configuration that is read beside it, so that arms
agree, processes agree, and a run that is moved or killed goes on as it began. Where models were
made with a precision that was named, and `auto` comes later, theirs is the choice.

Only matmuls are timed, the bulk of both kinds of work, at the model's own sizes: in turns, so that
what else the machine does slows both alike, and by medians. bfloat16 rounds, and has to be clearly
faster for that; on a GPU, where it also opens faster attention, it only must not be slower.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from timeit import timeit
from typing import TYPE_CHECKING, Any

from synthboot import config, pool
from synthboot.artifacts.store import MANIFEST, read_manifest
from synthboot.data.disk import read_json, storage_errors, write_json
from synthboot.errors import CorruptArtifact

if TYPE_CHECKING:
    import torch

FILE = "precision.json"

SETTINGS = {"training": ("optim", "precision"), "sampling": ("synthesize", "dtype")}
"""The setting of each kind of work: its section and its name."""

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
        settings = getattr(cfg, section)
        if getattr(settings, name) == "auto":
            decided = settings.model_copy(update={name: choice})
            cfg = cfg.model_copy(update={section: decided})
    return cfg


def undecided(cfg: config.Config) -> list[str]:
    """The kinds of work, `training` or `sampling`, left to `auto` and not decided by the run."""
    choices = _record(cfg)
    kinds = []
    for kind, (section, name) in SETTINGS.items():
        setting = getattr(getattr(cfg, section), name)
        if setting == "auto" and kind not in choices:
            kinds.append(kind)
    return kinds


def decided(
    cfg: config.Config,
    note: Callable[[str], None] = lambda _: None,
) -> config.Config:
    """The configuration with a precision where it says `auto`: the run's, or what is faster here,
    which then is the run's.

    `note` is given the choice in words where it is made now.
    """
    if undecided(cfg):
        running = pool.opened()  # torch stays out of this process
        try:
            running.start("precision", measure, cfg)
            kind = "note"  # of a cluster that has no room yet
            while kind == "note":
                [(_, kind, value)] = running.wait()
        finally:
            running.close()
        if kind != "done":
            raise value
        decide(cfg, value)
        note(sentence(cfg, value))
    return recorded(cfg)


def decide(cfg: config.Config, speeds: Mapping[str, float]) -> None:
    """Record what these speeds, as of `measure`, choose; what is decided already stays."""
    choices = {kind: choice(cfg, speed) for kind, speed in speeds.items()}
    write_json(cfg.folder / FILE, choices | _record(cfg))


def choice(cfg: config.Config, speed: float) -> str:
    """What a speed of bfloat16, in those of float32, leads to."""
    from synthboot.lm import model as models

    device = models.device(cfg.engine.device)
    return "bfloat16" if speed >= MARGIN[device.type] else "float32"


def sentence(
    cfg: config.Config,
    speeds: Mapping[str, float],
    ahead: bool = False,
) -> str:
    """The choice in words, made or, `ahead` of a run, to be made."""
    parts = []
    for kind, speed in speeds.items():
        times = f"bfloat16 is {speed:.2g} times as fast"
        parts.append(f"{choice(cfg, speed)} for {kind} ({times})")
    choices = ", ".join(parts)
    if ahead:
        return f"auto would choose {choices}"
    return f"auto chose {choices}; the run keeps it ({cfg.folder / FILE})"


def measure(cfg: config.Config, *_: object) -> dict[str, float]:
    """How many times as fast as float32 bfloat16 is here, for every kind of work that is undecided.

    Takes about a second.
    """
    import torch

    from synthboot.lm import model as models

    device = models.device(cfg.engine.device)
    width, inner = _sizes(cfg.model)
    rows = {
        "training": cfg.engine.micro_batch_tokens or cfg.optim.batch_tokens,
        "sampling": cfg.engine.sample_batch or 64,
    }
    # three matmuls of 2 x rows x width x inner FLOPs each
    most = int(_WORK[device.type] / (6 * width * inner))
    speeds = {}
    for kind in undecided(cfg):
        # at least 16, so that matmuls stay matmuls for a model that is wide
        shape = (max(16, min(rows[kind], most)), width, inner)
        is_training = kind == "training"
        single = _matmuls(shape, torch.float32, device, is_training)
        half = _matmuls(shape, torch.bfloat16, device, is_training)
        speeds[kind] = speed_ratio(single, half)
    return speeds


def _sizes(model: config.Model) -> tuple[int, int]:
    """The width of a model's rows and that inside its MLP."""
    if model.init_from is None:
        return model.width, model.ffn or 3 * model.width
    from transformers import AutoConfig

    try:
        cfg = AutoConfig.from_pretrained(model.init_from, trust_remote_code=False)
        layout = cfg.get_text_config()
    except (OSError, ValueError):
        return model.width, 3 * model.width  # base will say what is wrong with it
    inner = getattr(layout, "intermediate_size", None) or 4 * layout.hidden_size
    return layout.hidden_size, inner


def _matmuls(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    is_training: bool,
) -> Callable[[], None]:
    """The matmuls of a linear layer: forwards, and where it is trained for both gradients."""
    import torch

    rows, width, inner = shape
    x = torch.ones((rows, width), dtype=dtype, device=device)
    weight = torch.ones((inner, width), dtype=dtype, device=device)
    gradient = torch.ones((rows, inner), dtype=dtype, device=device)

    def run() -> None:
        torch.nn.functional.linear(x, weight)
        if is_training:
            gradient @ weight
            gradient.T @ x
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def speed_ratio(single: Callable[[], None], half: Callable[[], None]) -> float:
    """The median time of the first over that of the second, run in turns."""
    single_seconds: list[float] = []
    half_seconds: list[float] = []
    started = time.perf_counter()
    while len(single_seconds) < 4 or (
        time.perf_counter() - started < SECONDS and len(single_seconds) < 200
    ):
        single_seconds.append(timeit(single, number=1))
        half_seconds.append(timeit(half, number=1))
    # the first round makes ready
    return statistics.median(single_seconds[1:]) / statistics.median(half_seconds[1:])


def _record(cfg: config.Config) -> dict[str, str]:
    """What the run has decided of what is left to `auto`, by kind of work.

    As recorded, or as its models were made.
    """
    path = cfg.folder / FILE
    choices: Any = None
    try:
        with storage_errors(path):  # a root that cannot be looks at this file first
            choices = read_json(path) if path.exists() else {}
    except CorruptArtifact:
        pass  # as what is no choice
    # it decides what is trained, so a file that says anything else is no file to go on from
    if not _is_record(choices):
        raise CorruptArtifact(
            f"{path}: not a choice of precision; put back the one that was there, or delete it: "
            "what finished models were made in is known from them, else it is measured again"
        )
    for kind, stage in (("training", "base"), ("sampling", "synthesize")):
        if kind not in choices and (precision := _made_with(cfg.folder, stage, *SETTINGS[kind])):
            choices[kind] = precision
    return choices


def _is_record(record: object) -> bool:
    if not isinstance(record, dict):
        return False
    known_kinds = all(kind in SETTINGS for kind in record)
    return known_kinds and all(value in _CHOICES for value in record.values())


def _made_with(
    folder: Path,
    stage: str,
    section: str,
    name: str,
) -> str | None:
    """What a finished artifact of this stage was made with."""
    for path in sorted(folder.glob(f"*-{stage}/**/{MANIFEST}")):
        manifest = read_manifest(path.parent)
        setting = manifest and manifest.reads.get(f"{section}.{name}")
        if setting in _CHOICES:
            return str(setting)
    return None
