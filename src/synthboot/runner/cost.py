"""What a run will cost, and what it will be able to show, before anything is started.

Cost: what each artifact takes (`work`) over what a machine does (`machines`). On this machine the
rate of a stage is that of finished artifacts, of this run or else of others beside it, where there
are some; `check` holds such predictions to what finished artifacts took.

Power: where the run folder holds an evaluation of two seeds or more, the smallest difference to
repetition that the configured number of seeds, and more of them, would show.
"""

from __future__ import annotations

import heapq
import math
import statistics as numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from synthboot import config, recipes, statistics
from synthboot.artifacts.evaluation import Evaluation
from synthboot.artifacts.store import MANIFEST, Manifest, environment, read_manifest
from synthboot.errors import CorruptArtifact, DataError
from synthboot.lm.batches import tokens_until_copying
from synthboot.recipes import STAGES, Unit, folder_of
from synthboot.runner import machines, torchrun
from synthboot.runner.machines import THIS, Machine, known
from synthboot.runner.state import State
from synthboot.runner.unit import PARALLEL
from synthboot.runner.work import Sizes, Work, Workload, is_copy, sizes

_MORE_SEEDS = (5, 10)
_FREE = 0.9
"""The share of a device's memory that may be planned for: libraries and fragments take the rest."""
_LEAST_SECONDS = 2.0
"""Artifacts that took less say nothing of a rate: most of it was starting."""
_TRAINED = ("base", "tune", "pretrain")
_SHARES: dict[str, machines.Work] = {
    "embed": "embed",
    "pair": "pair",
    "base": "train",
    "tune": "train",
    "pretrain": "train",
    "score": "train",
    "synthesize": "sample",
}
_FIXED: dict[str, Callable[[machines.Core], machines.Figure]] = {
    "evaluate": lambda core: core.evaluate_seconds,
    "analyze": lambda core: core.analyze_seconds,
    "report": lambda core: core.report_seconds,
}
"""Stages whose work is not counted: they take seconds."""


@dataclass(frozen=True)
class Rate:
    """How fast a stage is expected to be: units of its work (FLOPs, or tokens where it has none)
    a second, and where that is from.

    None: seconds follow from the machine.
    """

    per_second: float | None
    source: str


@dataclass(frozen=True)
class Row:
    """What the artifacts of one stage that are not done will take, all of them together.

    Hours are those of devices and those on the clock, if nothing else ran; money is for the former.
    """

    stage: str
    artifacts: int
    tokens: float
    flops: float
    read_bytes: float
    written_bytes: float
    kept_bytes: float
    memory_bytes: float
    device_hours: float | None
    hours: float | None
    dollars: float | None
    rate: str


@dataclass(frozen=True)
class Plan:
    """What is still to be done, stage by stage, on a machine.

    Hours on the clock are those with as many artifacts side by side as the machine has room for;
    money is for all of its devices that long. There are none where `misfits` says why the machine
    cannot do it.
    """

    machine: Machine
    corpus: Sizes
    rows: list[Row]
    hours: float | None
    dollars: float | None
    misfits: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checked:
    """One finished artifact: the seconds that it took, and those predicted without it."""

    artifact: str
    predicted: float
    actual: float
    rate: str

    @property
    def ratio(self) -> float:
        """Predicted over actual."""
        return self.predicted / self.actual


def units_anywhere(cfg: config.Config) -> dict[str, Unit]:
    """The artifacts of a configuration, whether its text is on this machine or not.

    Text that is missing counts as what the finished corpus was made of, if there is one.
    """
    try:
        return recipes.units(cfg)
    except DataError:
        manifest = read_manifest(folder_of(cfg.folder, "corpus"))
        made_of = {} if manifest is None else manifest.reads
        missing = ["not on this machine"]
        return recipes.units(
            cfg,
            {
                "files": made_of.get("files", missing),
                "replay_files": made_of.get("replay_files", missing),
            },
        )


