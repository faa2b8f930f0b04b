"""The verbs, and the only file that prints: results to stdout, progress to stderr.

Exit codes: 0 done, 1 a bug, 2 something the user can mend (one line, with what to do), 130 Ctrl-C,
143 and 129 for a SIGTERM and a terminal that closed, 141 nobody reads on (`| head`). Nothing that
is printed acts on a terminal (`_say`). Heavy imports happen inside the verbs, so that `--help` is
quick.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synthboot.terminal import one_line, safe, table_lines

if TYPE_CHECKING:
    from synthboot.artifacts.evaluation import ArmResult, Evaluation, TaskResult
    from synthboot.config import Config
    from synthboot.export.export import Exported, What
    from synthboot.recipes import Unit
    from synthboot.runner.cost import Checked, Plan
    from synthboot.runner.state import State
    from synthboot.show import Example
    from synthboot.statistics import Interval
    from synthboot.studies.study import Planned, Study

STAGE_HELP = {
    "corpus": "Read, clean, split and tokenize the text.",
    "embed": "Give every document a vector.",
    "pair": "Find related documents.",
    "base": "Train the language model on real text.",
    "tune": "Tune the synthesizer p(d2|d1).",
    "synthesize": "Sample the synthetic corpus.",
    "pretrain": "Train every arm from scratch.",
    "score": "Score every model on the test set and on questions.",
    "evaluate": "Compare the scores of all arms.",
    "analyze": "Measure the synthetic text beside the real.",
    "report": "Write the report page.",
    "extract": "Try to get training text and canaries out of every model again.",
}
_WITH_PARTS = ("corpus", "embed", "pair", "synthesize", "pretrain", "score")
_OF_ONE = ("corpus", "evaluate", "analyze", "report")


class Verb(click.Command):
    """A command whose user errors are one line and exit code 2."""

    def invoke(self, context: click.Context) -> Any:
        """Run it, turning errors into exit codes."""
        from synthboot.data.disk import storage_errors
        from synthboot.errors import SynthbootError
        from synthboot.pool import stoppable

        _allow_files()
        with stoppable() as came:
            try:
                with storage_errors(Path.cwd()):
                    return super().invoke(context)
            except SynthbootError as error:
                _say(f"error: {one_line(str(error))}", err=True)
                sys.exit(2)
            except KeyboardInterrupt:
                # The terminal may be what went away.
                with suppress(OSError):
                    _say(
                        "stopped; finished shards are kept, the same command goes on from there",
                        err=True,
                    )
                # As a shell reports a signal.
                sys.exit(128 + came[0] if came else 130)


class Verbs(click.Group):
    """The command line itself, on terminals of any encoding."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run it; characters that a stream's encoding lacks are written as escapes."""
        for stream in (sys.stdout, sys.stderr):
            # What stands in their place may have no encoding to set.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **options)


def _allow_files() -> None:
    """Open as many files as the system lets a process have: every shard of tokens is one."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class _Hours(click.FloatRange):
    """A number above zero; click takes nan for one, and inf."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, *given: Any) -> float:
        """The number; a usage error for any that no clock shows."""
        hours: float = super().convert(*given)
        if not math.isfinite(hours):
            self.fail(f"{hours} is no number of hours.", *given[1:])
        return hours


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="synthboot")
def main() -> None:
    """Synthetic Bootstrapped Pretraining: pair related documents, tune a synthesizer p(d2|d1),
    sample a corpus from it, pretrain on both, and show what that bought."""


def _configured(function: Callable[..., Any]) -> Callable[..., Any]:
    @click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
    @click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a setting, e.g. pair.num_neighbors=8.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.option(
        "--verify",
        is_flag=True,
        help="Hash the files that the run reads again, also those whose size and times are as "
        "they were.",
    )
    @wraps(function)
    def wrapped(
        config_file: Path, sets: tuple[str, ...], as_json: bool, verify: bool, **rest: Any
    ) -> Any:
        from synthboot import loading
        from synthboot.data import hashes

        cfg = loading.load(config_file, set=loading.parse_set(sets))
        if verify:
            hashes.forget(cfg.folder)
        return function(cfg, as_json, **rest)

    return wrapped


@main.command(cls=Verb)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("mine.yaml"),
    show_default=True,
    help="The file to write; one that is there stays.",
)
@click.option(
    "--hours",
    type=_Hours(),
    default=8.0,
    show_default=True,
    help="How long it may run here.",
)
def init(paths: tuple[str, ...], out: Path, hours: float) -> None:
    """Look at your files and write a configuration for them."""
    from synthboot.errors import ConfigError
    from synthboot.proposal import propose
    from synthboot.runner.work import duration
    from synthboot.survey import survey as look

    if not out.parent.is_dir():
        raise ConfigError(f"--out: {out.parent}: no such folder; make it, or name another")
    taken = f"{out}: is there already; name another with --out"
    if out.exists():
        raise ConfigError(taken)
    survey = look(paths[0] if len(paths) == 1 else list(paths))
    for line in survey.lines():
        _say(line)

    if survey.is_too_bad:
        _say(
            f"{survey.bad_share:.1%} of the records are bad: mend them, or they are left out "
            f"(corpus.max_quarantine)"
        )

    proposed = propose(survey, _as_name(out.stem), hours)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(proposed.text)
    except FileExistsError:
        raise ConfigError(taken) from None
    _say(
        f"{out}: arms of {proposed.train_tokens:,} tokens, {proposed.unique_tokens:,} of them "
        f"unique; about {duration(proposed.hours)} here (to a factor of two)"
    )
    if proposed.hours > hours:
        _say(f"that is more than --hours {hours:g}: less would be too little to learn from")
    named = shlex.quote(str(out))
    _say(f"next: synthboot pair {named}   what related documents tell of each other")
    _say(f"      synthboot plan {named}   what all of it would take; then synthboot run")


_replacing = click.option(
    "--replace",
    is_flag=True,
    help="Give up more than ten minutes of work, finished or half made, where settings are others.",
)


_taking = click.option(
    "--from",
    "others",
    metavar="RUN",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Take over what another run folder has finished of the same, as hard links.",
)


@main.command(cls=Verb)
@_configured
@_replacing
@_taking
def run(cfg: Config, as_json: bool, replace: bool, others: tuple[Path, ...]) -> None:
    """Make every artifact that is missing or stale, then print the comparison."""
    _execute(cfg, "report", as_json, replace, others)


