"""The verbs that make something: init, run, every stage, study; plan says what it takes."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synthboot.cli import formats
from synthboot.cli.command import Verb, configured, main, replacing, taking
from synthboot.cli.output import print_table, say, say_json
from synthboot.cli.printed import (
    print_check,
    print_cost,
    print_plan,
    print_scores,
    print_states,
    print_study,
)
from synthboot.cli.progress import RunProgress

if TYPE_CHECKING:
    from synthboot.config import Config

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
    from synthboot.lm.batches import LEAST_KEPT
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
        say(line)

    if survey.is_too_bad:
        say(
            f"{survey.bad_share:.1%} of the records are bad: mend them, or they are left out "
            f"(corpus.max_quarantine)"
        )

    proposed = propose(survey, _as_name(out.stem), hours)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(proposed.text)
    except FileExistsError:
        raise ConfigError(taken) from None
    say(
        f"{out}: arms of {proposed.train_tokens:,} tokens, {proposed.unique_tokens:,} of them "
        f"unique; about {duration(proposed.hours)} here (to a factor of two)"
    )
    if proposed.kept_share < LEAST_KEPT:
        say(
            f"documents are long: the synthesizer has room for {proposed.kept_share:.0%} of them, "
            f"the beginning of each; cut them into chapters or sections (docs/own-text.md)"
        )
    if proposed.hours > hours:
        say(f"that is more than --hours {hours:g}: less would be too little to learn from")
    named = shlex.quote(str(out))
    say(f"next: synthboot pair {named}   what related documents tell of each other")
    say(f"      synthboot plan {named}   what all of it would take; then synthboot run")


@main.command(cls=Verb)
@configured
@replacing
@taking
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
    @configured
    @replacing
    @taking
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
@configured
@replacing
@taking
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

    with RunProgress() as progress:
        executor.run(cfg, "embed", progress.tell, others, replace=replace)
    choices = shown.alphas(cfg)
    if as_json:
        say_json(asdict(choices))
        return

    rows = [
        [
            f"{row.alpha:.2f}",
            formats.count(row.pairs),
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
    print_table(header, rows)
    say(
        f"from {choices.sampled:,} of {choices.docs:,} documents, near-duplicates taken off, "
        "caps and held-out documents not; "
        f"min_similarity now gives {choices.alpha:.3f} ({choices.why})"
    )


@main.command(cls=Verb)
@configured
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
        preflight.check_anywhere(cfg)
        artifacts = plans.units_anywhere(cfg)
    if check:
        print_check(plans.check(cfg, artifacts), as_json)
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
        say_json(
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

    print_states(artifacts, states)
    print_cost(planned, "this machine" if is_here else planned.machine.name)
    if more_compute := verdicts.more_compute(cfg.arms):
        say(more_compute)
    if cfg.tune.init_from is not None:
        say(
            f"external: {cfg.tune.init_from}, a model from outside the corpus, will write the "
            "synthetic text"
        )
    if copying is not None:
        say(plans.copying_sentence(cfg, copying))
    if power is not None:
        say(plans.power_sentence(power))
    if speeds:
        say(f"precision: {precision.sentence(cfg, speeds, ahead=True)}")


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
    show_default="report",
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
@replacing
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

    for name in ("vary", "seeds", "together", "until", "dry_run", "sets", "replace"):
        if options[name]:
            option = {"sets": "set"}.get(name, name).replace("_", "-")
            raise ConfigError(f"study: --{option} is about runs to be made; drop it, or --runs")
    out = options["out"] or paths[0].parent / "study"
    found = studies.collect(paths, out.name)
    found.save(out)
    print_study(found, out, as_json)


def _study(
    paths: tuple[Path, ...],
    as_json: bool,
    *,
    vary: tuple[str, ...],
    together: bool,
    seeds: str | None,
    until: str | None,
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
        target=until or "report",
        out=out,
    )
    if dry_run:
        print_plan(points.plan(), as_json)
        return
    with RunProgress() as progress:
        found = points.run(progress.tell, replace)
    print_study(found, points.out, as_json)
    failed = [row.point for row in found.rows if row.failed]
    if failed:
        raise TrainingError(
            f"study: {len(failed)} of {len(found.rows)} points failed ({', '.join(failed[:5])}); "
            f"the table says of what"
        )


def _execute_part(cfg: Config, target: str, as_json: bool, name: str, replace: bool) -> None:
    from synthboot.artifacts import parts
    from synthboot.runner import executor

    part = parts.parse(name)
    with RunProgress() as progress:
        made = executor.run_part(cfg, target, part, progress.tell, replace)
    if as_json:
        say_json({"part": str(part), "units": made})
    elif made:
        say(
            f"{target}: part {part} done, of {', '.join(made)} ({cfg.folder}); "
            f"after all {part.count} parts: the same command without --part"
        )
    else:
        say(f"{target}: nothing for part {part} to do ({cfg.folder})")


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

    with RunProgress() as progress:
        units = executor.run(
            cfg=cfg, target=target, tell=progress.tell, others=others, only=only, replace=replace
        )

    if target in ("report", "evaluate"):
        evaluation = Evaluation.open(units["evaluate"].folder(cfg.folder))
        if as_json:
            say_json(evaluation.as_json())
        else:
            print_scores(evaluation)
    elif as_json:
        say_json({name: state.status for name, state in progress.states.items()})
    else:
        kept = len(units) - progress.total
        made = formats.artifacts(progress.total)
        say(f"{target}: done, {made} made, {kept:,} there before ({cfg.folder})")

    if target == "report" and not as_json:
        say(f"report: {units['report'].folder(cfg.folder) / page.FILE}")


def _as_name(stem: str) -> str:
    """A run's name out of a file's, which may have anything in it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100] or "mine"
