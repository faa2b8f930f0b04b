"""Charts of a study as plotly takes them, and the page that has plotly's script in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthboot.report.page import as_json

Chart = dict[str, Any]

_DOTTED = {"dash": "dot"}


def rendered(template: str, scripts: Mapping[str, Any], **values: Any) -> str:
    """A page from a template: `values` are shown, `scripts` are what its script reads, as JSON."""
    from jinja2 import Environment, PackageLoader, select_autoescape
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("synthboot", "report"), autoescape=select_autoescape(["html", "j2"])
    )
    page = environment.get_template(template).render(
        **values,
        **{name: Markup(as_json(value)) for name, value in scripts.items()},
        plotly=Markup(get_plotlyjs()),
    )
    return page + "\n"


def error_bars(values: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Plotly's lengths of error bars, from [value, low, high]."""
    above = []
    below = []
    for value, low, high in values:
        above.append(high - value)
        below.append(value - low)
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def vertical(x: float) -> dict[str, Any]:
    """A dotted line from the bottom to the top."""
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": _DOTTED}


def horizontal(y: float) -> dict[str, Any]:
    """A dotted line from the left to the right."""
    return {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": y, "y1": y, "line": _DOTTED}


def axes(x: str, y: str) -> dict[str, Any]:
    """The layout of a chart with titles at its axes, and nothing else yet."""
    return {
        "margin": {"l": 70, "r": 10, "t": 10, "b": 50},
        "height": 320,
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True},
        "legend": {"orientation": "h", "y": 1.12},
        "paper_bgcolor": "white",
        "plot_bgcolor": "#f9fafb",
        "font": {"family": "system-ui, sans-serif", "size": 13},
    }
