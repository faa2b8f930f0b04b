"""One self-contained HTML page from the JSON of all the other stages: plotly inline, no network.

Corpus text reaches the page as JSON and is placed with `textContent`, so nothing in it can become markup or script.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from synthboot.charts import charts
from synthboot.data.artifacts import flat

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


def report(results: Mapping[str, Any]) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, select_autoescape
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("synthboot", "stages"), autoescape=select_autoescape(["html", "j2"])
    )
    evaluated = results["evaluate"]
    scores = evaluated[evaluated["checkpoint"]]
    found = charts(results)
    page = environment.get_template("report.html.j2").render(
        results=results,
        scores=scores,
        other=evaluated["last" if evaluated["checkpoint"] == "best" else "best"],
        ledgers={arm: next(iter(seeds.values())) for arm, seeds in evaluated["ledgers"].items()},
        settings=sorted(flat(results["config"]).items()),
        quality=quality(results["analyze"]),
        recipes=results["config"]["arms"],
        chart_ids=[chart["id"] for chart in found],
        conditioning={role: t["conditioning"] for role, t in results["tune"].items()},
        pair=next((p for role, p in results["pairs"].items() if role.endswith("related")), None),
        costs=results["costs"],
        paper=PAPER,
        charts=Markup(_script(found)),
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
    relevance = {"unseen real": analyzed["relevance"].get("real pairs")} | analyzed["relevance"]

    def row(read: Any) -> list[str]:
        return [read(name, measures) for name, measures in kinds.items()]

    def share(*path: str) -> list[str]:
        def read(_: str, measures: Any) -> str:
            for key in path:
                measures = measures.get(key) if isinstance(measures, Mapping) else None
            return "-" if measures is None else f"{measures:.1%}"

        return row(read)

    def similarity(name: str, _: Any) -> str:
        found = relevance.get(name)
        return "-" if not found or found["mean"] is None else f"{found['mean']:.3f}"

    n = analyzed["copy_tokens"]
    return {
        "headers": list(kinds),
        "rows": {
            "documents": row(lambda _, m: f"{m['docs']:,}"),
            "tokens, mean": row(lambda _, m: f"{m['tokens_mean']:.0f}"),
            "4-grams that repeat an earlier one of the document": share("repeated_4grams"),
            "documents that loop (over 10 % repeated 8-grams)": share("looping"),
            "documents with a near-duplicate in the sample": share("duplicates"),
            f"tokens in a run of {n} that D_pretrain holds": share("copied_from_corpus", "tokens"),
            f"documents with such a run of {n}": share("copied_from_corpus", "docs"),
            "longest such run, tokens": row(lambda _, m: f"{m['copied_from_corpus']['longest_max']:.0f}"),
            f"documents with a run of {n} from their d1": share("copied_from_d1", "docs"),
            "longest run from d1, tokens": row(
                lambda _, m: f"{m['copied_from_d1']['longest_max']:.0f}" if "copied_from_d1" in m else "-"
            ),
            "2-grams that D_pretrain does not hold": share("novel_ngrams", "2"),
            "4-grams that D_pretrain does not hold": share("novel_ngrams", "4"),
            "similarity of d1 and d2 (first column: real pairs)": row(similarity),
            "4-grams that no other place of the sample has": share("distinct_ngrams", "4"),
            "nats per token, by the model that wrote it": row(lambda _, m: f"{m['entropy']:.3f}" if "entropy" in m else "-"),
        },
    }  # fmt: skip


def _script(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False)
    return (
        text.replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )
