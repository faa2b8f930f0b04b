"""One self-contained HTML page from the JSON of all the other stages: plotly inline, no network.

Corpus text reaches the page as JSON and is placed with `textContent`, so nothing in it can become
markup or script.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from synthboot.artifacts.store import flat
from synthboot.lm.batches import tokens_until_copying
from synthboot.report.charts import charts

PAPER = {
    "headers": ["200B, 3B", "1T, 3B", "1T, 6B", "real text"],
    "rows": {
        "repetition within a document": ["4.3 %", "3.9 %", "2.6 %", "1.8 %"],
        "duplicates in a 1M sample": ["0.8 %", "0.8 %", "0.3 %", "0.7 %"],
        "non-factual": ["15.1 %", "8.7 %", "6.5 %", "1.8 %"],
        "d2 unrelated to d1": ["25.6 %", "7.8 %", "6.0 %", "-"],
        "d2 copies d1": ["0.1 %", "0.9 %", "0.3 %", "-"],
        "share of the oracle's gain (QA)": ["42 %", "48 %", "58 %", "-"],
    },
}


FILE = "report.html"
"""Where a report artifact has its page."""


def report(results: Mapping[str, Any]) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, select_autoescape
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("synthboot", "report"), autoescape=select_autoescape(["html", "j2"])
    )
    evaluated = results["evaluate"]
    scores = evaluated[evaluated["checkpoint"]]
    other = "last" if evaluated["checkpoint"] == "best" else "best"
    drawn = charts(results)

    token_counts = {}
    for arm, seeds in evaluated["token_counts"].items():
        token_counts[arm] = next(iter(seeds.values()))  # alike but for the seed
    related = None
    for role, pairs in results["pairs"].items():
        if role.endswith("related") and related is None:
            related = pairs
    conditioning = {role: tuned["conditioning"] for role, tuned in results["tune"].items()}

    page = environment.get_template("report.html.j2").render(
        results=results,
        scores=scores,
        other=evaluated[other],
        token_counts=token_counts,
        settings=sorted(flat(results["config"]).items()),
        quality=quality(results["analyze"]),
        recipes=results["config"]["arms"],
        chart_ids=[chart["id"] for chart in drawn],
        conditioning=conditioning,
        copying_after=tokens_until_copying(results["config"]["optim"]["batch_tokens"]),
        pair=related,
        costs=results["costs"],
        paper=PAPER,
        charts=Markup(_script(drawn)),
        examples=Markup(_script(results["examples"])),
        spread=Markup(_script(results["pair_examples"])),
        plotly=Markup(get_plotlyjs()),
    )
    return page + "\n"


def quality(analyzed: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The quality table: a column per kind of text, a row per measure."""
    if not analyzed:
        return None
    kinds = analyzed["kinds"]
    # the real pairs stand where a reader looks for real text
    relevance = {"unseen real": analyzed["relevance"].get("real pairs")} | analyzed["relevance"]

    def row(format_value: str, *path: str) -> list[str]:
        return [_cell(measures, format_value, path) for measures in kinds.values()]

    n = analyzed["copy_tokens"]
    return {
        "headers": list(kinds),
        "rows": {
            "documents": row(",", "docs"),
            "tokens, mean": row(".0f", "tokens_mean"),
            "4-grams that repeat an earlier one of the document": row(".1%", "repeated_4grams"),
            "documents that loop (over 10 % repeated 8-grams)": row(".1%", "looping"),
            "documents with a near-duplicate in the sample": row(".1%", "duplicates"),
            f"tokens in a run of {n} that D_pretrain holds": row(
                ".1%", "copied_from_corpus", "tokens"
            ),
            f"documents with such a run of {n}": row(".1%", "copied_from_corpus", "docs"),
            "longest such run, tokens": row(".0f", "copied_from_corpus", "longest_max"),
            f"documents with a run of {n} from their d1": row(".1%", "copied_from_d1", "docs"),
            "longest run from d1, tokens": row(".0f", "copied_from_d1", "longest_max"),
            "2-grams that D_pretrain does not hold": row(".1%", "novel_ngrams", "2"),
            "4-grams that D_pretrain does not hold": row(".1%", "novel_ngrams", "4"),
            "similarity of d1 and d2 (first column: real pairs)": [
                _cell(relevance, ".3f", (name, "mean")) for name in kinds
            ],
            "4-grams that no other place of the sample has": row(".1%", "distinct_ngrams", "4"),
            "nats per token, by the model that wrote it": row(".3f", "entropy"),
        },
    }


def _cell(
    measures: Any,
    format_value: str,
    path: Sequence[str],
) -> str:
    """The value at `path`; a dash where it was not measured."""
    for key in path:
        measures = measures.get(key) if isinstance(measures, Mapping) else None
    return "-" if measures is None else format(measures, format_value)


def _script(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False)
    # U+2028 and U+2029 end a line in JavaScript, though not in JSON
    return (
        text.replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )
