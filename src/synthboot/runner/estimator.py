"""How long work takes on a machine, and whether it has the memory for it.

On this machine the rate of a stage is that of finished artifacts, of this run or else of others in
its root, where there are some of about that size. Otherwise it is an assumed share of what the
machine has (`machines.yaml`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from synthboot import config
from synthboot.artifacts.store import MANIFEST, Manifest, environment, read_manifest
from synthboot.artifacts.synthetic import SAMPLED
from synthboot.errors import CorruptArtifact
from synthboot.recipes import Unit, is_filter
from synthboot.runner import machines, torchrun
from synthboot.runner.machines import Machine, figures
from synthboot.runner.unit import has_workers, workers_of
from synthboot.runner.work import Work, Workload, duration, is_copy, size

_FREE = 0.9
"""The share of a device's memory that may be planned for: libraries and fragments take the rest."""
_LEAST_SECONDS = 2.0
"""Artifacts that took less say nothing of a rate: most of it was starting."""
TRAINED = ("base", "tune", "pretrain")
"""Stages that train a model."""

SCORED = ("score", "analyze", "extract")
"""Stages that read text with a model that is there."""

_SHARES: dict[str, machines.Work] = {
    "embed": "embed",
    "pair": "pair",
    "base": "train",
    "tune": "train",
    "pretrain": "train",
    "score": "train",
    "synthesize": "sample",
    "extract": "sample",
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


class Estimator:
    """Work into seconds on one machine; `manifests` are those of finished artifacts by folder,
    which say how fast it was."""

    def __init__(
        self,
        cfg: config.Config,
        workload: Workload,
        machine: Machine,
        manifests: Mapping[Path, Manifest],
    ) -> None:
        self.cfg = cfg
        self.workload = workload
        self.machine = machine
        self.manifests = manifests
        self.shares = figures().shares[machine.kind]
        self.train_dtype = machine.dtype(cfg.optim.precision)
        self.sample_dtype = machine.dtype(cfg.synthesize.dtype)

    @property
    def places(self) -> int:
        """How many artifacts of one device run side by side: more `engine.jobs` than GPUs share
        them, as far as there are cores."""
        engine = self.cfg.engine
        devices = self.machine.devices
        if self.machine.kind != "gpu" or engine.executor != "local" or engine.processes > 1:
            return devices
        return max(devices, min(engine.jobs, self.machine.cores))

    def needs(self, todo: Mapping[str, Unit]) -> dict[str, int]:
        """How many of the places each artifact takes, as `run` deals them out."""
        workers = workers_of(self.cfg, todo, self.places, self.machine.devices)
        needs = {}
        for name, unit in todo.items():
            needs[name] = self._processes(unit)
            # of corpus a part alone is done by several processes
            if unit.stage != "corpus":
                needs[name] = workers.get(name, needs[name])
        return needs

    def _processes(self, unit: Unit) -> int:
        if unit.stage in torchrun.STAGES:
            return min(self.cfg.engine.processes, self.machine.devices)
        return 1

    def rate(self, stage: str, work: Work) -> Rate:
        """The rate of a stage by finished artifacts, of this run if it has any; else None, and what
        share of the machine is assumed.

        Artifacts of a tenth of the work or ten times as much are passed over: what is most of the
        time of a small one is none of a large one's. So are those that were killed and gone on
        with, where there are others: some of their work was done twice, or on another machine.
        """
        mine = self.cfg.folder
        wanted = _amount(stage, work.flops, work.tokens)
        for where, is_near in (("this run", True), (f"runs in {self.cfg.root}", False)):
            rates: list[float] = []
            of_resumed: list[float] = []
            for folder, manifest in self.manifests.items():
                if manifest.stage != stage or (is_near and mine not in folder.parents):
                    continue
                # nothing was sampled for it, or read: what a filter leaves, an external model
                if SAMPLED in manifest.parents or (stage == "corpus" and manifest.parents):
                    continue
                cost = manifest.cost
                computed = cost.get("flops", 0) + cost.get("measuring_flops", 0)
                done = _amount(stage, computed, cost.get("tokens", 0))
                if stage == "score" and is_near:
                    # whether the last checkpoint is the best one, so that it is scored once, and
                    # what questions take is not planned, and is much alike in all arms
                    done = wanted
                if wanted / 10 < done < wanted * 10:
                    found = of_resumed if "earlier_seconds" in cost else rates
                    found += _rates(manifest, done, self._start(stage))
            rates = rates or of_resumed
            if rates:
                many = f"{len(rates)} finished artifact{'s' * (len(rates) > 1)}"
                return Rate(median(rates), f"as {many} of {where}")
        return Rate(None, self._assumed(stage))

    def sharing(self, todo: Mapping[str, Unit], needs: Mapping[str, int]) -> dict[str, float]:
        """How many artifacts of a stage share a device while all of its kind are made."""
        devices = self.machine.devices
        counts = Counter(unit.stage for unit in todo.values() if not is_copy(unit))
        sharing = {}
        for name, unit in todo.items():
            side_by_side = min(counts[unit.stage], self.places // needs[name])
            sharing[unit.stage] = max(1.0, side_by_side * min(needs[name], devices) / devices)
        return sharing

    def seconds(self, unit: Unit, work: Work, places: int, sharing: float) -> float:
        """How long the artifact takes on as many `places`, of which each device has as many as
        artifacts are `sharing` it."""
        start = self._start(unit.stage)
        if is_copy(unit):
            return figures().core.start_seconds.value
        if is_filter(unit):
            reading = replace(unit, stage="score")
            return self._start("score") + sharing * self._computing(reading, work, 1)
        rate = self.rate(unit.stage, work).per_second
        if unit.stage in _FIXED:
            return 1 / rate if rate is not None else _FIXED[unit.stage](figures().core).value
        if rate is not None:
            return start + _amount(unit.stage, work.flops, work.tokens) / rate
        devices = min(places, self.machine.devices)
        disk = (work.read_bytes + work.written_bytes) / self.machine.disk_bytes_per_second
        network = work.exchanged_bytes / self.machine.network_bytes_per_second
        computing = sharing * self._computing(unit, work, devices)
        slower = figures().gpu.sharing.value if sharing > 1 else 1.0
        launching = slower * self._launching(unit, work)
        # These go on side by side, so that the slowest one counts.
        return slower * start + max(disk, network, computing, launching)

    def memory(self, unit: Unit, work: Work) -> float:
        """Bytes of each device."""
        if unit.stage == "synthesize" and not is_filter(unit):
            rows = self._sampled_rows(work)
            return work.memory + rows * work.row_tokens * self._cache_bytes()
        if unit.stage in TRAINED and not is_copy(unit):
            return self._training_memory(unit, self._micro_batch(unit))
        return work.memory

    def host_memory(self, unit: Unit, work: Work) -> float:
        """Bytes of the machine's memory where a processor does the work: of the unit's process, as
        of each of the workers of its own.

        That is what is imported, what work holds, and what comes of a batch that is scored: freed
        memory is kept, and the next batch is seldom of a size that fits into it. Between steps of
        tuning, whose rows are of all lengths, it fits still less.
        """
        core = figures().core
        if is_copy(unit):
            return core.process_bytes.value + work.host_memory
        is_filtered = is_filter(unit)
        if unit.stage == "synthesize" and not is_filtered:
            cache = self.memory(unit, work) - work.memory
            held = 2 * work.memory + core.sampling_kept.value * cache
            return core.process_bytes.value + work.host_memory + held
        held = self.memory(unit, work)
        model, _ = self.workload.trained(unit)
        if unit.stage in (*TRAINED, *SCORED) or is_filtered:
            times = 2 if unit.stage == "tune" and work.tokens else 1
            held += times * core.scoring_kept.value * self.workload.scoring_bytes(model)
        if unit.stage == "analyze":
            held += 4 * model.parameters
        if unit.stage in TRAINED and self.cfg.engine.processes > 1:
            held = self.cfg.engine.processes * (core.process_bytes.value + held)
        return core.process_bytes.value + work.host_memory + held

    def misfit(self, unit: Unit, work: Work) -> str | None:
        """Why an artifact cannot be made on this machine, and what would do; None where it can."""
        processes = self.cfg.engine.processes
        if unit.stage in torchrun.STAGES and processes > self.machine.devices:
            return (
                f"engine.processes is {processes}, and {self.machine.name} has "
                f"{self.machine.devices} device{'s' * (self.machine.devices > 1)}: "
                f"take more devices, or fewer processes"
            )
        if self.machine.kind == "cpu":
            return self._misfit_of_host(unit, work)
        room = _FREE * self.machine.memory_bytes
        needed = self.memory(unit, work)
        if needed <= room:
            return None
        if unit.stage in TRAINED:
            kind, instead = "training", self._instead(unit, room)
        elif unit.stage == "synthesize" and work.memory < room:
            rows = int((room - work.memory) / (work.row_tokens * self._cache_bytes()))
            kind, instead = "sampling", f"engine.sample_batch={max(1, rows)} would fit"
        else:
            kind, instead = unit.stage, "its model alone does not fit; take a larger device"
        return (
            f"{kind} needs {size(needed)} of a device, and {size(room)} of the memory of "
            f"{self.machine.title} can be planned for: {instead}"
        )

    def _misfit_of_host(self, unit: Unit, work: Work) -> str | None:
        """The same where a processor does the work, whose cores have one memory together."""
        room = _FREE * self._host_bytes
        needed = self.host_memory(unit, work)
        if needed <= room:
            return None
        instead = "take a machine with more memory"
        if unit.stage in TRAINED and not is_copy(unit):
            # beside training: what is imported, and what comes of scoring
            each = needed / self.cfg.engine.processes - self.memory(unit, work)
            instead = self._instead(unit, room / self.cfg.engine.processes - each)
        elif unit.stage == "synthesize" and not is_filter(unit) and self._sampled_rows(work) > 1:
            instead = (
                f"lower engine.sample_batch ({self._sampled_rows(work):.0f} rows), or {instead}"
            )
        return (
            f"{unit.stage} needs {size(needed)}, and {size(room)} of the memory of "
            f"{self.machine.name} can be planned for: {instead}"
        )

    @property
    def _host_bytes(self) -> float:
        """The memory of a processor, of all its cores together."""
        return self.machine.devices * self.machine.memory_bytes

    def _crowded(self, todo: Mapping[str, Unit], works: Mapping[str, Work]) -> list[str]:
        """A note where what works side by side by `engine.jobs` has not the memory for it."""
        stages = Counter(unit.stage for unit in todo.values())
        processes = self.cfg.engine.processes
        room = _FREE * self._host_bytes
        crowded = []
        for name, unit in todo.items():
            needed = self.host_memory(unit, works[name])
            at_once = self.machine.devices // processes
            if not has_workers(unit):
                at_once = min(at_once, stages[unit.stage])
            if needed <= room < at_once * needed:
                crowded.append((int(room / needed) * processes, at_once * needed, unit.stage))
        if not crowded:
            return []
        jobs, needed, stage = min(crowded)
        return [
            f"{stage}: what is made side by side needs {size(needed)}, and {size(room)} of memory "
            f"can be planned for; engine.jobs={jobs} would fit, and take longer"
        ]

    def notes(
        self,
        todo: Mapping[str, Unit],
        works: Mapping[str, Work],
        seconds: Mapping[str, float],
    ) -> list[str]:
        """What the table cannot say."""
        notes = self._crowded(todo, works) if self.machine.kind == "cpu" else []
        pairing = [works[name].host_memory for name, unit in todo.items() if unit.stage == "pair"]
        host = max(pairing, default=0.0)
        if host > 2**36:
            notes.append(f"pairing holds {size(host)} of vectors and neighbours in memory")
        for name, unit in todo.items():
            on_core = works[name].core_seconds
            if unit.stage == "corpus" and self.machine.kind != "cpu" and on_core > 3600:
                notes.append(
                    "the corpus is read by one process, without a GPU: make it on a machine that "
                    f"costs less ({duration(seconds[name] / 3600)})"
                )
        processes = self.cfg.engine.processes
        if processes == 1 and self.machine.kind == "gpu" and self.machine.devices > 1:
            models = sum(unit.stage in TRAINED for unit in todo.values())
            notes.append(
                f"each model is trained on one device, {models} models in all; "
                f"engine.processes={self.machine.devices} trains each on all"
            )
        is_alone = processes == 1 and self.cfg.engine.executor == "local"  # as in `places`
        if is_alone and (jobs := self._worthwhile_jobs(todo, works)) > self.places:
            notes.append(
                f"a model of this size leaves most of a GPU idle: engine.jobs={jobs} trains {jobs} "
                f"side by side (start `nvidia-cuda-mps-control -d` first; docs/scaling-out.md)"
            )
        return notes

    def _worthwhile_jobs(self, todo: Mapping[str, Unit], works: Mapping[str, Work]) -> int:
        """How many models could be trained side by side on all GPUs before these are busy, as far
        as there are models and cores."""
        models = {name: unit for name, unit in todo.items() if unit.stage == "pretrain"}
        idle = [
            self._launching(unit, works[name]) / self._computing(unit, works[name], 1)
            for name, unit in models.items()
            if not is_copy(unit)
        ]
        if not idle:
            return 0
        return min(int(median(idle)) * self.machine.devices, len(idle), self.machine.cores)

    def _assumed(self, stage: str) -> str:
        cpu_work = figures().core
        if stage == "corpus":
            figure = cpu_work.corpus_bytes_per_second
            return f"{figure.value / 1e6:.3g} MB of text a second by one core ({figure.source})"
        if stage == "embed" and self.cfg.embed.model == "self":
            fitting = cpu_work.self_fitting_flops
            figure = cpu_work.self_embedding_flops
            return (
                f"{figure.value / 1e9:.3g} GFLOP/s a core ({figure.source}), after fitting by one "
                f"at {fitting.value / 1e9:.3g} ({fitting.source})"
            )
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
            return work.serial_seconds + work.core_seconds / cores
        peak = self.machine.flops[self._dtype(unit.stage)]
        share = self.shares[_SHARES[unit.stage]].value
        busy = work.flops / (peak * share * devices)
        if unit.stage in TRAINED and self.cfg.engine.checkpoint_activations:
            busy *= 4 / 3  # the forward pass once more
        if unit.stage == "pair":
            busy += work.core_seconds / cores
        if unit.stage == "synthesize":
            bandwidth = self.machine.memory_bytes_per_second * share
            busy = max(busy, self._sampling_bytes(work) / (bandwidth * devices))
        return busy

    def _launching(self, unit: Unit, work: Work) -> float:
        """Seconds in which a GPU is told what to do in training, however small the model."""
        if self.machine.kind != "gpu" or unit.stage not in TRAINED:
            return 0.0
        model, _ = self.workload.trained(unit)
        steps = work.tokens / (self._micro_batch(unit) * self.cfg.engine.processes)
        return steps * model.layers * figures().gpu.layer_step_seconds.value

    def _start(self, stage: str) -> float:
        """Seconds before the work begins."""
        gpu = figures().gpu
        by_cores = stage == "corpus" or (stage == "embed" and self.cfg.embed.model == "self")
        if self.machine.kind != "gpu" or by_cores or stage in _FIXED:
            return figures().core.start_seconds.value
        if stage == "synthesize":
            return gpu.sampler_start_seconds.value
        return gpu.start_seconds.value

    def _sampling_bytes(self, work: Work) -> float:
        """What decoding reads from memory: all weights for every step, and for every row the cache
        of what it has read so far."""
        weights = self.workload.synthesizer.parameters * _bytes(self.sample_dtype)
        context = work.row_tokens - work.tokens / work.requests / 2  # half of d2 on average
        for_token = weights / self._sampled_rows(work) + context * self._cache_bytes()
        return work.tokens * for_token

    def _cache_bytes(self) -> float:
        """Keys and values of one token."""
        model = self.workload.synthesizer
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
        unit: Unit,
        micro_batch: float,
        processes: int | None = None,
        recomputed: bool | None = None,
    ) -> float:
        engine = self.cfg.engine
        model, lora = self.workload.trained(unit)
        state = self.workload.state_bytes(model, lora)
        if processes is not None or (engine.shard and engine.processes > 1):
            state /= processes or engine.processes
        again = engine.checkpoint_activations if recomputed is None else recomputed
        dtype_bytes = _bytes(self.train_dtype)
        on_gpu = self.machine.kind == "gpu"
        return state + self.workload.activation_bytes(
            model, micro_batch, dtype_bytes, again, on_gpu
        )

    def _instead(self, unit: Unit, room: float) -> str:
        """Settings that would fit, the least change first."""
        is_tuned = unit.stage == "tune"
        seq_len = self.cfg.tune_seq_len if is_tuned else self.cfg.model.seq_len
        for recomputed in (self.cfg.engine.checkpoint_activations, True):
            least = self._training_memory(unit, seq_len, recomputed=recomputed)
            if least <= room:
                rows = 1
                while (
                    self._training_memory(unit, 2 * rows * seq_len, recomputed=recomputed) <= room
                ):
                    rows *= 2
                again = ", engine.checkpoint_activations=true" if recomputed else ""
                return f"engine.micro_batch_tokens={rows * seq_len}{again} would fit"
        # a processor's cores have one memory: shards side by side save nothing
        several = range(1, 14) if self.machine.kind != "cpu" else ()
        for processes in (2**power for power in several):
            if self._training_memory(unit, seq_len, processes, recomputed=True) <= room:
                return (
                    f"engine.processes={processes}, engine.shard=true, "
                    f"engine.checkpoint_activations=true, engine.micro_batch_tokens={seq_len} "
                    f"would fit, on as many devices"
                )
        return "not even a row of it fits; take a smaller model"


def finished(cfg: config.Config) -> dict[Path, Manifest]:
    """The manifests of this run and of those beside it that were made on a machine like this."""
    here = environment()["machine"]
    manifests = {}
    # Artifacts lie one to three folders below a run, and nothing below these needs to be searched.
    for depth in ("", "*/", "*/*/"):
        for path in sorted(Path(cfg.root).glob(f"*/[0-9][0-9]-*/{depth}{MANIFEST}")):
            try:
                manifest = read_manifest(path.parent)
            except CorruptArtifact:
                continue  # of another version, or damaged: `run` says so where it matters
            is_mine = manifest is not None and manifest.environment.get("machine") == here
            if manifest is not None and is_mine and manifest.cost.get("seconds", 0) > 0:
                manifests[path.parent] = manifest
    return manifests


def _amount(stage: str, flops: float, tokens: float) -> float:
    """What a stage's rate is counted in: FLOPs, tokens where manifests have no FLOPs, or artifacts
    where they have neither."""
    if stage in _FIXED:
        return 1.0
    return tokens if stage in ("corpus", "score", "extract") else flops


def _rates(manifest: Manifest, done: float, start: float) -> list[float]:
    """The rate that one finished artifact had, unless it was over before that could be told."""
    seconds = float(manifest.cost["seconds"])
    if manifest.stage in _FIXED:
        return [1 / seconds]
    return [done / (seconds - start)] if seconds >= max(_LEAST_SECONDS, 2 * start) else []


def _bytes(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else 4
