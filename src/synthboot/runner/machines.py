"""What a machine has and what it costs: those that `machines.yaml` knows by name, one of the user's
own, and this one.

How fast this machine multiplies is measured once and kept beside the runs (`.machine.json` in the
root), so that two plans of one morning say the same. It is a property of the machine, not of a run,
and is kept under the machine's name: runs that move take nothing wrong with them.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from synthboot import config, pool, strict_yaml
from synthboot.artifacts.store import environment
from synthboot.data.disk import read_json, write_json
from synthboot.errors import ConfigError, SynthbootError
from synthboot.lm import precision

THIS = "this"
KEPT = ".machine.json"

Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
Work = Literal["embed", "pair", "train", "sample"]

_SHIPPED = Path(__file__).with_name("machines.yaml")
_COUNTED = re.compile(r"([1-9]\d{0,5})x(.+)")
_Positive = Field(gt=0, le=1e24)

Checked = TypeVar("Checked", bound=config.Section)


class Figure(config.Section):
    """A number that is assumed, and where it is from."""

    value: float = _Positive
    source: str


class Core(config.Section):
    """What one core does of the work that needs no matrix unit."""

    corpus_bytes_per_second: Figure
    self_embedding_flops: Figure
    self_fitting_flops: Figure
    pairs_per_second: Figure
    start_seconds: Figure
    process_bytes: Figure
    scoring_kept: Figure
    sampling_kept: Figure
    evaluate_seconds: Figure
    analyze_seconds: Figure
    report_seconds: Figure


class Gpu(config.Section):
    """What a GPU takes however small the model is."""

    start_seconds: Figure
    sampler_start_seconds: Figure
    layer_step_seconds: Figure
    sharing: Figure


class Assumed(config.Section):
    """What is taken of text and models that are not here."""

    document_tokens: Figure
    clusters_probed: Figure
    embedder_parameters: Figure
    embedder_dim: Figure
    expansion: Figure


class Machine(config.Section):
    """A machine of `devices` alike: GPUs, or cores where it has none.

    FLOP/s, bytes, bytes a second and dollars are of one device; `cores` are of them all.
    """

    title: str = "a machine of your own"
    kind: Literal["gpu", "tpu", "cpu"] = "gpu"
    devices: int = Field(default=1, ge=1, le=1_000_000)
    flops: dict[Dtype, Annotated[float, _Positive]] = Field(min_length=1)
    memory_bytes: float = _Positive
    memory_bytes_per_second: float = _Positive
    network_bytes_per_second: float = _Positive
    disk_bytes_per_second: float = _Positive
    cores: int = Field(ge=1, le=1_000_000)
    dollars_per_device_hour: float = Field(default=0, ge=0, le=1e6)
    source: str = "given"

    @property
    def name(self) -> str:
        """What it is called in a sentence."""
        return f"{self.devices} x {self.title}" if self.devices > 1 else self.title

    def dtype(self, wanted: str) -> Dtype:
        """The precision that a setting comes to here; where it says `auto`, what is faster by the
        margin that a run would ask for."""
        for dtype in self.flops:
            if dtype == wanted:
                return dtype
        margin = precision.MARGIN["cpu" if self.kind == "cpu" else "cuda"]
        is_faster = self.flops.get("bfloat16", 0) >= margin * self.flops.get("float32", 0)
        return "bfloat16" if is_faster else "float32"


class Figures(config.Section):
    """All of `machines.yaml`."""

    machines: dict[str, Machine]
    shares: dict[Literal["gpu", "tpu", "cpu"], dict[Work, Figure]]
    core: Core
    gpu: Gpu
    assumed: Assumed


@cache
def figures() -> Figures:
    """The machines and shares that ship with the package."""
    return _checked(_SHIPPED, Figures)


def machine(name: str, cfg: config.Config) -> Machine:
    """The machine of a name, such as `h100`, `8xh100` or `this`, or in a YAML file.

    Raises ConfigError for a name that is not known, or a file that describes no machine.
    """
    if name.lower() == THIS:
        return this(cfg)
    if name.endswith((".yaml", ".yml")):
        return _checked(Path(name), Machine)

    count = 1
    single = name.lower()
    if counted := _COUNTED.fullmatch(single):
        count = int(counted[1])
        single = counted[2]
    chosen = figures().machines.get(single)
    if chosen is None:
        names = ", ".join([*figures().machines, THIS])
        raise ConfigError(
            f"--hardware: {name!r} is not known; choose one of {names}, several such as 8xh100, "
            f"or a YAML file that describes it (docs/scaling-out.md)"
        )
    counts = {"devices": count * chosen.devices, "cores": count * chosen.cores}
    return chosen.model_copy(update=counts)


def this(cfg: config.Config) -> Machine:
    """This machine, as far as it can be known: its GPUs by their name, or as many cores as the run
    has processes."""
    root = Path(cfg.root)
    devices = pool.jobs(cfg.engine.jobs, cfg.engine.device)
    if cfg.engine.device != "cpu" and pool.gpus() and (gpu := _gpu(root)) is not None:
        # more jobs than GPUs share them
        devices = min(devices, len(pool.gpus()))
        return gpu.model_copy(update={"devices": devices, "cores": os.cpu_count() or 1})

    name = f"{_processor()}, {environment()['machine']}"
    rates = {dtype: kept(root, f"{name}, {dtype}", partial(core_flops, dtype)) for dtype in DTYPES}
    measured = {
        "title": "core of this machine",
        "devices": devices,
        "cores": len(os.sched_getaffinity(0)),
        "flops": rates,
        "memory_bytes": memory_bytes() / devices,
        "source": f"matrix products measured here once and kept in {root / KEPT}; "
        "memory bandwidth and disk as of a laptop",
    }
    return figures().machines["laptop"].model_copy(update=measured)


def memory_bytes(root: Path = Path("/")) -> float:
    """The memory that this process may use: that of the machine, or less where a job of Slurm or a
    container is given less (control groups, of both versions, below `root`)."""
    found = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    groups = ""
    with suppress(OSError):
        groups = (root / "proc/self/cgroup").read_text()
    for line in groups.splitlines():
        _, kinds, group = line.split(":", 2)
        top, name = root / "sys/fs/cgroup", "memory.max"
        if "memory" in kinds.split(","):
            top, name = top / "memory", "memory.limit_in_bytes"
        elif kinds:
            continue
        # whatever a group above may not have, its own may not have either; in a container the path
        # is that of the machine, and of its groups only the top one is seen
        own = top / group.lstrip("/")
        for folder in (own, *own.parents):
            with suppress(OSError, ValueError):  # not there, or "max"
                found = min(found, float(int((folder / name).read_text())))
    return found


def kept(root: Path, name: str, measure: Callable[[], float]) -> float:
    """FLOP/s of a device by its name, measured the first time and read from beside the runs
    afterwards."""
    path = root / KEPT
    rates: dict[str, float] = {}
    with suppress(SynthbootError, TypeError, ValueError):  # not there, or not what is written here
        rates = {str(key): float(value) for key, value in dict(read_json(path)).items()}
    if not rates.get(name, 0) > 0:
        rates[name] = measure()
        with suppress(SynthbootError, OSError):  # planning does not need a root that can be written
            root.mkdir(parents=True, exist_ok=True)
            write_json(path, rates)
    return rates[name]


def core_flops(dtype: Dtype) -> float:
    """FLOP/s of one core, in products of 512 x 512: the best of several, by the core's own time, so
    that other work does not count."""
    # imported before threads are limited: what comes later would have its own
    import torch
    from threadpoolctl import threadpool_limits

    matrix = torch.ones((512, 512), dtype=getattr(torch, dtype))
    seconds = []
    with threadpool_limits(1):
        for _ in range(12):
            start = time.thread_time()
            matrix @ matrix
            seconds.append(time.thread_time() - start)
    return 2 * 512**3 / min(seconds)


def _gpu(root: Path) -> Machine | None:
    """The GPU here, by its name or, where that is not known, by trying; None where torch sees
    none."""
    import torch

    from synthboot.lm.model import product_rate

    if not torch.cuda.is_available():
        return None
    title = torch.cuda.get_device_name()
    for name, card in figures().machines.items():
        if card.kind == "gpu" and name in title.lower():
            return card

    place = torch.device("cuda")
    rate = kept(root, title, lambda: product_rate(place, torch.bfloat16))
    like = figures().machines["a100"]
    size = rate / like.flops["bfloat16"]
    guessed = {
        "title": title,
        "flops": {"bfloat16": rate, "float32": rate / 8},
        "memory_bytes": float(torch.cuda.get_device_properties(place).total_memory),
        "memory_bytes_per_second": size * like.memory_bytes_per_second,
        "network_bytes_per_second": size * like.network_bytes_per_second,
        "dollars_per_device_hour": 0.0,
        "source": f"matrix products measured here once and kept in {root / KEPT}; "
        "bandwidths in the proportions of an A100",
    }
    return like.model_copy(update=guessed)


def _processor() -> str:
    """The name of this machine's processor, as Linux has it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "a processor"


def _checked(path: Path, kind: type[Checked]) -> Checked:
    raw, lines = strict_yaml.read(path)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = tuple(part for part in first["loc"] if part != "[key]")
        line = lines.get(place)
        where = f"{path} line {line}" if line else str(path)
        named = strict_yaml.dotted(place) or kind.__name__.lower()
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(f"{where}: {named}: {reason}") from None
