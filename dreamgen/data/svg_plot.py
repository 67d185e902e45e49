"""Small line plots as SVG text: no scripts, no external references, all text escaped.

A plot carries CSS classes and no colors, so that a page can style it; `svg_document` adds a style sheet and makes it a
file of its own. Classes: `line c0` to `line c7` and `line faint` for lines, `wide` for a thick one, `axis`, `range` and
`rule` for their surroundings, `mark` for a threshold; bars have the classes that the caller gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLORS = ("#3b6ea5", "#c2571a", "#4b8b3b", "#8a4fa3", "#b8860b", "#2a9d9d", "#a33f5f", "#5f6a78")
STYLE = (
    ".plot { font-family: sans-serif; font-size: 11px; background: #fff; } .plot .range, .plot .axis { fill: #666; }"
    " .plot .range, .plot .end { text-anchor: end; } .plot .middle { text-anchor: middle; }"
    " .plot .rule { stroke: #ddd; } .plot .line { fill: none; stroke-width: 1.5; }"
    " .plot .faint { stroke: #999; } .plot .wide { stroke-width: 4; } "
) + " ".join(f".plot .c{index} {{ stroke: {color}; }}" for index, color in enumerate(COLORS))
MAX_POINTS = 600
MAX_NAME_LENGTH = 15
NAME_WIDTH_PX, RANGE_WIDTH_PX, AXIS_HEIGHT_PX, STRIP_MARGIN_PX = 92, 104, 16, 3
# A strip fills its height when its values spread at least this share of the widest strip's; less is drawn flatter, so
# that noise in a joint that rests does not look like motion.
MIN_SPREAD_SHARE = 0.05


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Args:
        x: Ascending, finite.
        y: One value for each `x`; points whose value is not finite are left out.
        css_class: `c0` to `c7`, or `faint`; `c1 wide` draws a thick one.
        name: Shown in the legend, if there is one.
    """

    x: Sequence[float]
    y: Sequence[float]
    css_class: str = "c0"
    name: str = ""


@dataclass(frozen=True)
class Strip:
    """A flat plot of its own scale, one of several that share the x axis.

    Args:
        name: Shown on the left, shortened to `MAX_NAME_LENGTH` characters.
        values: One sequence for each line, all of the same length; finite.
    """

    name: str
    values: Sequence[Sequence[float]]


def line_plot(
    lines: Sequence[Line],
    label: str,
    x_label: str = "",
    width_px: int = 640,
    height_px: int = 280,
    from_zero: bool = False,
) -> str:
    """Draw lines over a common axis that ends where 99 of 100 values lie below it.

    The first steps of a training may lie far above all others; values beyond the axis are drawn on its edge.

    Args:
        lines: In the order in which they are drawn. Lines with a name get a legend.
        label: Describes the plot to screen readers.
        x_label: Name of the x axis.
        width_px: Of the plot.
        height_px: Of the plot.
        from_zero: Let the y axis begin at 0 or below.

    Returns:
        An `<svg>` element; without any finite value, one with axes only.
    """
    finite = [(line, points) for line in lines if (points := _finite_points(line))]
    values = sorted(y for _, points in finite for _, y in points) or [0.0, 1.0]
    steps = [x for _, points in finite for x, _ in points] or [0.0, 1.0]
    ticks = _ticks(min(0.0, values[0]) if from_zero else values[0], values[math.ceil(0.99 * len(values)) - 1])
    low, high, first, last = ticks[0], ticks[-1], min(steps), max(steps)
    has_legend = any(line.name for line, _ in finite)
    left, right, top, bottom = 52, width_px - 12, 28 if has_legend else 10, height_px - (40 if x_label else 26)

    def at_x(x: float) -> float:
        return left + (x - first) / ((last - first) or 1) * (right - left)

    def at_y(y: float) -> float:
        return bottom - min(max((y - low) / (high - low), 0), 1) * (bottom - top)

    parts = [_open(width_px, height_px, label)]
    for tick in ticks:
        y = at_y(tick)
        parts.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 8, y + 4, _number(tick), "axis end"))
    for tick in _ticks(first, last):
        if first <= tick <= last:
            x = at_x(tick)
            parts.append(_text(x, bottom + 18, f"{tick:,.0f}", "axis end" if x > right - 20 else "axis middle"))
    for index, (line, points) in enumerate(finite):
        parts.append(_polyline([(at_x(x), at_y(y)) for x, y in points], line.css_class))
        if line.name:
            x = left + 8 + 120 * index
            parts.append(f'<path class="line {line.css_class}" d="M{x} 14h20"/>' + _text(x + 26, 18, line.name, "axis"))
    if x_label:
        parts.append(_text((left + right) / 2, height_px - 6, x_label, "axis middle"))
    return "".join([*parts, "</svg>"])


