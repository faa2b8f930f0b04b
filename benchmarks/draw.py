"""Lines over a growing thing, as SVG: what the growth tables show, for people who look before they read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Line:
    """One panel: `y` over `x`, both shown as `labels` and `ticks` say; from `low` to `high` unless the values decide."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    ticks: Sequence[str]
    labels: Sequence[str]
    low: float | None = None
    high: float | None = None


def svg(panels: Sequence[Line], across: int = 3) -> str:
    """The panels, `across` of them side by side. Give logarithms where a scale is to be logarithmic."""
    down = -(-len(panels) // across)
    size = f"0 0 {310 * across} {230 * down}"
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif" font-size="11">']
    for number, line in enumerate(panels):
        parts.append(f'<g transform="translate({310 * (number % across) + 5} {230 * (number // across)})">')
        parts.append(f'<text x="30" y="18" font-size="13">{line.name}</text>')
        x = _scaled(line.x, 30, 260, None, None)
        y = _scaled(line.y, 185, 45, line.low, line.high)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="#2563eb" stroke-width="2"/>')
        for a, b, label, tick in zip(x, y, line.labels, line.ticks, strict=True):
            parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="#2563eb"/>')
            parts.append(f'<text x="{a:.1f}" y="{b - 9:.1f}" text-anchor="middle">{label}</text>')
            parts.append(f'<text x="{a:.1f}" y="212" text-anchor="middle" fill="#6b7280">{tick}</text>')
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def grown(rows: Sequence[dict[str, Any]]) -> str:
    """Tokens a second (`rate`), and under each the memory (`gib`), over what was `varied`, as SVG."""
    panels = []
    for name, key in (("tokens a second", "rate"), ("GiB", "gib")):
        for varied in dict.fromkeys(r["varied"] for r in rows):
            points = [r for r in rows if r["varied"] == varied]
            x = [math.log2(r["parameters"] if varied == "model" else r["at"]) for r in points]
            y = [r[key] if varied != "model" else math.log2(r[key]) for r in points]
            labels = [f"{r[key]:,.0f}" if key == "rate" else f"{r[key]:.2f}" for r in points]
            low = 0.0 if varied != "model" else None
            panels.append(Line(f"{name} over {varied}", x, y, [str(r["at"]) for r in points], labels, low=low))
    return svg(panels)


def _scaled(values: Sequence[float], start: float, end: float, low: float | None, high: float | None) -> np.ndarray:
    at = np.asarray(values, float)
    least, most = (at.min() if low is None else low), (at.max() if high is None else high)
    return start + (end - start) * (at - least) / max(1e-9, most - least)
