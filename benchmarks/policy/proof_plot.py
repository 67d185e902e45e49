"""A plot of the policies' success: for each task and arm the mean, its 95 % interval and each training seed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from dreamgen.data.svg_plot import COLORS, svg_document

NAME_PX, SCALE_PX, ROW_PX, HEAD_PX, FOOT_PX, MARGIN_PX = 190, 420, 18, 24, 22, 16
SHORT = {"real": "real demonstrations", "curated": "real + dreams", "best": "real + best half",
         "uncurated": "real + all dreams", "base": "real + dreams, no adapter",
         "executed": "real + filmed dream actions", "real_video": "real + real videos",
         "oracle": "N + M real", "dreams": "dreams alone"}  # fmt: skip


def success_plot(rows: Sequence[dict[str, Any]], tasks: Sequence[str]) -> str:
    """Draw a block for each task, with a line for each arm.

    Args:
        rows: Of one policy, as `policy_rows` returns them.
        tasks: In the order of the blocks; those without results are left out.

    Returns:
        An SVG document.
    """
    blocks = [(task, [(row["arm"], row["tasks"][task]) for row in rows if task in row["tasks"]]) for task in tasks]
    blocks = [(task, cells) for task, cells in blocks if cells]
    width_px = NAME_PX + SCALE_PX + 2 * MARGIN_PX
    height_px = sum(HEAD_PX + ROW_PX * len(cells) for _, cells in blocks) + FOOT_PX + 20
    label = "Success of policies, percent of episodes"
    parts = [f'<svg class="plot" role="img" aria-label="{label}" viewBox="0 0 {width_px} {height_px}" '
             f'width="{width_px}" height="{height_px}"><title>{label}</title>']  # fmt: skip
    bottom = height_px - FOOT_PX - 20
    for percent in range(0, 101, 20):
        x = _at(percent / 100)
        parts.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{HEAD_PX - 8}" y2="{bottom}"/>')
        parts.append(f'<text class="axis middle" x="{x:.1f}" y="{bottom + 16}">{percent} %</text>')
    note = "circle: mean; line: 95 % interval over all episodes; tick: one of several training seeds"
    parts.append(f'<text class="axis middle" x="{_at(0.5):.1f}" y="{bottom + 34}">{note}</text>')
    top = 0.0
    for task, cells in blocks:
        parts.append(f'<text x="4" y="{top + 15}" font-weight="bold">{escape(task)}</text>')
        top += HEAD_PX
        colors = dict(zip(SHORT, COLORS, strict=False))
        for arm, cell in cells:
            parts += _arm(arm, cell, top + ROW_PX / 2, colors.get(arm.partition("-")[0], COLORS[-1]))
            top += ROW_PX
    return svg_document("".join([*parts, "</svg>"]))


def _arm(arm: str, cell: dict[str, Any], y: float, color: str) -> list[str]:
    name, _, num = arm.partition("-")
    text = f"{SHORT.get(name, name)}{f' of {num} starts' if num else ''}"
    line = f'y1="{y}" y2="{y}" stroke="{color}"'
    ticks = [f'<path d="M{_at(value):.1f} {y - 5}v10" stroke="{color}"/>' for value in cell["of_seeds"]]
    return [
        f'<text x="{NAME_PX - 10}" y="{y + 4}" text-anchor="end">{escape(text)}</text>',
        f'<line x1="{_at(cell["low"]):.1f}" x2="{_at(cell["high"]):.1f}" {line} stroke-width="3" opacity="0.5"/>',
        *(ticks if len(ticks) > 1 else []),
        f'<circle cx="{_at(cell["success"]):.1f}" cy="{y}" r="4.5" fill="{color}"/>',
    ]


def _at(share: float) -> float:
    return NAME_PX + MARGIN_PX + share * SCALE_PX
