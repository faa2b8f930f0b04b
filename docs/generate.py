"""Write what the documents have from elsewhere; a test holds them to it.

From the code: docs/cli.md, docs/config.md. From the tables of each experiment: its result.json. From those: the index of
the experiments, the claims restated by `synthboot.statistics`, and the README's table of what was found.
"""

import json
import re
import runpy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
from pydantic import BaseModel

from synthboot import config, loading, schema, statistics
from synthboot.cli import main
from synthboot.runner import cost
from synthboot.runner.state import states

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
LEVEL = 0.05
RESTATED = "2026-11-25-claims-restated"
RELATION = runpy.run_path(str(EXPERIMENTS / "relation.py"))
FIRST_SCREEN = (
    ("2026-11-27-world-own-texts", "known world, 27 epochs, ten seeds", "half, own, a text for every seed"),
    ("2026-11-26-pointer-four", "articles, 12 epochs, five seeds", "a quarter, own, by a pointer"),
    ("2026-11-27-worn-articles", "articles, 24 epochs, dropout, five seeds", "a quarter, own, by a pointer"),
    ("2026-11-26-pointer-abstracts", "abstracts, 12 epochs, four seeds", "a quarter, own, by a pointer"),
    ("2026-11-26-external-writer", "abstracts, 12 epochs, ten seeds (repetition five)", "a tenth, external"),
    ("2026-11-27-external-articles", "articles, 24 epochs, dropout, four seeds", "a tenth, external"),
    ("2026-11-27-tuned-writer", "articles, 24 epochs, dropout, ten seeds", "a quarter, external"),
    (
        "2026-11-27-tuned-again",
        "the same, four and five other seeds",
        "a quarter, external, tuned again, a text for every seed",
    ),
    ("2026-11-26-continue", "152 abstracts, 2 epochs, three seeds; continues a model of 135M", "a quarter, by that model"),
)
"""What the README says was found: experiment, what arms were trained on, how much of sbp's text is synthetic, by whom."""
RIVALS = {
    "`repetition`, tuned": ("sbp against repetition",),
    "`self`": ("sbp: against self",),
    "`random_pairs`": ("sbp: against random", "sbp: against random_pairs"),
}
"""What sbp is compared with there, and what the experiments' tables call that."""
ADJUSTED = {("2026-11-27-tuned-writer", "sbp: against random")}
"""Shown by itself, and not once the number of comparisons is allowed for, as its experiment says."""


LARGER = {
    "budget.unique_tokens": 50_000_000_000,
    "budget.train_tokens": 1_000_000_000_000,
    "arms.oracle.unique_tokens": 482_000_000_000,
    "tune.max_tokens": 50_000_000_000,
}
SIX = {"model.layers": 32, "model.width": 4_096, "model.heads": 32, "model.ffn": 10_752}
SCALES: dict[str, tuple[int, dict[str, Any]]] = {
    "200B tokens, 3B": (11_000, {}),
    "1T tokens, 3B": (59_000, {**LARGER, "arms.sbp.share": 0.125}),
    "1T tokens, 6B": (265_000, {**LARGER, **SIX, "arms.sbp.share": 0.25}),
}
"""The paper's three scales: the TPU-hours that it prints, and what of configs/paper.yaml is another there."""
POOL: dict[str, dict[str, Any]] = {
    "all 582M documents by clusters": {"budget.unique_tokens": 482_000_000_000},
    "each with all, exactly": {"budget.unique_tokens": 482_000_000_000, "pair.search": "exact"},
}


def cli() -> str:
    """Every verb's help."""
    parts = ["# Command line\n\nWritten by `make docs` from the code.\n"]
    context = main.make_context("synthboot", [], resilient_parsing=True, max_content_width=100)
    for name in [None, *main.list_commands(context)]:
        command: Any = main if name is None else main.commands[name]
        inner = context if name is None else click.Context(command, info_name=name, parent=context, max_content_width=100)
        title = "synthboot" if name is None else f"synthboot {name}"
        parts.append(f"## {title}\n\n```text\n{command.get_help(inner)}\n```\n")
    return "\n".join(parts)


def settings() -> str:
    """Every setting with its default and its help text."""
    parts = [
        "# Settings\n\nWritten by `make docs` from `config/`. No default: required.\n"
        "Relative paths are seen from the folder that a command runs in, wherever the file of settings lies.\n"
    ]
    top = []
    for name, field in config.Config.model_fields.items():
        section = next((a for a in [field.annotation, *get_args(field.annotation)] if _is_section(a)), None)
        if section is None:
            top.append((name, field))
        else:
            title = f"{name}.NAME" if name == "arms" else name
            parts += _section("##", title, section)
    parts.insert(1, f"## (top level)\n\n{_settings_table(top)}")
    return "\n".join(parts)


