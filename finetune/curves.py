"""A training's curves as a small SVG file beside the card: numbers only, no script, no outside reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

WIDTH_PX, HEIGHT_PX = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 60, 624, 28, 244
NUM_TICKS = 4
STYLES = {"training": 'stroke="#3b6ea5" stroke-width="1.5"', "validation": 'stroke="#c2571a" stroke-width="2"'}
Points = Sequence[tuple[int, float]]


def curves_svg(curves: dict[str, Points], styles: Mapping[str, str] = STYLES) -> str:
    """Draw losses over optimizer steps.

    Args:
        curves: Ascending steps with a value each, by name; those that are not finite are left out. An axis ends where
            99 of 100 values lie below, as the first steps may be far above all others.
        styles: Of each name's line, as SVG attributes.

    Returns:
        An SVG document.
    """
    curves = {name: [point for point in points if math.isfinite(point[1])] for name, points in curves.items()}
    curves = {name: points for name, points in curves.items() if points}
    values = sorted(value for points in curves.values() for _, value in points) or [0.0]
    last_step = max((points[-1][0] for points in curves.values()), default=1)
    low, high = values[0], values[math.ceil(0.99 * len(values)) - 1]
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" width="{WIDTH_PX}" '
        f'height="{HEIGHT_PX}" font-family="sans-serif" font-size="12">',
        f"<title>Loss over {last_step} steps</title>",
        f'<rect width="{WIDTH_PX}" height="{HEIGHT_PX}" fill="#ffffff"/>',
    ]
    for tick in range(NUM_TICKS + 1):
        share = tick / NUM_TICKS
        y, x = BOTTOM - share * (BOTTOM - TOP), LEFT + share * (RIGHT - LEFT)
        parts += [
            f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="#dddddd"/>',
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{low + share * (high - low):.3g}</text>',
            f'<text x="{x:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{round(share * last_step)}</text>',
        ]
    for number, (name, points) in enumerate(curves.items()):
        places = [
            (
                LEFT + step / max(last_step, 1) * (RIGHT - LEFT),
                BOTTOM - (min(value, high) - low) / (high - low) * (BOTTOM - TOP),
            )
            for step, value in points
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        x = LEFT + 8 + 120 * number
        parts += [
            f'<polyline points="{path}" fill="none" {styles[name]}/>',
            f'<path d="M{x} 14h20" {styles[name]}/><text x="{x + 26}" y="18">{name}</text>',
        ]
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT_PX - 4}" text-anchor="middle">optimizer steps</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