def strip_plot(
    strips: Sequence[Strip],
    label: str,
    x_labels: tuple[str, str],
    css_classes: Sequence[str] | None = None,
    width_px: int = 360,
    strip_height_px: int = 19,
) -> str:
    """Draw strips below one another, each with its name on the left and its range on the right.

    Args:
        strips: At least one.
        label: Describes the plot to screen readers.
        x_labels: Of the first and the last point.
        css_classes: One for each line of a strip; a color of its own for each strip when not given.
        width_px: Of the plot.
        strip_height_px: Of each strip.

    Returns:
        An `<svg>` element.
    """
    right, height_px = width_px - RANGE_WIDTH_PX, strip_height_px * len(strips) + AXIS_HEIGHT_PX
    ranges = [(min(map(min, strip.values)), max(map(max, strip.values))) for strip in strips]
    widest = max(high - low for low, high in ranges)
    parts = [_open(width_px, height_px, label)]
    for row, (strip, (low, high)) in enumerate(zip(strips, ranges, strict=True)):
        top, spread, middle = row * strip_height_px, max(high - low, MIN_SPREAD_SHARE * widest) or 1, (low + high) / 2
        short = strip.name if len(strip.name) <= MAX_NAME_LENGTH else strip.name[: MAX_NAME_LENGTH - 1] + "…"
        rule_y = top + strip_height_px - 0.5
        parts.append(f'<text x="0" y="{top + 13}">{escape(short)}<title>{escape(strip.name)}</title></text>')
        parts.append(f'<line class="rule" x1="{NAME_WIDTH_PX}" x2="{right}" y1="{rule_y}" y2="{rule_y}"/>')
        for index, values in enumerate(strip.values):
            width = (right - NAME_WIDTH_PX) / max(len(values) - 1, 1)
            center, scale = top + strip_height_px / 2, (strip_height_px - 2 * STRIP_MARGIN_PX) / spread
            points = [(NAME_WIDTH_PX + t * width, center - (v - middle) * scale) for t, v in enumerate(values)]
            parts.append(_polyline(points, css_classes[index] if css_classes else f"c{row % len(COLORS)}"))
        parts.append(_text(width_px, top + 13, " … ".join(_range(low, high)), "range"))
    parts.append(_text(NAME_WIDTH_PX, height_px - 4, x_labels[0], "axis"))
    parts.append(_text(right, height_px - 4, x_labels[1], "axis end"))
    return "".join([*parts, "</svg>"])


def histogram(
    groups: Sequence[tuple[str, Sequence[int]]],
    edges: tuple[float, float],
    thresholds: Sequence[float],
    label: str,
    width_px: int = 360,
    height_px: int = 120,
) -> str:
    """Draw stacked bars over an axis, and thresholds as vertical lines.

    Args:
        groups: CSS class and counts of each group, one count for each bin; stacked in this order from below.
        edges: Lower edge of the first bin and upper edge of the last.
        thresholds: Positions of vertical lines; those outside of the axis are drawn at its end.
        label: Describes the plot to screen readers.
        width_px: Of the plot.
        height_px: Of the plot.

    Returns:
        An `<svg>` element.
    """
    totals = [sum(counts) for counts in zip(*(counts for _, counts in groups), strict=True)]
    bottom, tallest, width = height_px - AXIS_HEIGHT_PX, max([*totals, 1]), width_px / max(len(totals), 1)
    parts, heights = [_open(width_px, height_px, label)], [0.0] * len(totals)
    for css_class, counts in groups:
        for index, count in enumerate(counts):
            if count:
                height = max(count / tallest * (bottom - 2), 1.0)  # one clip among thousands is still seen
                heights[index] += height
                place = f'x="{index * width:.1f}" y="{bottom - heights[index]:.1f}"'
                parts.append(f'<rect class="{css_class}" {place} width="{width - 0.6:.1f}" height="{height:.1f}"/>')
    parts.append(f'<line class="rule" x1="0" x2="{width_px}" y1="{bottom}" y2="{bottom}"/>')
    for threshold in thresholds:
        x = min(max((threshold - edges[0]) / ((edges[1] - edges[0]) or 1), 0), 1) * (width_px - 2) + 1
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}"/>')
    low, high = _range(*edges)
    parts += [_text(0, height_px - 3, low, "axis"), _text(width_px, height_px - 3, high, "axis end")]
    return "".join([*parts, "</svg>"])


def svg_document(svg: str) -> str:
    """Turn the `<svg>` element of a plot function into a standalone file with a style sheet."""
    opened, _, rest = svg.partition(">")
    return f'{opened} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{rest}\n'


def _finite_points(line: Line) -> list[tuple[float, float]]:
    points = [(float(x), float(y)) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    if len(points) <= MAX_POINTS:
        return points
    step = (len(points) - 1) / (MAX_POINTS - 1)
    return [points[round(index * step)] for index in range(MAX_POINTS)]


def _ticks(low: float, high: float) -> list[float]:
    """Return two to seven round numbers (1, 2 or 5 times a power of ten apart) that enclose low and high."""
    span = max(high - low, 1e-9 * max(abs(low), 1))
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _open(width_px: int, height_px: int, label: str) -> str:
    return f'<svg class="plot" viewBox="0 0 {width_px} {height_px}" role="img" aria-label="{escape(label)}">'


def _polyline(points: Sequence[tuple[float, float]], css_class: str) -> str:
    return f'<polyline class="line {css_class}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _text(x: float, y: float, text: str, css_class: str) -> str:
    return f'<text class="{css_class}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _range(low: float, high: float) -> tuple[str, str]:
    """Format both ends with enough decimals to show their difference with two digits."""
    decimals = min(max(1 - math.floor(math.log10(high - low)), 0), 6) if high > low else 3
    # Adding zero turns -0.0 into 0.0.
    return f"{round(low, decimals) + 0.0:.{decimals}f}", f"{round(high, decimals) + 0.0:.{decimals}f}"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
