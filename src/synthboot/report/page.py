"""One self-contained HTML page from what all the other stages left: no network, no libraries.

Corpus text reaches the page as JSON and is placed with `textContent`, so nothing in it can become
markup or script; the policy of the page runs one script alone, ours, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from synthboot.artifacts.store import flat, plain
from synthboot.data.items import titles
from synthboot.lm.batches import tokens_until_copying
from synthboot.report import filters, leaks, quality
from synthboot.report.charts import (
    COLORS,
    PALETTE,
    charts,
    colors,
    rounds,
)
from synthboot.report.results import Cost, Results
from synthboot.terminal import safe

_USER = re.compile(r"(?<=://)[^\s'\"/@]*@")
_QUERY = re.compile(r"(https?://[^\s'\"?]*)\?[^\s'\"]*")
FILE = "report.html"
"""Where a report artifact has its page."""


def report(results: Results) -> str:
    """The page."""
    from markupsafe import Markup

    evaluated = results.evaluate
    cfg = results.config
    settings = cfg.model_dump(mode="json", exclude={"engine", "root"})
    asked = list(evaluated.contamination)
    analyzed = results.analyze
    groups = {group for task in evaluated.questions.values() for group in task.groups}

    return rendered(
        "report.html.j2",
        title=f"synthboot: {results.name}",
        results=results,
        scores=evaluated.chosen,
        other=evaluated.other,
        other_name=evaluated.other_checkpoint,
        token_counts=evaluated.counts_by_arm,
        source=keyless(cfg.corpus.source),
        settings=[(name, keyless(value)) for name, value in sorted(flat(settings).items())],
        quality=quality.measures(analyzed) if analyzed else None,
        recipes=settings["arms"],
        titles=dict(zip(asked, titles(asked), strict=True)),
        has_told=any(group.endswith("told") for group in groups),
        paint=colors(evaluated.chosen.kinds),
        figures={figure.id: figure for figure in charts(results)},
        rounds=rounds(results),
        given_back=leaks.FIGURES,
        conditioning={unit: tuned.conditioning for unit, tuned in results.tune.items()},
        copying_after=tokens_until_copying(cfg.optim.batch_tokens),
        pair=results.related,
        stages=by_stage(results.costs),
        judged=analyzed and quality.table(analyzed),
        duplicates=analyzed and quality.curves(analyzed),
        filtered=filters.table(filters.effects(evaluated)),
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        examples=Markup(as_json([plain(example) for example in results.examples.sampled])),
        spread=Markup(as_json([plain(example) for example in results.examples.spread])),
    )


def keyless(setting: object) -> str:
    """A setting without what may be the key of an address: what stands before its host and, on the
    web, behind its path."""
    return _QUERY.sub(r"\1", _USER.sub("", str(setting)))


def rendered(template: str, **values: Any) -> str:
    """A template filled with values, the style, and the one script that the page may run."""
    from jinja2 import Environment, PackageLoader, select_autoescape
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("synthboot", "report"),
        autoescape=select_autoescape(["html", "j2"]),
    )
    files = resources.files("synthboot.report")
    script = files.joinpath("report.js").read_text("utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    page = environment.get_template(template).render(
        **values,
        palette=palette(),
        style=Markup(files.joinpath("report.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(digest).decode(),
    )
    # macros leave empty lines before the page begins; whoever wrote a document does not get to move
    # the cursor of a terminal that the page is shown on, nor to turn the direction of its lines
    return safe(page.lstrip()) + "\n"


def palette() -> dict[str, tuple[str, str]]:
    """By the name of a colour, what it is on white and in the dark."""
    return COLORS | {f"other-{number}": pair for number, pair in enumerate(PALETTE)}


@dataclass(frozen=True)
class StageCost:
    """The artifacts of a stage, and what they cost together."""

    artifacts: Sequence[Cost]

    @property
    def tokens(self) -> float | None:
        """Tokens read and written, where they are counted."""
        return _sum(cost.tokens for cost in self.artifacts)

    @property
    def flops(self) -> float | None:
        """FLOPs, where they are counted."""
        return _sum(cost.flops for cost in self.artifacts)

    @property
    def hours(self) -> float:
        """Of one artifact after another."""
        return sum(cost.seconds for cost in self.artifacts) / 3600

    @property
    def memory(self) -> int:
        """The most bytes that one of them had."""
        return max(cost.peak_memory_bytes for cost in self.artifacts)


def by_stage(costs: Sequence[Cost]) -> dict[str, StageCost]:
    """The artifacts by stage, in the order of their folders."""
    stages: dict[str, list[Cost]] = {}
    for cost in costs:
        stages.setdefault(cost.stage, []).append(cost)
    ordered = sorted(stages.items(), key=lambda stage: stage[1][0].folder)
    return {name: StageCost(artifacts) for name, artifacts in ordered}


def _sum(amounts: Iterable[float | None]) -> float | None:
    """The sum of those that are known; None where none is."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None


def as_json(value: object) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
