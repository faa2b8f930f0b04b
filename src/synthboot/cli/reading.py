"""The verbs that read what was made: status, show, export, compare; and convert."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from synthboot.cli import formats
from synthboot.cli.command import Verb, configured, main
from synthboot.cli.output import print_table, say, say_json
from synthboot.cli.printed import print_example, print_exported

if TYPE_CHECKING:
    from synthboot.config import Config
    from synthboot.export.export import What

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
"""What can be shown, and what is said where there is nothing of it."""


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
        say_json([asdict(row) for row in rows])
        return
    header = ["artifact", "status", "tokens", "seconds", "peak memory"]
    table = [
        [
            row.unit,
            row.status,
            formats.count(row.tokens),
            formats.count(row.seconds),
            formats.size(row.peak_memory_bytes),
        ]
        for row in rows
    ]
    print_table(header, table)
    for row in rows:
        if row.account:
            say(f"{row.unit}: {row.account}")
        for part in row.parts:
            missing = [f"{name} {formats.numbers(lost)}" for name, lost in part.missing.items()]
            what = f", missing: {'; '.join(missing)}" if missing else ""
            say(f"{row.unit}: part {part.part} {part.state}{what}")


@main.command(cls=Verb)
@click.argument("run", metavar="RUN | CONFIG", type=click.Path(path_type=Path))
@click.argument(
    "what",
    type=click.Choice([*_NOTHING, "quality"]),
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
    examples = shown.examples(
        run=run_folder, what=what, count=count, near=near, grep=grep, like=like, of=of
    )
    if as_json:
        say_json([asdict(example) for example in examples])
        return
    if not examples:
        say(f"{run_folder}: {_NOTHING[what] if grep is None else 'nothing matches'}")
    for example in examples:
        print_example(example)


def _show_quality(run: Path, as_json: bool) -> None:
    from synthboot import show as shown
    from synthboot.report import filters, quality

    analyzed = shown.analyzed(run)
    evaluated = shown.evaluated(run)
    filtered = {} if evaluated is None else filters.effects(evaluated)
    if as_json:
        of_filters = {arm: asdict(effect) for arm, effect in filtered.items()}
        measured = analyzed.as_json()
        say_json(
            {
                "kinds": measured["kinds"],
                "judged": measured["judged"],
                "filters": of_filters,
            }
        )
        return
    tables = [quality.table(analyzed), quality.curves(analyzed)]
    if filtered:
        tables.append(filters.table(filtered))
    for table in tables:
        print_table(table.headers, table.rows)
        for note in table.notes:
            say(note)


@main.command(cls=Verb)
@configured
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
        say_json({**asdict(exported), "folder": str(exported.folder), "best": exported.best})
        return
    print_exported(exported)


@main.command(cls=Verb)
@click.argument("source", metavar="MODEL.gguf", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def convert(source: Path, folder: Path) -> None:
    """Make a Hugging Face folder of a GGUF file, for model.init_from."""
    from synthboot.lm import gguf

    weights = gguf.convert(source, folder)
    say(f"{folder}: {weights:,} weights in float32; set model.init_from={folder}")


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
    from synthboot.errors import DataError
    from synthboot.recipes import folder_of

    folders = [Path(name) for name in names]
    others = [name for name in names if not folder_of(Path(name), "corpus").is_dir()]
    if not others:
        _compare_runs(folders, as_json)
    elif len(others) < len(names):
        raise DataError(
            f"compare: {others[0]}: is no run folder, and others are; "
            "runs are compared with runs, an arm of one is RUN:ARM"
        )
    else:
        _compare_scores(names, metric, wanted, as_json)


def _compare_scores(
    names: tuple[str, ...], metric: str | None, wanted: float | None, as_json: bool
) -> None:
    from synthboot import comparison
    from synthboot.errors import DataError

    if len(names) != 2:
        raise DataError(
            f"compare: two sides are compared, A and B, not {len(names)}; commas join seeds"
        )
    first, second = (name.split(",") for name in names)
    compared = comparison.compare(first, second, metric, wanted)
    if as_json:
        say_json([asdict(row) for row in compared])
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
    print_table(header, rows)
    if all(row.seeds == 1 for row in compared):
        say(
            "One seed of each: this is about these two models, "
            "and says nothing of how others trained alike would differ."
        )


def _compare_runs(runs: list[Path], as_json: bool) -> None:
    from synthboot import show as shown
    from synthboot.data.items import titles

    compared = shown.compare(runs)
    if as_json:
        say_json(compared.as_json())
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
                    formats.with_interval(result.loss),
                    f"{result.bits_per_byte.value:.4f}",
                    formats.share(result),
                    formats.against_repetition(result),
                    *(formats.accuracy(evaluation.questions.get(task), arm) for task in tasks),
                ]
            )
    header = ["run", "arm", "test loss", "bits/byte", "oracle share", "against repetition"]
    print_table([*header, *titles(list(tasks))], rows)

    if compared.differences:
        settings = [[key, *map(str, values)] for key, values in compared.differences.items()]
        print_table(["setting", *compared.evaluations], settings)