def plan(
    cfg: config.Config,
    units: dict[str, Unit],
    states: Mapping[str, State],
    hardware: str = THIS,
) -> Plan:
    """What the artifacts that are not done will take on a machine (`machines.machine`)."""
    machine = machines.machine(hardware, cfg)
    workload = Workload(cfg, sizes(cfg, _files(units)))
    finished = _finished(cfg) if hardware.lower() == THIS else {}
    estimator = _Estimator(cfg, workload, machine, finished)
    todo = {name: unit for name, unit in units.items() if states[name].status != "done"}

    works = {name: workload.of(unit) for name, unit in todo.items()}
    problems = (estimator.misfit(unit, works[name]) for name, unit in todo.items())
    misfits = list(dict.fromkeys(problem for problem in problems if problem is not None))
    seconds = {name: estimator.seconds(unit, works[name]) for name, unit in todo.items()}
    needs = {name: estimator.devices(unit) for name, unit in todo.items()}
    fits = not misfits
    rows = []
    for stage in STAGES:
        of_stage = [name for name, unit in todo.items() if unit.stage == stage]
        if not of_stage:
            continue
        total = _sum(works[name] for name in of_stage)
        device_hours = sum(seconds[name] * needs[name] for name in of_stage) / 3600
        alone = _clock({name: todo[name] for name in of_stage}, seconds, needs, machine.devices)
        rows.append(
            Row(
                stage=stage,
                artifacts=len(of_stage),
                tokens=total.tokens,
                flops=total.flops,
                read_bytes=total.read_bytes,
                written_bytes=total.written_bytes,
                kept_bytes=total.kept_bytes,
                memory_bytes=max(estimator.memory(todo[name], works[name]) for name in of_stage),
                device_hours=device_hours if fits else None,
                hours=alone / 3600 if fits else None,
                dollars=device_hours * machine.dollars_per_device_hour if fits else None,
                rate=estimator.rate(stage).source,
            )
        )
    hours = _clock(todo, seconds, needs, machine.devices) / 3600
    dollars = hours * machine.devices * machine.dollars_per_device_hour
    return Plan(
        machine=machine,
        corpus=workload.corpus,
        rows=rows,
        hours=hours if fits else None,
        dollars=dollars if fits else None,
        misfits=misfits,
        notes=estimator.notes(todo, works, seconds),
    )


def estimate(
    cfg: config.Config,
    units: dict[str, Unit],
    states: Mapping[str, State],
) -> dict[str, float]:
    """Totals over what is not done, on this machine: `train_tokens`, `sampled_tokens`, `flops`,
    `hours`, `bytes`."""
    return totals(plan(cfg, units, states))


def totals(found: Plan) -> dict[str, float]:
    """Totals of a plan; no `hours` where the machine cannot do it."""
    result = {
        "train_tokens": sum(row.tokens for row in found.rows if row.stage in _TRAINED),
        "sampled_tokens": sum(row.tokens for row in found.rows if row.stage == "synthesize"),
        "flops": sum(row.flops for row in found.rows),
        "bytes": sum(row.kept_bytes for row in found.rows),
    }
    return result if found.hours is None else {**result, "hours": found.hours}


def sentence(cost: dict[str, float], machine: str = "this machine") -> str:
    """The totals in words."""
    if not cost["train_tokens"] and not cost["sampled_tokens"]:
        return "nothing to train or to sample"
    hours = cost.get("hours")
    time = (
        "" if hours is None else f"on {machine} about {duration(hours)} (to a factor of two) and "
    )
    return (
        f"to do: {cost['train_tokens']:,.0f} tokens to train on and "
        f"{cost['sampled_tokens']:,.0f} to sample, {cost['flops']:.2g} FLOPs; "
        f"{time}{cost['bytes'] / 2**20:,.0f} MiB"
    )


def duration(hours: float) -> str:
    """Hours in words, minutes where there are few of them."""
    if hours < 1:
        return f"{max(1, math.ceil(60 * hours))} minutes"
    return f"{hours:,.1f} hours" if hours < 100 else f"{hours:,.0f} hours"


