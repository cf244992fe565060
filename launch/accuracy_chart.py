"""A static picture of accuracy over steps, for a README: SVG by hand, small, readable in light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 132, 48, 52
COLOURS = ("#0b6e99", "#c4501b", "#3f8f29", "#8a4fbf", "#9a6b00")

_SVG_STYLE = """
  .page { fill: #ffffff } .title { font-weight: 600; font-size: 15px; fill: #1c2430 }
  text { font: 12.5px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #55606e }
  .grid { stroke: #e3e7ec } .axis { stroke: #9aa4b1 } .line { fill: none; stroke-width: 2.4; stroke-linejoin: round }
  @media (prefers-color-scheme: dark) {
    .page { fill: #12161c } .title { fill: #e8edf3 } text { fill: #9aa7b6 }
    .grid { stroke: #28303a } .axis { stroke: #566272 } .line, .dot, .name { filter: brightness(1.45) }
  }
"""


@dataclass(frozen=True)
class Curve:
    """Accuracy over steps of one held-out set.

    Attributes:
        steps: at which it was measured.
        values: fractions, aligned with `steps`.
    """

    steps: list[int]
    values: list[float]


def accuracy_svg(curves: Mapping[str, Curve], *, title: str) -> str:
    """A line chart of fractions over steps, with a name at the end of each line instead of a legend."""
    last_step = max(max(curve.steps) for curve in curves.values()) or 1
    ends = _spread_labels({name: _y(curve.values[-1]) for name, curve in curves.items()})
    lines = "".join(
        _svg_line(curve, name, ends[name], last_step, colour=COLOURS[i % len(COLOURS)], bold=name == "all")
        for i, (name, curve) in enumerate(curves.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>{escape(title)}</title><style>{_SVG_STYLE}</style>"
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="10"/>'
        f'<text class="title" style="font-size:15px" x="{LEFT}" y="28">{escape(title)}</text>'
        f"{_svg_axes(last_step)}{lines}</svg>\n"
    )


def _svg_axes(last_step: int) -> str:
    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = _y(percent / 100)
        style = "axis" if percent == 0 else "grid"
        parts.append(f'<line class="{style}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{percent} %</text>')
    for step in _round_steps(last_step):
        x = _x(step, last_step)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{step}</text>')
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{middle_x}" y="{HEIGHT - 12}" text-anchor="middle">RL step</text>')
    parts.append(f'<text transform="translate(16 {middle_y}) rotate(-90)" text-anchor="middle">sampled accuracy</text>')
    return "".join(parts)


def _svg_line(curve: Curve, name: str, label_y: float, last_step: int, *, colour: str, bold: bool) -> str:
    points = [(_x(step, last_step), _y(value)) for step, value in zip(curve.steps, curve.values, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points)
    weight = 'style="stroke-width:3.4"' if bold else ""
    short = name if len(name) <= 9 else f"{name[:8]}…"  # what fits beside the plot
    label = f"{short} {100 * curve.values[-1]:.0f} %"
    return (
        f'<polyline class="line" {weight} stroke="{colour}" points="{path}"/>{dots}'
        f'<text class="name" x="{points[-1][0] + 10:.1f}" y="{label_y + 4:.1f}" style="fill:{colour};font-weight:600">'
        f"{escape(label)}</text>"
    )


def _spread_labels(wanted: Mapping[str, float], gap: float = 16) -> dict[str, float]:
    """Heights of the labels: as wanted, but pushed up from below where two would overlap."""
    placed: dict[str, float] = {}
    ceiling = float(HEIGHT)
    for name, y in sorted(wanted.items(), key=lambda item: -item[1]):
        ceiling = placed[name] = min(y, ceiling - gap)
    return placed


def _round_steps(last_step: int) -> list[int]:
    """About six round numbers from 0 to the last step."""
    size = next(s for s in (k * 10**e for e in range(12) for k in (1, 2, 5)) if last_step / s <= 6)
    return list(range(0, last_step + 1, size))


def _x(step: int, last_step: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * step / last_step


def _y(value: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value
