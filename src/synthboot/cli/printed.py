"""Results as tables and sentences: plans, states, scores, studies, exports, examples."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from synthboot.cli import formats
from synthboot.cli.output import print_table, say, say_json, write
from synthboot.terminal import one_line, safe

if TYPE_CHECKING:
    from pathlib import Path

    from synthboot.artifacts.evaluation import Evaluation
    from synthboot.export.export import Exported
    from synthboot.recipes import Unit
    from synthboot.runner.cost import Checked, Plan
    from synthboot.runner.state import State
    from synthboot.show import Example
    from synthboot.studies.study import Planned, Study


def print_plan(planned: list[Planned], as_json: bool) -> None:
    """What a study would take, point by point."""
    from synthboot.runner import cost

    if as_json:
        say_json([asdict(point) for point in planned])
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
                formats.count(found["train_tokens"]),
                formats.count(found["sampled_tokens"]),
                f"{found['flops']:.2g}",
                f"{found['hours']:.2f}",
            ]
        )
    header = ["point", "to make", "taken over", "to train on", "to sample", "FLOPs", "hours"]
    print_table(header, rows)
    say(f"{len(planned)} points; {cost.sentence(total)}")


def print_study(found: Study, out: Path, as_json: bool) -> None:
    """What a study found, and where its page is."""
    from synthboot.report.study import test_sets
    from synthboot.studies.study import CSV, PAGE

    if as_json:
        say_json(found.table())
        return
    figures_of = ("d1_worth", "net_worth", "base_loss", "minus_repetition", "minus_self")
    shown = [name for name in figures_of if name in found.columns]
    rows = []
    for row in found.table():
        figures = ["" if row[name] is None else f"{row[name]:+.4f}" for name in shown]
        rows.append([row["point"], *figures, row["note"]])
    print_table(["point", *(name.replace("_", " ") for name in shown), "note"], rows)
    different = len(test_sets(found.table()))
    if different > 1:
        say(
            f"losses are of {different} different sets of validation and test documents "
            f"(test_set in {out / CSV}): compare them within one; the page joins no others"
        )
    say(f"study: {out / PAGE}")


def print_exported(exported: Exported) -> None:
    """What was written where, and what is not known of its licence."""
    folder = exported.folder
    if exported.what == "models":
        rows = []
        for arm, part in exported.parts.items():
            loss = f"{part['validation_loss']:.4f}"
            rows.append([str(folder / arm), part["kind"], str(part["seed"]), loss])
        print_table(["folder", "kind", "seed", "validation loss"], rows)
        say(f"best by validation loss: {folder / str(exported.best)}")
        say(exported.verdict or "The arms have not been compared; `synthboot evaluate` does.")
    elif exported.what == "tokens":
        [part] = exported.parts.values()
        say(f"{folder}: {part['rows']:,} rows of {part['row_tokens']:,} tokens ({part['dtype']})")
    else:
        rows = []
        for name, part in exported.parts.items():
            rows.append([name, formats.count(part["documents"]), formats.count(part["tokens"])])
        print_table(["part", "documents", "tokens"], rows)
        say(f"{folder}: for datasets.load_dataset")
    if exported.license is None:
        say(
            "licence of the sources: not known; the card says so. State it with --license before "
            "you publish"
        )


def print_states(units: dict[str, Unit], states: dict[str, State]) -> None:
    """Where every artifact stands, and why."""
    for name in units:
        state = states[name]
        reasons = f" ({', '.join(state.reasons)})" if state.reasons else ""
        say(f"{name}: {state.status}{reasons}")


def print_cost(planned: Plan, where: str) -> None:
    """What a run would take, stage by stage, and at which rates."""
    from synthboot.runner import cost as plans
    from synthboot.runner.work import size

    rows = []
    for row in planned.rows:
        rows.append(
            [
                row.stage,
                str(row.artifacts),
                formats.count(row.tokens),
                f"{row.flops:.2g}",
                size(row.read_bytes),
                size(row.written_bytes),
                size(row.kept_bytes),
                size(row.memory_bytes),
                formats.hours(row.device_hours),
                formats.hours(row.hours),
                formats.dollars(row.dollars),
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
        print_table(header, rows)

    say(plans.sentence(plans.totals(planned), where))
    for problem in planned.misfits:
        say(f"does not fit: {problem}")
    if planned.dollars and planned.dollars >= 0.5:
        machine = planned.machine
        price = f"${machine.dollars_per_device_hour:.2f} ({machine.source})"
        devices = f"{machine.devices} x {formats.hours(planned.hours)} hours"
        say(f"money: ${planned.dollars:,.0f}, {devices} at {price}")
    if rows:
        say(f"sizes: by {planned.corpus.source}")
    rates: dict[str, list[str]] = {}
    for row in planned.rows:
        rates.setdefault(row.rate, []).append(row.stage)
    for rate, stages in rates.items():
        say(f"rate of {', '.join(stages)}: {rate}")
    for note in planned.notes:
        say(f"note: {note}")


def print_check(checked: list[Checked], as_json: bool) -> None:
    """A plan beside what it was for finished artifacts."""
    from synthboot.errors import MissingArtifact
    from synthboot.runner import cost as plans

    if not checked:
        raise MissingArtifact(
            "plan --check: no finished artifact here was made by these settings; run first"
        )
    error = plans.median_error(checked)
    if as_json:
        rows = [{**asdict(row), "ratio": row.ratio} for row in checked]
        say_json({"artifacts": rows, "median_error": error})
        return
    table = [
        [row.artifact, f"{row.predicted:.1f}", f"{row.actual:.1f}", f"{row.ratio:.2f}", row.rate]
        for row in checked
    ]
    print_table(["artifact", "predicted, s", "actual, s", "ratio", "rate"], table)
    say(f"median error of {len(checked)}: a factor of {error:.2f}")


def print_scores(evaluation: Evaluation) -> None:
    """All arms' scores, their answers, and the verdict."""
    from synthboot.data.items import titles

    counts_by_arm = evaluation.counts_by_arm
    rows = []
    for arm, result in evaluation.arms.items():
        counts = counts_by_arm[arm]
        unique = formats.count(counts.unique_real_tokens)
        rows.append(
            [
                arm,
                formats.with_interval(result.loss),
                f"{evaluation.other.arms[arm].loss.value:.4f}",
                f"{result.perplexity.value:.2f}",
                f"{result.bits_per_byte.value:.4f}",
                formats.share(result),
                f"{counts.real_epochs:.1f} x {unique}",
                formats.count(counts.synthetic_tokens),
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
    print_table(header, rows)

    tasks = evaluation.questions
    if tasks:
        answered = []
        for arm in evaluation.arms:
            answered.append([arm, *(formats.accuracy(task, arm) for task in tasks.values())])
        print_table(["answered right", *titles(list(tasks))], answered)
    say(evaluation.verdict)
    if evaluation.chosen.more_compute:
        say(evaluation.chosen.more_compute)


def print_example(example: Example) -> None:
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

    # Captured, so that a closed pipe is met in one place (`write`).
    with console.capture() as drawn:
        console.print(Text(one_line(example.title), style="bold", overflow="fold"))
        console.print(grid)
    write(drawn.get())