def check(cfg: config.Config, units: dict[str, Unit]) -> list[Checked]:
    """Predicted beside actual seconds, for every finished artifact made by these settings.

    Each is predicted without itself: by the rate of the others of its stage, of this run or of
    those beside it, and where there are none by what is assumed of this machine.
    """
    machine = machines.this(cfg)
    workload = Workload(cfg, sizes(cfg, _files(units)))
    finished = _finished(cfg)
    rows = []
    for name, unit in units.items():
        folder = unit.folder(cfg.folder)
        manifest = finished.get(folder)
        if manifest is None or manifest.reads != unit.reads:
            continue
        others = {path: other for path, other in finished.items() if path != folder}
        estimator = _Estimator(cfg, workload, machine, others)
        predicted = estimator.seconds(unit, workload.of(unit))
        rate = estimator.rate(unit.stage).source
        rows.append(Checked(name, predicted, float(manifest.cost["seconds"]), rate))
    return rows


def median_error(checked: Iterable[Checked]) -> float:
    """The median of how far predictions are off, as a factor: 1.3 is 30 % too much or too
    little."""
    return math.exp(numbers.median(abs(math.log(row.ratio)) for row in checked))


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"


def copying(cfg: config.Config, units: dict[str, Unit]) -> dict[str, float] | None:
    """`expected_tokens` after which base would copy from its context, and the `share` of them at
    which it ends.

    None where nothing is tuned from it, or it starts from a model that copies already.
    """
    tunes = any(unit.stage == "tune" for unit in units.values())
    if cfg.model.init_from is not None or not tunes:
        return None
    expected = tokens_until_copying(cfg.optim.batch_tokens)
    return {"expected_tokens": expected, "share": cfg.budget.train_tokens / expected}


def copying_sentence(cfg: config.Config, found: dict[str, float]) -> str:
    """The same in words."""
    words = (
        f"copying: at {cfg.optim.batch_tokens:,} tokens a step a model copies from its context "
        f"after about {found['expected_tokens'] / 1e6:,.1f}M tokens (arXiv:2511.16893); "
        f"base ends at {found['share']:.1%} of that"
    )
    if found["share"] < 1:
        words += ": smaller steps come there sooner, else tuning has to teach it"
    return words


@dataclass(frozen=True)
class Power:
    """The smallest true difference between `subject` and repetition, in nats per token, that a
    number of seeds shows four times in five."""

    subject: str
    detectable: dict[int, float]


def power(cfg: config.Config, units: dict[str, Unit]) -> Power | None:
    """What more seeds would show, by the noise of the evaluation in the run folder.

    None where there is none, or where it has one seed or no arm of the method.
    """
    folder = units["evaluate"].folder(cfg.folder)
    try:
        measured = Evaluation.open(folder).chosen.get("power")
    except CorruptArtifact:
        return None  # not there, or damaged: `run` makes it, and says so
    if measured is None:
        return None

    noise = statistics.Components(**measured["noise"])
    numbers = sorted({len(cfg.pretrain.seeds), *_MORE_SEEDS} - {1})
    return Power(
        measured["subject"],
        {
            seeds: statistics.detectable(noise, seeds, measured["items"], cfg.evaluate.confidence)
            for seeds in numbers
        },
    )


def power_sentence(found: Power) -> str:
    """What more seeds would show, in words."""
    (fewest, difference), *more = found.detectable.items()
    further = "".join(f", {seeds} seeds {value:.4f}" for seeds, value in more)
    return (
        f"power: by the noise of the evaluation that is there, {fewest} seeds show a difference of "
        f"{found.subject} to repetition of {difference:.4f} nats per token or more "
        f"four times in five{further}"
    )