def _section(heading: str, title: str, section: Any) -> list[str]:
    """A section and those inside it."""
    parts = [f"{heading} {title}\n\n{_plain(section.__doc__)}\n\n{_settings_table(section.model_fields.items())}"]
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            parts += _section("###", f"{title}.{name}", field.annotation)
    return parts


def _is_section(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _settings_table(fields: Any) -> str:
    rows = ["| setting | default | takes | |", "|---|---|---|---|"]
    for name, field in fields:
        default = "" if field.is_required() else f"`{field.default}`"
        rows.append(f"| `{name}` | {default} | {_plain(schema.takes(field))} | {_plain(field.description)} |")
    return "\n".join(rows) + "\n"


def _plain(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


# --- experiments ---


@dataclass(frozen=True)
class Claim:
    """A difference of two arms as it was printed, and what can be said of it now.

    `low`, `high` and `p` are those of percentiles over resampled seeds and documents if `resampled`, as before 2026-11-25;
    otherwise they are those of `synthboot.statistics`, and stand. `by_seed` has the losses of both arms where they were
    printed.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    by_seed: tuple[list[float], list[float]] | None = None
    seeds: int = 3
    resampled: bool = True

    def recomputed(self) -> statistics.Estimate | None:
        """The paired t-interval over seeds alone: what documents add is not known any more."""
        if self.by_seed is None or not self.resampled:
            return None
        first, second = self.by_seed
        return _over_seeds([a - b for a, b in zip(first, second, strict=True)])

    def bound(self) -> float | None:
        """p, if the ends of the printed interval are its extreme seeds and its mean gives the third.

        The old rule's interval reaches at least that far wherever seeds' noise rules, and further where documents add
        to it, so this is not too sure: simulate.py beside the restated claims.
        """
        if self.value is None or self.low is None or self.high is None or self.seeds != 3:
            return None
        return _over_seeds([self.low, self.high, 3 * self.value - self.low - self.high]).p

    def standing(self) -> str:
        """In a word or two, what is left of it."""
        if not self.resampled:
            shown = self.p is not None and self.p <= LEVEL
            return ("better" if (self.value or 0) < 0 else "**worse**") if shown else "not shown"
        found = self.recomputed()
        if found is not None:
            return "shown by its seeds" if found.p <= LEVEL else "**not shown**"
        # The old rule was too sure: what it did not show, nothing does.
        if (self.low is not None and self.high is not None and self.low <= 0 <= self.high) or (self.p or 0) > LEVEL:
            return "not shown"
        bound = self.bound()
        if bound is None:
            return "cannot be recomputed †"
        return "suggestive †" if bound <= LEVEL else "cannot be told †"


def _over_seeds(gaps: list[float]) -> statistics.Estimate:
    # Two items that are alike: no noise of items, and the interval is Student's over the seeds.
    return statistics.estimate(np.repeat(np.array(gaps)[:, None], 2, axis=1))


def folders() -> list[Path]:
    """The experiments, newest first."""
    return sorted((path.parent for path in EXPERIMENTS.glob("*/README.md")), reverse=True)


def result(folder: Path) -> str:
    """result.json: the tables of the README, and claims that stand in its text, which are kept by hand."""
    kept = json.loads((folder / "result.json").read_text("utf-8")) if (folder / "result.json").exists() else {}
    page = (folder / "README.md").read_text("utf-8")
    parts = [f' "claims": {_lines(kept.get("claims", []))}']
    for table in _tables(page):
        names = json.dumps({"section": table["section"], "columns": table["columns"]}, ensure_ascii=False)
        parts.append(f'  {names.removesuffix("}")}, "rows": {_lines(table["rows"])}}}')
    return f'{{\n{parts[0]},\n "tables": [\n' + ",\n".join(parts[1:]) + "\n ]\n}\n"


def _lines(values: list[Any]) -> str:
    """JSON with a value a line."""
    return "[" + ",".join(f"\n   {json.dumps(value, ensure_ascii=False)}" for value in values) + "]"


def _tables(page: str) -> Iterator[dict[str, Any]]:
    section = ""
    rows: list[list[Any]] = []
    for line in [*page.split("\n"), ""]:
        if line.startswith("|"):
            rows.append([text.strip() for text in line.strip("|").split("|")])
            continue
        if rows:
            columns = [_bare(text) for text in rows[0]]
            yield {"section": section, "columns": columns, "rows": [[_figure(text) for text in row] for row in rows[2:]]}
            rows = []
        if line.startswith("#"):
            section = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", line.lstrip("# "))  # a link's words alone


def _bare(text: str) -> str:
    return text.replace("**", "").replace("†", "").strip()


def _figure(text: str) -> Any:
    """A cell: a number, a figure with its interval, numbers by seed, or text. Per cent stay per cent."""
    text = _bare(text)
    number = r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?"
    parts = [part.removesuffix("%").strip() for part in re.split(r"(?:, | to | [\[(])", text.rstrip("])"))]
    if not all(re.fullmatch(number, part) for part in parts):
        return text or None
    values = [float(part.replace(",", "")) for part in parts]
    if len(values) == 3 and text[-1] in "])":
        return dict(zip(("value", "low", "high"), values, strict=True))
    return values if len(values) > 1 else values[0]


def claims(folder: Path) -> list[Claim]:
    """What an experiment says of differences: in its tables, and what result.json adds from its text."""
    stored = json.loads((folder / "result.json").read_text("utf-8"))
    found = [claim for table in stored["tables"] for claim in _in_table(table)]
    for entry in stored.get("claims", []):
        found.append(Claim(**entry))
    return [replace(claim, resampled=folder.name < RESTATED) for claim in found]


def _in_table(table: dict[str, Any]) -> Iterator[Claim]:
    columns = table["columns"]
    losses = {row[0]: row[columns.index("by seed")] for row in table["rows"]} if "by seed" in columns else {}
    for row in table["rows"]:
        for at, column in enumerate(columns):
            if "against" not in column or not isinstance(row[at], dict):
                continue
            follows = columns[at + 1] if at + 1 < len(columns) else ""
            other = column.removeprefix("against ")
            name = f"{row[0]} {column}" if column == "against repetition" else f"{row[0]}: {column}"
            yield Claim(
                name=name if table["section"] == "Result" else f"{table['section']}: {name}",
                **row[at],
                p=row[at + 1] if follows in ("p", "p then") else None,
                by_seed=(losses[row[0]], losses[other]) if other in losses else None,
            )


def index() -> str:
    """experiments/README.md: what was asked, what came out, and whether it stands."""
    rows = ["| date | question | answer | status |", "|---|---|---|---|"]
    for folder in folders():
        page = (folder / "README.md").read_text("utf-8")
        parts = [re.search(rf"^\*\*{name}\.\*\* (.*)$", page, re.M) for name in ("Question", "Answer", "Status")]
        question, answer, status = (part[1] if part else "" for part in parts)
        standing = re.split(r"[:;.]", status)[0]
        standing = standing if standing.startswith("Stands") else f"**{standing}**"
        rows.append(f"| {folder.name[:10]} | [{question}]({folder.name}/README.md) | {answer} | {standing} |")
    return _filled((EXPERIMENTS / "README.md").read_text("utf-8"), "index", "\n".join(rows))


def restated() -> str:
    """The claims of every experiment by the statistics of today."""
    parts = []
    for folder in reversed(folders()):
        found = claims(folder) if folder.name < RESTATED else []
        if not found:
            continue
        rows = [
            "| claim | difference then | p then | by its seeds now | p now | p at most | |",
            "|---|---|--:|---|--:|--:|---|",
        ]
        for claim in found:
            new = claim.recomputed()
            bound = claim.bound()
            rows.append(
                f"| {claim.name} | {_span(claim.value, claim.low, claim.high)} | {_p(claim.p)} "
                f"| {_span(new.value, new.low, new.high) if new else ''} | {_p(new.p if new else None)} "
                f"| {_p(None if new else bound)} | {claim.standing()} |"
            )
        title = (folder / "README.md").read_text("utf-8").partition("\n")[0].lstrip("# ")
        parts.append(f"### [{title}](../{folder.name}/README.md)\n\n" + "\n".join(rows))
    return _filled((EXPERIMENTS / RESTATED / "README.md").read_text("utf-8"), "claims", "\n\n".join(parts))


def readme() -> str:
    """The README with its table of what was found."""
    rows = [
        f"| trained on | synthetic text of `sbp` | {' | '.join(f'minus {rival}' for rival in RIVALS)} |",
        "|---|---|---|---|---|",
    ]
    for name, text, written in FIRST_SCREEN:
        found = {claim.name: claim for claim in claims(EXPERIMENTS / name)}
        cells = [_difference(name, next((found[claim] for claim in of if claim in found), None)) for of in RIVALS.values()]
        rows.append(f"| [{text}](experiments/{name}/README.md) | {written} | {' | '.join(cells)} |")
    return _filled((ROOT / "README.md").read_text("utf-8"), "found", "\n".join(rows))


def _difference(experiment: str, claim: Claim | None) -> str:
    """What was found of two arms, bold where it is shown."""
    if claim is None:
        return ""
    assert not claim.resampled, f"{experiment}: its intervals are of the old rule"
    span = f"{claim.value:+.3f} ({claim.low:+.3f} to {claim.high:+.3f})"
    if (experiment, claim.name) in ADJUSTED:
        return f"{span} †"
    return f"**{span}**" if claim.p is not None and claim.p <= LEVEL else span


def scaling() -> str:
    """The page about more than one machine, with its tables as `synthboot plan` has them."""
    page = _filled((ROOT / "docs" / "scaling-out.md").read_text("utf-8"), "pool", _pool())
    return _filled(page, "scales", _scales())


def _planned(hardware: str, sets: Mapping[str, Any]) -> dict[str, cost.Row]:
    """The stages of a plan of configs/paper.yaml, of which nothing is done, by name."""
    cfg = loading.load(ROOT / "configs" / "paper.yaml", set={"root": "nowhere", **sets})
    units = cost.units_anywhere(cfg)
    found = cost.plan(cfg, units, states(cfg, units), hardware)
    return {row.stage: row for row in found.rows}


def _pool() -> str:
    rows = ["| what | FLOPs | H100-hours | dollars | rate |", "|---|---|---|---|---|"]

    def add(what: str, row: cost.Row) -> None:
        rows.append(f"| {what} | {row.flops:.2g} | {row.device_hours:,.0f} | {row.dollars:,.0f} | {row.rate} |")

    smallest = _planned("h100", {})
    for what, sets in POOL.items():
        found = _planned("h100", sets)
        if len(rows) == 2:
            add("corpus: read, deduplicated, tokenized, by one process", found["corpus"])
            add("embed: all 582M documents", found["embed"])
        add(f"pair: {what}", found["pair"])
    add("synthesize: 75B tokens by the 3B model", smallest["synthesize"])
    add("base: 200B tokens, 3B", smallest["base"])
    return "\n".join(rows) + "\n"


def _scales() -> str:
    rows = [
        "| scale | paper | base | tune | synthesize | sbp | base to sbp | times the paper's | oracle too |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for scale, (printed, sets) in SCALES.items():
        found = _planned("8xtpu-v5p", {"engine.processes": 8, "engine.shard": True, **sets})
        hours = {stage: row.device_hours or 0.0 for stage, row in found.items()}
        arm = hours["pretrain"] / found["pretrain"].artifacts
        steps = [hours["base"], hours["tune"], hours["synthesize"], arm]
        ours = sum(steps) + hours["embed"] + hours["pair"]
        cells = [
            scale,
            f"{printed:,}",
            *(f"{h:,.0f}" for h in steps),
            f"{ours:,.0f}",
            f"{ours / printed:.2f}",
            f"{ours + arm:,.0f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _span(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return ""
    return f"{value:+.4g}" if low is None or high is None else f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


def _p(p: float | None) -> str:
    return "" if p is None else f"{p:.2f}" if p >= 0.095 else f"{p:.2g}"


def _filled(page: str, name: str, text: str) -> str:
    """A page with what stands between its markers of that name replaced."""
    before, start, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (start and end):
        raise ValueError(f"no <!-- {name} --> ... <!-- /{name} --> in a page that begins {page[:60]!r}")
    return f"{before}{start}{text}\n{end}{after}"


def pages() -> Iterator[tuple[Path, Callable[[], str]]]:
    """Every generated file and what makes it, sources first."""
    yield ROOT / "docs" / "cli.md", cli
    yield ROOT / "docs" / "config.md", settings
    # The restated claims are made of all others' results, and have tables of their own.
    latest = EXPERIMENTS / RESTATED
    for folder in folders():
        if folder != latest:
            yield folder / "result.json", lambda folder=folder: result(folder)
    yield latest / "README.md", restated
    yield latest / "result.json", lambda: result(latest)
    yield EXPERIMENTS / "README.md", index
    yield ROOT / "README.md", readme
    yield ROOT / "docs" / "scaling-out.md", scaling
    yield RELATION["PICTURE"], RELATION["svg"]


if __name__ == "__main__":
    for path, make in pages():
        path.write_text(make(), "utf-8")
