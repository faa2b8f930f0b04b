"""What a run will cost, and what it will be able to show, before anything is started.

Cost: what each artifact takes (`work`) over what a machine does (`estimator`), and how long all of
them take beside and after each other. `check` holds such predictions to what finished artifacts
took.

Power: where the run folder holds an evaluation of two seeds or more, the smallest difference to
repetition that the configured number of seeds, and more of them, would show.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import median

from synthboot import config, recipes, statistics
from synthboot.artifacts.evaluation import Evaluation, Power
from synthboot.artifacts.model import has_diverged
from synthboot.artifacts.store import read_manifest
from synthboot.errors import ConfigError, CorruptArtifact, DataError
from synthboot.lm.batches import tokens_until_copying
from synthboot.recipes import STAGES, Unit, folder_of
from synthboot.runner import machines
from synthboot.runner.estimator import TRAINED, Estimator, finished
from synthboot.runner.machines import THIS, Machine
from synthboot.runner.state import State
from synthboot.runner.work import Sizes, Work, Workload, duration, is_copy, size, sizes

_MORE_SEEDS = (5, 10)


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
    """What the artifacts that are not done will take on a machine (`machines.machine`).

    Where all are, another machine is asked what all of them would.
    """
    machine = machines.machine(hardware, cfg)
    workload = Workload(cfg, sizes(cfg, _files(units)))
    is_here = hardware.lower() == THIS
    estimator = Estimator(cfg, workload, machine, finished(cfg) if is_here else {})
    todo = {name: unit for name, unit in units.items() if states[name].status != "done"}
    if not todo and not is_here:
        todo = units

    works = {name: workload.of(unit) for name, unit in todo.items()}
    found = [estimator.misfit(unit, works[name]) for name, unit in todo.items()]
    misfits = [problem for problem in dict.fromkeys(found) if problem is not None]
    needs = estimator.needs(todo)
    sharing = estimator.sharing(todo, needs)
    seconds = {}
    for name, unit in todo.items():
        seconds[name] = estimator.seconds(unit, works[name], needs[name], sharing[unit.stage])
    memory = estimator.host_memory if machine.kind == "cpu" else estimator.memory
    rows = []
    for stage in STAGES:
        of_stage = [name for name, unit in todo.items() if unit.stage == stage]
        if not of_stage:
            continue
        total = _sum(works[name] for name in of_stage)
        taken = sum(seconds[name] * min(needs[name], machine.devices) for name in of_stage)
        device_hours = taken / sharing[stage] / 3600
        alone = _clock({name: todo[name] for name in of_stage}, seconds, needs, estimator.places)
        rows.append(
            Row(
                stage=stage,
                artifacts=len(of_stage),
                tokens=total.tokens,
                flops=total.flops,
                read_bytes=total.read_bytes,
                written_bytes=total.written_bytes,
                kept_bytes=total.kept_bytes,
                memory_bytes=max(memory(todo[name], works[name]) for name in of_stage),
                device_hours=device_hours if not misfits else None,
                hours=alone / 3600 if not misfits else None,
                dollars=device_hours * machine.dollars_per_device_hour if not misfits else None,
                rate=estimator.rate(
                    stage, max(map(works.__getitem__, of_stage), key=_flops)
                ).source,
            )
        )
    hours = _clock(todo, seconds, needs, estimator.places) / 3600
    dollars = hours * machine.devices * machine.dollars_per_device_hour
    return Plan(
        machine=machine,
        corpus=workload.corpus,
        rows=rows,
        hours=hours if not misfits else None,
        dollars=dollars if not misfits else None,
        misfits=misfits,
        notes=estimator.notes(todo, works, seconds),
    )


def estimate(
    cfg: config.Config,
    units: dict[str, Unit],
    states: Mapping[str, State],
) -> dict[str, float]:
    """Totals over what is not done, on this machine: `train_tokens`, `sampled_tokens`, `flops`,
    `hours`, `bytes`.

    Raises ConfigError where it has not the memory.
    """
    planned = plan(cfg, units, states)
    if planned.misfits:
        raise ConfigError(f"{cfg.name}: does not fit: {planned.misfits[0]}")
    return totals(planned)


def totals(planned: Plan) -> dict[str, float]:
    """Totals of a plan; no `hours` where the machine cannot do it."""
    result = {
        "train_tokens": sum(row.tokens for row in planned.rows if row.stage in TRAINED),
        "sampled_tokens": sum(row.tokens for row in planned.rows if row.stage == "synthesize"),
        "flops": sum(row.flops for row in planned.rows),
        "bytes": sum(row.kept_bytes for row in planned.rows),
    }
    return result if planned.hours is None else {**result, "hours": planned.hours}


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
        f"{time}{size(cost['bytes'])} to keep"
    )


def host_memory(cfg: config.Config, units: Mapping[str, Unit]) -> dict[str, float]:
    """Bytes of a machine's memory that each artifact takes in its own process, as far as that can
    be foretold, and in each worker of its own."""
    workload = Workload(cfg, sizes(cfg, _files(units)))
    core = machines.machine("laptop", cfg)
    estimator = Estimator(cfg, workload, core, {})
    memory = {}
    for name, unit in units.items():
        work = workload.of(unit)
        if cfg.engine.device == "cpu":
            memory[name] = estimator.host_memory(unit, work)
        else:  # of a small model nearly all: what is imported
            memory[name] = machines.figures().core.process_bytes.value + work.host_memory
    return memory


def check(cfg: config.Config, units: dict[str, Unit]) -> list[Checked]:
    """Predicted beside actual seconds, for every finished artifact made by these settings.

    Each is predicted without itself: by the rate of the others of its stage, of this run or of
    those beside it, and where there are none by what is assumed of this machine.
    """
    machine = machines.this(cfg)
    workload = Workload(cfg, sizes(cfg, _files(units)))
    manifests = finished(cfg)
    dealt = Estimator(cfg, workload, machine, {})
    needs = dealt.needs(units)
    sharing = dealt.sharing(units, needs)
    rows = []
    for name, unit in units.items():
        folder = unit.folder(cfg.folder)
        manifest = manifests.get(folder)
        if manifest is None or manifest.reads != unit.reads or is_copy(unit):
            continue
        if has_diverged(manifest):
            continue  # it stopped early
        others = {path: other for path, other in manifests.items() if path != folder}
        estimator = Estimator(cfg, workload, machine, others)
        takes = workload.of(unit)
        rate = estimator.rate(unit.stage, takes).source
        seconds = float(manifest.cost["seconds"])
        predicted = estimator.seconds(unit, takes, needs[name], sharing[unit.stage])
        rows.append(Checked(name, predicted, seconds, rate))
    return rows


def median_error(checked: Iterable[Checked]) -> float:
    """The median of how far predictions are off, as a factor: 1.3 is 30 % too much or too
    little."""
    return math.exp(median(abs(math.log(row.ratio)) for row in checked))


def copying(cfg: config.Config, units: dict[str, Unit]) -> dict[str, float] | None:
    """`expected_tokens` after which base would copy from its context, and the `share` of them at
    which it ends.

    None where nothing is tuned from it, or it starts from a model that copies already.
    """
    tunes = any(unit.stage == "tune" and "base" in unit.parents for unit in units.values())
    if cfg.model.init_from is not None or not tunes:
        return None
    expected = tokens_until_copying(cfg.optim.batch_tokens)
    return {"expected_tokens": expected, "share": cfg.budget.train_tokens / expected}


def copying_sentence(cfg: config.Config, copying: dict[str, float]) -> str:
    """The same in words."""
    words = (
        f"copying: at {cfg.optim.batch_tokens:,} tokens a step a model copies from its context "
        f"after about {copying['expected_tokens'] / 1e6:,.1f}M tokens (arXiv:2511.16893); "
        f"base ends at {copying['share']:.1%} of that"
    )
    if copying["share"] < 1:
        words += ": smaller steps come there sooner, else tuning has to teach it"
    return words


def power(cfg: config.Config, units: dict[str, Unit]) -> Power | None:
    """What more seeds would show, by the noise of the evaluation in the run folder.

    None where there is none, or where it has one seed or no arm of the method.
    """
    folder = units["evaluate"].folder(cfg.folder)
    try:
        measured = Evaluation.open(folder).chosen.power
    except CorruptArtifact:
        return None  # not there, or damaged: `run` makes it, and says so
    if measured is None:
        return None

    confidence = cfg.evaluate.confidence
    detectable = {}
    for seeds in sorted({len(cfg.pretrain.seeds), *_MORE_SEEDS} - {1}):
        detectable[seeds] = statistics.detectable(measured.noise, seeds, measured.items, confidence)
    return replace(measured, detectable=detectable)


def power_sentence(power: Power) -> str:
    """What more seeds would show, in words."""
    (fewest, difference), *more = power.detectable.items()
    further = "".join(f", {seeds} seeds {value:.4f}" for seeds, value in more)
    return (
        f"power: by the noise of the evaluation that is there, {fewest} seeds show a difference of "
        f"{power.subject} to repetition of {difference:.4f} nats per token or more "
        f"four times in five{further}"
    )


def _clock(
    todo: Mapping[str, Unit],
    seconds: Mapping[str, float],
    needs: Mapping[str, int],
    places: int,
) -> float:
    """Seconds until all are made, each begun once its parents are done and its places are free, in
    the order of the plan."""
    waiting = dict(todo)
    running: list[tuple[float, str]] = []  # when it will be done, and what
    now = 0.0
    while waiting or running:
        busy = {name for _, name in running}
        free = places - sum(needs[name] for name in busy)
        for name, unit in list(waiting.items()):
            held = any(parent in waiting or parent in busy for parent in unit.parents.values())
            if not held and needs[name] <= free:
                heapq.heappush(running, (now + seconds[name], name))
                busy.add(name)
                free -= needs[name]
                del waiting[name]
        now, _ = heapq.heappop(running)
    return now


def _flops(work: Work) -> float:
    return work.flops


def _sum(works: Iterable[Work]) -> Work:
    totals = dict.fromkeys(Work.__dataclass_fields__, 0.0)
    for work in works:
        for name, value in asdict(work).items():
            totals[name] += value
    return Work(**totals)


def _files(units: Mapping[str, Unit]) -> list[str]:
    """The files of the corpus, as its unit knows them."""
    return list(units["corpus"].outside.get("files", []))