class _Estimator:
    """Work into seconds on one machine; `finished` are manifests by folder that say how fast it
    was."""

    def __init__(
        self,
        cfg: config.Config,
        workload: Workload,
        machine: Machine,
        finished: Mapping[Path, Manifest],
    ) -> None:
        self.cfg = cfg
        self.workload = workload
        self.machine = machine
        self.finished = finished
        self.shares = known().shares[machine.kind]
        self.start = known().core.start_seconds.value
        self.train_dtype = machine.dtype(cfg.optim.precision)
        self.sample_dtype = machine.dtype(cfg.synthesize.dtype)

    def devices(self, unit: Unit) -> int:
        """How many devices the artifact's work keeps."""
        processes = self.cfg.engine.processes
        if unit.stage in torchrun.STAGES and processes > 1:
            return min(processes, self.machine.devices)
        return self.machine.devices if unit.stage in PARALLEL else 1

    def rate(self, stage: str) -> Rate:
        """The rate of a stage by finished artifacts, of this run if it has any; else None, and what
        share of the machine is assumed."""
        mine = self.cfg.folder
        for where, is_near in (("this run", True), (f"runs in {self.cfg.root}", False)):
            rates = []
            for folder, manifest in self.finished.items():
                if manifest.stage == stage and (mine in folder.parents or not is_near):
                    rates += _rates(manifest, self.start)
            if rates:
                many = f"{len(rates)} finished artifact{'s' * (len(rates) > 1)}"
                return Rate(numbers.median(rates), f"as {many} of {where}")
        return Rate(None, self._assumed(stage))

    def seconds(self, unit: Unit, work: Work) -> float:
        """How long the artifact takes on its devices."""
        if is_copy(unit):
            return self.start
        rate = self.rate(unit.stage).per_second
        if unit.stage in _FIXED:
            return 1 / rate if rate is not None else _FIXED[unit.stage](known().core).value
        if rate is not None:
            return self.start + _amount(unit.stage, work.flops, work.tokens) / rate
        devices = self.devices(unit)
        disk = (work.read_bytes + work.written_bytes) / self.machine.disk_bytes_per_second
        network = work.exchanged_bytes / self.machine.network_bytes_per_second
        # Reading, exchanging and computing go on side by side, so that the slowest one counts.
        return self.start + max(disk, network, self._computing(unit, work, devices))

    def memory(self, unit: Unit, work: Work) -> float:
        """Bytes of each device."""
        if unit.stage == "synthesize":
            rows = self._sampled_rows(work)
            return work.memory + rows * work.row_tokens * self._cache_bytes()
        if unit.stage in _TRAINED and not is_copy(unit):
            return self._training_memory(self._micro_batch(unit))
        return work.memory

    def misfit(self, unit: Unit, work: Work) -> str | None:
        """Why an artifact cannot be made on this machine, and what would do; None where it can."""
        room = _FREE * self.machine.memory_bytes
        needed = self.memory(unit, work)
        processes = self.cfg.engine.processes
        if unit.stage in torchrun.STAGES and processes > self.machine.devices:
            return (
                f"engine.processes is {processes}, and {self.machine.name} has "
                f"{self.machine.devices} device{'s' * (self.machine.devices > 1)}: "
                f"take more devices, or fewer processes"
            )
        if needed <= room:
            return None
        if unit.stage in _TRAINED:
            kind, instead = "training", self._instead(room)
        elif unit.stage == "synthesize" and work.memory < room:
            rows = int((room - work.memory) / (work.row_tokens * self._cache_bytes()))
            kind, instead = "sampling", f"engine.sample_batch={max(1, rows)} would fit"
        else:
            kind, instead = unit.stage, "its model alone does not fit; take a larger device"
        return (
            f"{kind} needs {size(needed)} of a device, and {size(room)} of the memory of "
            f"{self.machine.title} can be planned for: {instead}"
        )

    def notes(
        self,
        todo: Mapping[str, Unit],
        works: Mapping[str, Work],
        seconds: Mapping[str, float],
    ) -> list[str]:
        """What the table cannot say."""
        found = []
        host = max((work.host_memory for work in works.values()), default=0.0)
        if host > 2**36:
            found.append(f"pairing holds {size(host)} of vectors and neighbours in memory")
        for name, unit in todo.items():
            on_core = works[name].core_seconds
            if unit.stage == "corpus" and self.machine.kind != "cpu" and on_core > 3600:
                found.append(
                    "the corpus is read by one process, without a GPU: make it on a machine that "
                    f"costs less ({duration(seconds[name] / 3600)})"
                )
        processes = self.cfg.engine.processes
        if processes == 1 and self.machine.kind == "gpu" and self.machine.devices > 1:
            models = sum(unit.stage in _TRAINED for unit in todo.values())
            found.append(
                f"each model is trained on one device, {models} models in all; "
                f"engine.processes={self.machine.devices} trains each on all"
            )
        return found

    def _assumed(self, stage: str) -> str:
        cpu_work = known().core
        if stage == "corpus":
            figure = cpu_work.corpus_bytes_per_second
            return f"{figure.value / 1e6:.3g} MB of text a second by one core ({figure.source})"
        if stage == "embed" and self.cfg.embed.model == "self":
            figure = cpu_work.self_embedding_flops
            return f"{figure.value / 1e9:.3g} GFLOP/s a core ({figure.source})"
        share = _SHARES.get(stage)
        if share is None:
            return "a few seconds, assumed"
        figure = self.shares[share]
        dtype = self._dtype(stage)
        peak = f"{self.machine.flops[dtype] / 1e12:,.3g} TFLOP/s in {dtype}"
        if stage == "synthesize":
            peak += f" or {size(self.machine.memory_bytes_per_second)}/s, what is slower"
        return f"{figure.value:.0%} of {peak} ({figure.source})"

    def _dtype(self, stage: str) -> machines.Dtype:
        if stage in ("embed", "pair"):
            return self.machine.dtype("bfloat16" if self.machine.kind != "cpu" else "float32")
        return self.sample_dtype if stage == "synthesize" else self.train_dtype

    def _computing(self, unit: Unit, work: Work, devices: int) -> float:
        """Seconds of arithmetic, and of memory where that is what sampling waits for."""
        if unit.stage == "corpus":
            return work.core_seconds
        cores = max(1, min(self.machine.cores, devices if self.machine.kind == "cpu" else 10**6))
        if unit.stage == "embed" and self.cfg.embed.model == "self":
            return work.core_seconds / cores
        peak = self.machine.flops[self._dtype(unit.stage)]
        share = self.shares[_SHARES[unit.stage]].value
        busy = work.flops / (peak * share * devices)
        if unit.stage in _TRAINED and self.cfg.engine.checkpoint_activations:
            busy *= 4 / 3  # the forward pass once more
        if unit.stage == "pair":
            busy += work.core_seconds / cores
        if unit.stage == "synthesize":
            bandwidth = self.machine.memory_bytes_per_second * share
            busy = max(busy, self._sampling_bytes(work) / (bandwidth * devices))
        return busy

    def _sampling_bytes(self, work: Work) -> float:
        """What decoding reads from memory: all weights for every step, and for every row the cache
        of what it has read so far."""
        weights = self.workload.model.parameters * _bytes(self.sample_dtype)
        context = work.row_tokens - work.tokens / work.requests / 2  # half of d2 on average
        for_token = weights / self._sampled_rows(work) + context * self._cache_bytes()
        return work.tokens * for_token

    def _cache_bytes(self) -> float:
        """Keys and values of one token."""
        model = self.workload.model
        return 2 * model.layers * model.kv_width * _bytes(self.sample_dtype)

    def _sampled_rows(self, work: Work) -> float:
        """Rows decoded at once: as set, or as many as memory has room for, 512 at most."""
        if self.cfg.engine.sample_batch is not None:
            return float(self.cfg.engine.sample_batch)
        room = _FREE * self.machine.memory_bytes - work.memory
        return min(512.0, max(24.0, room / (work.row_tokens * self._cache_bytes())))

    def _micro_batch(self, unit: Unit) -> float:
        """Tokens that one device reads at once in training."""
        batch = self.cfg.tune.batch_tokens if unit.stage == "tune" else self.cfg.optim.batch_tokens
        each = batch / self.cfg.engine.processes
        return min(each, self.cfg.engine.micro_batch_tokens or each)

    def _training_memory(
        self,
        micro_batch: float,
        processes: int | None = None,
        recomputed: bool | None = None,
    ) -> float:
        engine = self.cfg.engine
        state = self.workload.state_bytes()
        if processes is not None or (engine.shard and engine.processes > 1):
            state /= processes or engine.processes
        again = engine.checkpoint_activations if recomputed is None else recomputed
        dtype_bytes = _bytes(self.train_dtype)
        return state + self.workload.activation_bytes(micro_batch, dtype_bytes, again)

    def _instead(self, room: float) -> str:
        """Settings that would fit, the least change first."""
        seq_len = self.cfg.model.seq_len
        for recomputed in (self.cfg.engine.checkpoint_activations, True):
            least = self._training_memory(seq_len, recomputed=recomputed)
            if least <= room:
                rows = 1
                while self._training_memory(2 * rows * seq_len, recomputed=recomputed) <= room:
                    rows *= 2
                again = ", engine.checkpoint_activations=true" if recomputed else ""
                return f"engine.micro_batch_tokens={rows * seq_len}{again} would fit"
        for processes in (2**power for power in range(1, 14)):
            if self._training_memory(seq_len, processes, recomputed=True) <= room:
                return (
                    f"engine.processes={processes}, engine.shard=true, "
                    f"engine.checkpoint_activations=true, engine.micro_batch_tokens={seq_len} "
                    f"would fit, on as many devices"
                )
        return "not even a row of it fits; take a smaller model"