def _in_parts(stage: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option, known to every stage so that those without parts can say so."""
    return click.option(
        "--part",
        metavar="K/N",
        hidden=stage not in _WITH_PARTS,
        help="Make every N-th of its items, from the K-th on, side by side with other parts; "
        "afterwards the same command without this makes what is missing and commits. `array` takes "
        "K and N from a Slurm array (docs/scaling-out.md).",
    )


def _some_only(stage: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option, known to every stage so that one with a single artifact can say so."""
    return click.option(
        "--only",
        metavar="PATTERN",
        multiple=True,
        hidden=stage in _OF_ONE,
        help="Of several artifacts of the stage those that fit, e.g. 'sbp/*' or '*/seed-0'.",
    )


def _stage_verb(stage: str) -> None:
    @main.command(
        stage,
        cls=Verb,
        help=f"{STAGE_HELP[stage]} Makes what it reads first, where that is missing or stale.",
    )
    @_configured
    @_replacing
    @_taking
    @_in_parts(stage)
    @_some_only(stage)
    def verb(
        cfg: Config,
        as_json: bool,
        replace: bool,
        others: tuple[Path, ...],
        part: str | None,
        only: tuple[str, ...],
    ) -> None:
        _execute(cfg, stage, as_json, replace, others, part, only)


for _stage in STAGE_HELP:
    if _stage != "pair":  # which has an option of its own
        _stage_verb(_stage)


@main.command(cls=Verb)
@_configured
@_replacing
@_taking
@_in_parts("pair")
@_some_only("pair")
@click.option(
    "--dry-run", is_flag=True, help="Only say how many pairs each alpha would give, from a sample."
)
def pair(
    cfg: Config,
    as_json: bool,
    replace: bool,
    others: tuple[Path, ...],
    part: str | None,
    only: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Find related documents. Makes what it reads first, where that is missing or stale."""
    if not dry_run:
        _execute(cfg, "pair", as_json, replace, others, part, only)
        return
    if part is not None or only:
        raise click.UsageError("--dry-run makes nothing; drop it, or --part and --only")
    from synthboot import show as shown
    from synthboot.runner import executor

    with _progress() as progress:
        executor.run(cfg, "embed", progress.tell, others, replace=replace)
    choices = shown.alphas(cfg)
    if as_json:
        _say_json(asdict(choices))
        return

    rows = [
        [
            f"{row.alpha:.2f}",
            _count(row.pairs),
            "{:.2f} [{:.2f}, {:.2f}]".format(*row.per_document),
            f"{row.documents_with_pairs:.0%}",
            f"{row.near_duplicates:.1%}",
            f"{row.random_pairs_above:.2%}",
        ]
        for row in choices.table
    ]
    header = [
        "alpha",
        "pairs",
        "per document",
        "documents",
        "near-duplicates",
        "random pairs above",
    ]
    _print_table(header, rows)
    _say(
        f"from {choices.sampled:,} of {choices.docs:,} documents, near-duplicates taken off, "
        "caps and held-out documents not; "
        f"min_similarity now gives {choices.alpha:.3f} ({choices.why})"
    )


@main.command(cls=Verb)
@_configured
@click.option(
    "--hardware",
    metavar="NAME",
    help="Plan for another machine, whether the text is here or not: h100, 8xh100, h200, a100, "
    "tpu-v5p, laptop, this, or a YAML file that describes it (docs/scaling-out.md).",
)
@click.option(
    "--check", is_flag=True, help="Only hold the plan to what finished artifacts took here."
)
def plan(cfg: Config, as_json: bool, hardware: str | None, check: bool) -> None:
    """Say what `run` would do and why, what it would cost, and what more seeds would show."""
    from synthboot import preflight, recipes, verdicts
    from synthboot.artifacts.corpus import Corpus
    from synthboot.lm import precision
    from synthboot.runner import cost as plans
    from synthboot.runner.machines import THIS
    from synthboot.runner.state import states as states_of

    is_here = hardware in (None, THIS)
    if hardware is None:
        preflight.check(cfg)
        artifacts = recipes.units(cfg)
    else:
        preflight.check_shares(cfg)  # which are wrong on every machine
        artifacts = plans.units_anywhere(cfg)
    if check:
        _print_check(plans.check(cfg, artifacts), as_json)
        return

    states = states_of(cfg, artifacts)
    if is_here and states["corpus"].status == "done":
        # The pool is known now, and whether it has what oracles ask for.
        corpus = Corpus.open(artifacts["corpus"].folder(cfg.folder))
        preflight.check_against_corpus(cfg, corpus)
    planned = plans.plan(cfg, artifacts, states, hardware or THIS)
    power = plans.power(cfg, artifacts)
    copying = plans.copying(cfg, artifacts)
    speeds = precision.measure(cfg) if is_here and precision.undecided(cfg) else {}
    if as_json:
        units = {}
        for name, state in states.items():
            units[name] = {"status": state.status, "reasons": list(state.reasons)}
        _say_json(
            {
                "units": units,
                "estimate": plans.totals(planned),
                "plan": {**asdict(planned), "machine": planned.machine.model_dump()},
                "precision": {kind: precision.choice(cfg, speed) for kind, speed in speeds.items()},
                "power": None if power is None else asdict(power),
                "copying": copying,
                "external": cfg.tune.init_from,
            }
        )
        return

    _print_states(artifacts, states)
    _print_cost(planned, "this machine" if is_here else planned.machine.name)
    if more_compute := verdicts.more_compute(cfg.arms):
        _say(more_compute)
    if cfg.tune.init_from is not None:
        _say(
            f"external: {cfg.tune.init_from}, a model from outside the corpus, will write the "
            "synthetic text"
        )
    if copying is not None:
        _say(plans.copying_sentence(cfg, copying))
    if power is not None:
        _say(plans.power_sentence(power))
    if speeds:
        _say(f"precision: {precision.sentence(cfg, speeds, ahead=True)}")


@main.command(cls=Verb)
@click.argument(
    "paths", metavar="CONFIG | RUN ...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--vary",
    multiple=True,
    metavar="KEY=A,B,...",
    help="A setting and its values, e.g. model.width=96,192; several make a grid.",
)
@click.option("--together", is_flag=True, help="Vary all settings at once instead of a grid.")
@click.option("--seeds", metavar="A,B,...", help="pretrain.seeds of every point.")
@click.option(
    "--until",
    type=click.Choice(list(STAGE_HELP)),
    default="report",
    show_default=True,
    help="The stage that every point goes to.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The study's folder; NAME-study beside the run unless given.",
)
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting for every point, e.g. pair.num_neighbors=8.",
)
@click.option("--dry-run", is_flag=True, help="Only say what it would take.")
@_replacing
@click.option("--runs", is_flag=True, help="Collect run folders that are there; run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def study(paths: tuple[Path, ...], runs: bool, as_json: bool, **options: Any) -> None:
    """Run a configuration over several values of its settings, and show what they do: a table, a
    figure for each setting, fitted curves, and what sbp buys against what d1 is worth.

    What points have alike is made once. Killed and started again, it goes on. With --runs, the
    same of run folders (or the folders of studies) that are there."""
    if runs:
        _collect(paths, as_json, options)
    else:
        _study(paths, as_json, **options)


def _collect(paths: tuple[Path, ...], as_json: bool, options: dict[str, Any]) -> None:
    from synthboot.errors import ConfigError
    from synthboot.studies import study as studies

    for name in ("vary", "seeds", "together", "dry_run", "sets", "replace"):
        if options[name]:
            option = {"sets": "set"}.get(name, name).replace("_", "-")
            raise ConfigError(f"study: --{option} is about runs to be made; drop it, or --runs")
    out = options["out"] or paths[0].parent / "study"
    found = studies.collect(paths, out.name)
    found.save(out)
    _print_study(found, out, as_json)


def _study(
    paths: tuple[Path, ...],
    as_json: bool,
    *,
    vary: tuple[str, ...],
    together: bool,
    seeds: str | None,
    until: str,
    out: Path | None,
    sets: tuple[str, ...],
    dry_run: bool,
    replace: bool,
) -> None:
    from synthboot import loading
    from synthboot.errors import ConfigError, TrainingError
    from synthboot.studies import grid
    from synthboot.studies import study as studies

    if len(paths) > 1:
        raise ConfigError("study: several paths are run folders for --runs; it varies one CONFIG")
    points = studies.Grid(
        paths[0],
        grid.parse_vary(vary),
        set=loading.parse_set(sets),
        seeds=grid.parse_seeds(seeds),
        together=together,
        target=until,
        out=out,
    )
    if dry_run:
        _print_plan(points.plan(), as_json)
        return
    with _progress() as progress:
        found = points.run(progress.tell, replace)
    _print_study(found, points.out, as_json)
    failed = [row.point for row in found.rows if row.failed]
    if failed:
        raise TrainingError(
            f"study: {len(failed)} of {len(found.rows)} points failed ({', '.join(failed[:5])}); "
            f"the table says of what"
        )


def _print_plan(planned: list[Planned], as_json: bool) -> None:
    from synthboot.runner import cost

    if as_json:
        _say_json([asdict(point) for point in planned])
        return
    rows = []
    total = dict.fromkeys(planned[0].estimate, 0.0)
    for point in planned:
        found = point.estimate
        for name, value in found.items():
            total[name] += value
        rows.append(
            [
                point.point,
                str(point.to_make),
                str(point.shared),
                _count(found["train_tokens"]),
                _count(found["sampled_tokens"]),
                f"{found['flops']:.2g}",
                f"{found['hours']:.2f}",
            ]
        )
    header = ["point", "to make", "taken over", "to train on", "to sample", "FLOPs", "hours"]
    _print_table(header, rows)
    _say(f"{len(planned)} points; {cost.sentence(total)}")


def _print_study(found: Study, out: Path, as_json: bool) -> None:
    from synthboot.studies.study import PAGE

    if as_json:
        _say_json(found.table())
        return
    figures_of = ("d1_worth", "net_worth", "base_loss", "minus_repetition", "minus_self")
    shown = [name for name in figures_of if name in found.columns]
    rows = []
    for row in found.table():
        figures = ["" if row[name] is None else f"{row[name]:+.4f}" for name in shown]
        rows.append([row["point"], *figures, row["note"]])
    _print_table(["point", *(name.replace("_", " ") for name in shown), "note"], rows)
    _say(f"study: {out / PAGE}")


def _run_folder(run: Path) -> Path:
    """The folder of the run that is meant, by itself or by the configuration that made it."""
    from synthboot.loading import load

    return load(run).folder if run.is_file() else run


@main.command(cls=Verb)
@click.argument("run", metavar="RUN | CONFIG", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(run: Path, as_json: bool) -> None:
    """Show where a run stands."""
    from synthboot import show as shown

    rows = shown.status(_run_folder(run))
    if as_json:
        _say_json([asdict(row) for row in rows])
        return
    header = ["artifact", "status", "tokens", "seconds", "peak memory"]
    table = [
        [
            row.unit,
            row.status,
            _count(row.tokens),
            _count(row.seconds),
            _size(row.peak_memory_bytes),
        ]
        for row in rows
    ]
    _print_table(header, table)
    for row in rows:
        if row.account:
            _say(f"{row.unit}: {row.account}")
        for part in row.parts:
            missing = [f"{name} {_numbers(lost)}" for name, lost in part.missing.items()]
            what = f", missing: {'; '.join(missing)}" if missing else ""
            _say(f"{row.unit}: part {part.part} {part.state}{what}")


@main.command(cls=Verb)
@click.argument("run", metavar="RUN | CONFIG", type=click.Path(path_type=Path))
@click.argument(
    "what",
    type=click.Choice(
        [
            "documents",
            "pairs",
            "synthetic",
            "copies",
            "extracted",
            "canaries",
            "quarantine",
            "judged",
            "quality",
        ]
    ),
)
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How many examples.",
)
@click.option("--near", type=float, help="Pairs with a similarity near this.")
@click.option("--grep", metavar="PATTERN", help="Only texts that a regular expression is found in.")
@click.option("--like", metavar="TEXT", help="The nearest to a text, by the run's own embedding.")
@click.option(
    "--of",
    metavar="NAME",
    help="Synthetic text and copies of this arm, or kind, such as unconditional; of related pairs "
    "unless given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(
    run: Path,
    what: str,
    count: int,
    near: float | None,
    grep: str | None,
    like: str | None,
    of: str | None,
    as_json: bool,
) -> None:
    """Read examples in the terminal: documents, pairs side by side, synthetic text, what was
    copied, what models gave back of documents and how exposed canaries are, what was quarantined,
    what judges called faulty; and search in them. `quality` is the paper's quality table with this
    run's figures: what was counted, and what judges say, with their own error; and what filters
    threw away and did."""
    from synthboot import show as shown

    run_folder = _run_folder(run)
    if what == "quality":
        _show_quality(run_folder, as_json)
        return
    examples = shown.examples(run_folder, what, count, near, grep, like, of)
    if as_json:
        _say_json([asdict(example) for example in examples])
        return
    if not examples:
        _say(f"{run_folder}: {_NOTHING[what] if grep is None else 'nothing matches'}")
    for example in examples:
        _print_example(example)


def _show_quality(run: Path, as_json: bool) -> None:
    from synthboot import show as shown
    from synthboot.report import filters, quality

    analyzed = shown.analyzed(run)
    evaluated = shown.evaluated(run)
    filtered = {} if evaluated is None else filters.effects(evaluated)
    if as_json:
        of_filters = {arm: asdict(effect) for arm, effect in filtered.items()}
        measured = {name: analyzed[name] for name in ("kinds", "judged")}
        _say_json({**measured, "filters": of_filters})
        return
    tables = [quality.table(analyzed), quality.curves(analyzed)]
    if filtered:
        tables.append(filters.table(filtered))
    for table in tables:
        _print_table(table.headers, table.rows)
        for note in table.notes:
            _say(note)


@main.command(cls=Verb)
@_configured
@click.argument("out", metavar="[OUT]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--what",
    type=click.Choice(["synthetic", "real", "models", "tokens"]),
    default="synthetic",
    show_default=True,
    help="Text for `datasets`, models for `transformers`, an arm's tokens for other trainers.",
)
@click.option("--arm", help="What this arm reads, or is; all of it unless given.")
@click.option(
    "--seed",
    type=int,
    help="The model, or the order of tokens, of this seed; of models, the one of the least "
    "validation loss unless given.",
)
@click.option(
    "--license", metavar="ID", help="Licence of the sources; the card says so where it is unknown."
)
@click.option("--force", is_flag=True, help="Replace an earlier export; never another folder.")
def export(
    cfg: Config,
    as_json: bool,
    out: Path | None,
    what: What,
    arm: str | None,
    seed: int | None,
    license: str | None,
    force: bool,
) -> None:
    """Write what a finished run holds to a new folder, NAME-WHAT unless OUT is given, with a card
    that says what it is."""
    from synthboot.export.export import export as write

    exported = write(cfg, what, out, arm=arm, seed=seed, license=license, force=force)
    if as_json:
        _say_json({**asdict(exported), "folder": str(exported.folder), "best": exported.best})
        return
    _print_exported(exported)


def _print_exported(exported: Exported) -> None:
    folder = exported.folder
    if exported.what == "models":
        rows = []
        for arm, part in exported.parts.items():
            loss = f"{part['validation_loss']:.4f}"
            rows.append([str(folder / arm), part["kind"], str(part["seed"]), loss])
        _print_table(["folder", "kind", "seed", "validation loss"], rows)
        _say(f"best by validation loss: {folder / str(exported.best)}")
        _say(exported.verdict or "The arms have not been compared; `synthboot evaluate` does.")
    elif exported.what == "tokens":
        [part] = exported.parts.values()
        _say(f"{folder}: {part['rows']:,} rows of {part['row_tokens']:,} tokens ({part['dtype']})")
    else:
        rows = []
        for name, part in exported.parts.items():
            rows.append([name, _count(part["documents"]), _count(part["tokens"])])
        _print_table(["part", "documents", "tokens"], rows)
        _say(f"{folder}: for datasets.load_dataset")
    if exported.license is None:
        _say(
            "licence of the sources: not known; the card says so. State it with --license before "
            "you publish"
        )


@main.command(cls=Verb)
@click.argument("source", metavar="MODEL.gguf", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def convert(source: Path, folder: Path) -> None:
    """Make a Hugging Face folder of a GGUF file, for model.init_from."""
    from synthboot.lm import gguf

    weights = gguf.convert(source, folder)
    _say(f"{folder}: {weights:,} weights in float32; set model.init_from={folder}")


@main.command(cls=Verb)
@click.argument("names", metavar="A [B ...]", nargs=-1, required=True)
@click.option(
    "--metric",
    help="Field of lm-eval's samples to compare, the first of each task unless given; "
    "of our answers acc, acc_norm, nll or choice_nll.",
)
@click.option(
    "--wanted",
    type=float,
    help="The difference to plan items and seeds for; the one found unless given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(
    names: tuple[str, ...], metric: str | None, wanted: float | None, as_json: bool
) -> None:
    """Is A better than B? Or, of run folders: their scores, and the settings they differ in, side
    by side.

    A and B are models' scores (RUN/NN-score/ARM/seed-N), folders of lm-eval's --log_samples output,
    arms (RUN:ARM), or files with an item and a number a line. Several seeds of each are joined by
    commas: A1,A2,A3 B1,B2,B3."""
    from synthboot.recipes import folder_of

    folders = [Path(name) for name in names]
    if all(folder_of(folder, "corpus").is_dir() for folder in folders):
        _compare_runs(folders, as_json)
    else:
        _compare_scores(names, metric, wanted, as_json)


def _compare_scores(
    names: tuple[str, ...], metric: str | None, wanted: float | None, as_json: bool
) -> None:
    from synthboot import comparison
    from synthboot.errors import DataError

    if len(names) != 2:
        raise DataError(
            "compare: two sides are compared, A and B, "
            f"and {len(names)} were given; commas join seeds"
        )
    first, second = (name.split(",") for name in names)
    compared = comparison.compare(first, second, metric, wanted)
    if as_json:
        _say_json([asdict(row) for row in compared])
        return

    rows = []
    for row in compared:
        unmatched = f" ({row.unmatched:,} unmatched)" if row.unmatched else ""
        gap = row.difference
        rows.append(
            [
                row.task,
                f"{row.first:.4f}",
                f"{row.second:.4f}",
                f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]",
                f"{gap.p:.2g}",
                f"{row.p_adjusted:.2g}",
                f"{row.items:,}{unmatched}",
                str(row.seeds),
                f"{row.detectable:.4f}",
                "-" if row.items_needed is None else f"{row.items_needed:,}",
                "-" if row.seeds_needed is None else str(row.seeds_needed),
            ]
        )
    header = [
        "task",
        "A",
        "B",
        "A - B",
        "p",
        "adjusted",
        "items",
        "seeds",
        "detectable",
        "items needed",
        "seeds needed",
    ]
    _print_table(header, rows)
    if all(row.seeds == 1 for row in compared):
        _say(
            "One seed of each: this is about these two models, "
            "and says nothing of how others trained alike would differ."
        )


def _compare_runs(runs: list[Path], as_json: bool) -> None:
    from synthboot import show as shown
    from synthboot.data.items import titles

    compared = shown.compare(runs)
    if as_json:
        _say_json(compared.as_json())
        return

    tasks: dict[str, None] = {}  # in the order of the runs, each once
    for evaluation in compared.evaluations.values():
        tasks |= dict.fromkeys(evaluation.questions)

    rows = []
    for run, evaluation in compared.evaluations.items():
        for arm, result in evaluation.arms.items():
            rows.append(
                [
                    run,
                    arm,
                    _with_interval(result.loss),
                    f"{result.bits_per_byte.value:.4f}",
                    _share(result),
                    _against_repetition(result),
                    *(_accuracy(evaluation.questions.get(task), arm) for task in tasks),
                ]
            )
    header = ["run", "arm", "test loss", "bits/byte", "oracle share", "against repetition"]
    _print_table([*header, *titles(list(tasks))], rows)

    if compared.differences:
        settings = [[key, *map(str, values)] for key, values in compared.differences.items()]
        _print_table(["setting", *compared.evaluations], settings)


def _execute_part(cfg: Config, target: str, as_json: bool, name: str, replace: bool) -> None:
    from synthboot.artifacts import parts
    from synthboot.runner import executor

    part = parts.parse(name)
    with _progress() as progress:
        made = executor.run_part(cfg, target, part, progress.tell, replace)
    if as_json:
        _say_json({"part": str(part), "units": made})
    elif made:
        _say(
            f"{target}: part {part} done, of {', '.join(made)} ({cfg.folder}); "
            f"after all {part.count} parts: the same command without --part"
        )
    else:
        _say(f"{target}: nothing for part {part} to do ({cfg.folder})")


def _execute(
    cfg: Config,
    target: str,
    as_json: bool,
    replace: bool,
    others: tuple[Path, ...],
    part: str | None = None,
    only: tuple[str, ...] = (),
) -> None:
    if part is not None:
        if only or others:
            raise click.UsageError("--part deals out all of a stage; drop it, or --only and --from")
        _execute_part(cfg, target, as_json, part, replace)
        return
    from synthboot.artifacts.evaluation import Evaluation
    from synthboot.report import page
    from synthboot.runner import executor

    with _progress() as progress:
        units = executor.run(cfg, target, progress.tell, others, only, replace)

    if target in ("report", "evaluate"):
        evaluation = Evaluation.open(units["evaluate"].folder(cfg.folder))
        if as_json:
            _say_json(evaluation.as_json())
        else:
            _print_scores(evaluation)
    elif as_json:
        _say_json({name: state.status for name, state in progress.states.items()})
    else:
        kept = len(units) - progress.total
        _say(f"{target}: done, {progress.total} artifacts made, {kept} were there ({cfg.folder})")

    if target == "report" and not as_json:
        _say(f"report: {units['report'].folder(cfg.folder) / page.FILE}")


_FOLLOWS = (" changed", "stale", "missing", "partial")
"""How a reason ends that is about what an artifact reads, and not about a setting of its own."""
_LINES_A_UNIT = 20
_SECONDS_A_LINE = (10.0, 600.0)
"""What a log says of a unit: so many lines, no closer together and no further apart than this."""
_SECONDS_A_PART = 60.0
"""How long a part of a unit that has no share of it takes at the least before a log says so."""
_NOTHING = {
    "documents": "no documents",
    "pairs": "no pairs",
    "synthetic": "no synthetic text",
    "copies": "nothing is copied from d1",
    "extracted": "no document was asked for; set extract.docs",
    "canaries": "none was planted; set corpus.canaries.count",
    "quarantine": "nothing is quarantined",
    "judged": "no judge was asked, or none called a text faulty; see analyze.judges",
}


class _progress:
    """Progress on stderr: bars with the time left on a terminal; elsewhere a line per event, and
    now and then how far a unit is."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = Console(stderr=True)
        # Bars are for eyes; a log gets lines.
        self.live = self.console.is_terminal
        self.states: dict[str, State] = {}
        self.total = 0
        self.done = 0
        self.tasks: dict[str, Any] = {}
        # By unit: when progress was first told and last written, and the share done then.
        self.first: dict[str, tuple[float, float]] = {}
        self.written: dict[str, tuple[float, float]] = {}
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            console=self.console,
            disable=not self.live,
        )

    def __enter__(self) -> _progress:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def tell(self, name: str, kind: str, value: Any) -> None:
        if kind == "point":
            number, points = value
            self._line(f"point {number} of {points}: {name}")
        elif kind == "plan":
            self._plan(value)
        elif kind == "start":
            self.tasks[name] = self.bars.add_task(name, total=1.0, words="starting")
        elif kind == "progress":
            done, words = value
            self.bars.update(self.tasks[name], completed=done, words=one_line(words))
            if not self.live:
                self._log(name, done, words)
        elif kind == "note":
            self._line(f"{name}: {value}")
        elif kind == "kept":
            self.total -= 1
            self._line(f"{name}: kept, as what it reads came out as it was")
        elif kind == "done":
            self.done += 1
            self.bars.remove_task(self.tasks[name])
            memory = _size(value["peak_memory_bytes"])
            account = f"; {value['account']}" if value["account"] else ""
            self._line(
                f"[{self.done}/{self.total}] {name}: {value['seconds']:.1f} s, {memory}{account}"
            )

    def _plan(self, states: dict[str, State]) -> None:
        """What will be made, and what made stale what is there."""
        self.states = states
        self.done = 0
        self.total = sum(state.status != "done" for state in states.values())
        for name, state in states.items():
            if state.status == "stale" and not state.reasons[0].endswith(_FOLLOWS):
                reasons = ", ".join(state.reasons)
                self._line(f"{name}: stale ({reasons}); it and what reads it will be rebuilt")

    def _log(self, name: str, done: float, words: str) -> None:
        """A line about a unit that is at work, where the last is long enough ago."""
        now = time.monotonic()
        started, share = self.first.setdefault(name, (now, done))
        written, before = self.written.setdefault(name, (now, done))
        waited = now - written
        least, most = _SECONDS_A_LINE
        is_further = int(done * _LINES_A_UNIT) > int(before * _LINES_A_UNIT)
        if not share < done < 1:
            # before or after the part whose rate says how long it takes
            if done <= share:
                self.first[name] = (now, done)
            if waited >= _SECONDS_A_PART:
                self.written[name] = (now, done)
                self._line(f"{name}: {words}")
            return
        if waited < least or not (is_further or waited >= most):
            return

        self.written[name] = (now, done)
        left = (now - started) * (1 - done) / (done - share)
        self._line(f"{name}: {done:.0%}, {words}; {_duration(left)} left")

    def _line(self, text: str) -> None:
        """A line above the bars, as it is: paths and counts are no markup."""
        self.console.print(one_line(text), markup=False, highlight=False, soft_wrap=True)


def _print_states(units: dict[str, Unit], states: dict[str, State]) -> None:
    for name in units:
        state = states[name]
        reasons = f" ({', '.join(state.reasons)})" if state.reasons else ""
        _say(f"{name}: {state.status}{reasons}")


def _print_cost(planned: Plan, where: str) -> None:
    from synthboot.runner import cost as plans
    from synthboot.runner.work import size

    rows = []
    for row in planned.rows:
        rows.append(
            [
                row.stage,
                str(row.artifacts),
                _count(row.tokens),
                f"{row.flops:.2g}",
                size(row.read_bytes),
                size(row.written_bytes),
                size(row.kept_bytes),
                size(row.memory_bytes),
                _hours(row.device_hours),
                _hours(row.hours),
                _dollars(row.dollars),
            ]
        )
    if rows:
        header = [
            "stage",
            "artifacts",
            "tokens",
            "FLOPs",
            "read",
            "written",
            "kept",
            "a device's memory",
            "device hours",
            "hours",
            "$",
        ]
        _print_table(header, rows)

    _say(plans.sentence(plans.totals(planned), where))
    for problem in planned.misfits:
        _say(f"does not fit: {problem}")
    if planned.dollars and planned.dollars >= 0.5:
        machine = planned.machine
        price = f"${machine.dollars_per_device_hour:.2f} ({machine.source})"
        devices = f"{machine.devices} x {_hours(planned.hours)} hours"
        _say(f"money: ${planned.dollars:,.0f}, {devices} at {price}")
    if rows:
        _say(f"sizes: by {planned.corpus.source}")
    rates: dict[str, list[str]] = {}
    for row in planned.rows:
        rates.setdefault(row.rate, []).append(row.stage)
    for rate, stages in rates.items():
        _say(f"rate of {', '.join(stages)}: {rate}")
    for note in planned.notes:
        _say(f"note: {note}")


def _print_check(checked: list[Checked], as_json: bool) -> None:
    from synthboot.errors import MissingArtifact
    from synthboot.runner import cost as plans

    if not checked:
        raise MissingArtifact(
            "plan --check: no finished artifact here was made by these settings; run first"
        )
    error = plans.median_error(checked)
    if as_json:
        rows = [{**asdict(row), "ratio": row.ratio} for row in checked]
        _say_json({"artifacts": rows, "median_error": error})
        return
    table = [
        [row.artifact, f"{row.predicted:.1f}", f"{row.actual:.1f}", f"{row.ratio:.2f}", row.rate]
        for row in checked
    ]
    _print_table(["artifact", "predicted, s", "actual, s", "ratio", "rate"], table)
    _say(f"median error of {len(checked)}: a factor of {error:.2f}")


def _print_scores(evaluation: Evaluation) -> None:
    from synthboot.data.items import titles

    counts_by_arm = evaluation.counts_by_arm
    rows = []
    for arm, result in evaluation.arms.items():
        counts = counts_by_arm[arm]
        unique = _count(counts.unique_real_tokens)
        rows.append(
            [
                arm,
                _with_interval(result.loss),
                f"{evaluation.other.arms[arm].loss.value:.4f}",
                f"{result.perplexity.value:.2f}",
                f"{result.bits_per_byte.value:.4f}",
                _share(result),
                f"{counts.real_epochs:.1f} x {unique}",
                _count(counts.synthetic_tokens),
            ]
        )
    header = [
        "arm",
        f"test loss ({evaluation.checkpoint})",
        f"({evaluation.other_checkpoint})",
        "perplexity",
        "bits/byte",
        "oracle share",
        "real text",
        "synthetic",
    ]
    _print_table(header, rows)

    tasks = evaluation.questions
    if tasks:
        answered = []
        for arm in evaluation.arms:
            answered.append([arm, *(_accuracy(task, arm) for task in tasks.values())])
        _print_table(["answered right", *titles(list(tasks))], answered)
    _say(evaluation.verdict)
    if evaluation.chosen.more_compute:
        _say(evaluation.chosen.more_compute)


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    for line in table_lines(header, rows):
        _say(line)


def _print_example(example: Example) -> None:
    """An example's texts side by side, one below the other where there is little room."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    console = Console()
    panels = []
    for title, parts in example.texts.items():
        # A line without spaces goes on in the next, rather than end in dots.
        text = Text(overflow="fold")
        for part, origin in parts:
            text.append(safe(part), style=("", "bold yellow", "bold red")[origin])
        panels.append(Panel(text, title=Text(one_line(title))))
    # Below forty columns each, texts are hard to read side by side.
    beside = console.width >= 40 * len(panels)
    grid = Table.grid(expand=True)
    # A column for every text, or one for all of them.
    for _ in panels if beside else panels[:1]:
        grid.add_column(ratio=1, overflow="fold")
    if beside:
        grid.add_row(*panels)
    else:
        for panel in panels:
            grid.add_row(panel)

    # Captured, so that a closed pipe is met in one place (`_write`).
    with console.capture() as drawn:
        console.print(Text(one_line(example.title), style="bold", overflow="fold"))
        console.print(grid)
    _write(drawn.get())


def _say(text: str, err: bool = False) -> None:
    _write(safe(text) + "\n", err)


def _say_json(value: Any) -> None:
    encoding = (sys.stdout.encoding or "").lower()
    _say(json.dumps(value, indent=1, ensure_ascii="utf" not in encoding))


def _write(text: str, err: bool = False) -> None:
    """Print what is safe to print; where nobody reads on, end without a word."""
    stream = sys.stderr if err else sys.stdout
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # Python flushes at exit, and would fail again on the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(141)


def _with_interval(figure: Interval) -> str:
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"


def _share(result: ArmResult) -> str:
    share = result.oracle_share
    return "" if share is None else f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def _against_repetition(result: ArmResult) -> str:
    gap = result.difference
    return "" if gap is None else f"{gap.value:+.4f} (p = {gap.p:.2g})"


def _accuracy(task: TaskResult | None, arm: str) -> str:
    answers = None if task is None else task.groups["all"].get(arm)
    return "" if answers is None else "{:.1%} [{:.1%}, {:.1%}]".format(*answers.acc)


def _numbers(numbers: list[int]) -> str:
    """The first eight numbers of a list, and how many there are beyond them."""
    most = 8
    shown = ", ".join(map(str, numbers[:most]))
    return shown if len(numbers) <= most else f"{shown} and {len(numbers) - most:,} more"


def _hours(hours: float | None) -> str:
    if hours is None:
        return "-"
    if hours < 0.01:
        return "<0.01"
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _dollars(dollars: float | None) -> str:
    return "-" if dollars is None else f"{dollars:,.0f}"


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"


def _as_name(stem: str) -> str:
    """A run's name out of a file's, which may have anything in it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100] or "mine"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _size(number: float | None) -> str:
    return "" if number is None else f"{number / 2**30:.2f} GiB"