def _bytes(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else 4


def _clock(
    todo: Mapping[str, Unit],
    seconds: Mapping[str, float],
    needs: Mapping[str, int],
    devices: int,
) -> float:
    """Seconds until all are made, each begun once its parents are done and its devices are free, in
    the order of the plan."""
    waiting = dict(todo)
    running: list[tuple[float, str]] = []  # when it will be done, and what
    now = 0.0
    while waiting or running:
        busy = {name for _, name in running}
        free = devices - sum(needs[name] for name in busy)
        for name, unit in list(waiting.items()):
            held = any(parent in waiting or parent in busy for parent in unit.parents.values())
            if not held and needs[name] <= free:
                heapq.heappush(running, (now + seconds[name], name))
                busy.add(name)
                free -= needs[name]
                del waiting[name]
        now, _ = heapq.heappop(running)
    return now


def _sum(works: Iterable[Work]) -> Work:
    totals = dict.fromkeys(Work.__dataclass_fields__, 0.0)
    for work in works:
        for name, value in asdict(work).items():
            totals[name] += value
    return Work(**totals)


def _amount(stage: str, flops: float, tokens: float) -> float:
    """What a stage's rate is counted in: FLOPs, tokens where manifests have no FLOPs, or artifacts
    where they have neither."""
    if stage in _FIXED:
        return 1.0
    return tokens if stage in ("corpus", "score") else flops


def _rates(manifest: Manifest, start: float) -> list[float]:
    """The rate that one finished artifact had, unless it was over before that could be told."""
    cost = manifest.cost
    seconds = float(cost.get("seconds", 0))
    amount = _amount(manifest.stage, float(cost.get("flops", 0)), float(cost.get("tokens", 0)))
    if seconds <= 0 or amount <= 0:
        return []  # a copy of a trial, for one
    if manifest.stage in _FIXED:
        return [1 / seconds]
    return [amount / (seconds - start)] if seconds >= _LEAST_SECONDS else []


def _finished(cfg: config.Config) -> dict[Path, Manifest]:
    """The manifests of this run and of those beside it that were made on a machine like this."""
    here = environment()["machine"]
    found = {}
    # Artifacts lie one to three folders below a run, and nothing below these needs to be searched.
    for depth in ("", "*/", "*/*/"):
        for path in sorted(Path(cfg.root).glob(f"*/[0-9][0-9]-*/{depth}{MANIFEST}")):
            try:
                manifest = read_manifest(path.parent)
            except CorruptArtifact:
                continue  # of another version, or damaged: `run` says so where it matters
            if manifest is not None and manifest.environment.get("machine") == here:
                found[path.parent] = manifest
    return found


def _files(units: Mapping[str, Unit]) -> list[str]:
    """The files of the corpus, as its unit knows them."""
    return list(units["corpus"].outside.get("files", []))
