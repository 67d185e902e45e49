"""Inline SVG drawn by hand: actions over time as strips, and the loss curve. Every text in it is escaped.

Axes: T frames, A action.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

MAX_STRIPS = 8
# A strip fills its height when its values spread at least this share of the widest strip's; less is drawn flatter, so
# that noise in a joint that rests does not look like motion.
LEAST_SPREAD = 0.05
STRIP_HEIGHT, STRIP_WIDTH, NAME_WIDTH, RANGE_WIDTH = 19, 360, 92, 90
MAX_NAME = 15


def action_strips(action_TA: np.ndarray, names: Sequence[str], fps: int) -> Markup:
    """Draw the dimensions that move most, one strip each, named at the left and with their range at the right.

    Args:
        action_TA: One row a frame.
        names: One name a dimension; numbers are used where there are none.
        fps: Frames a second, for the time axis.

    Returns:
        An <svg> of at most `MAX_STRIPS` strips; a sentence when nothing moves.
    """
    num_frames, num_dims = action_TA.shape
    low_A, high_A = action_TA.min(axis=0), action_TA.max(axis=0)
    spread_A = high_A - low_A
    moving = [dim for dim in np.argsort(-spread_A, kind="stable") if spread_A[dim] > 1e-6]
    shown = sorted(moving[:MAX_STRIPS])
    if not shown:
        return Markup('<p class="muted small">No dimension of the predicted action moves.</p>')
    height = STRIP_HEIGHT * len(shown) + 16
    right = STRIP_WIDTH - RANGE_WIDTH
    parts = [_open_svg(STRIP_WIDTH, height, f"Predicted actions: {len(shown)} of {num_dims} dimensions over time")]
    for row, dim in enumerate(shown):
        top = row * STRIP_HEIGHT
        name = names[dim] if dim < len(names) else f"action {dim}"
        spread = max(spread_A[dim], LEAST_SPREAD * spread_A.max())
        middle = (low_A[dim] + high_A[dim]) / 2
        y_T = top + STRIP_HEIGHT / 2 - (action_TA[:, dim] - middle) / spread * (STRIP_HEIGHT - 6)
        x_T = np.linspace(NAME_WIDTH, right, num_frames) if num_frames > 1 else np.array([NAME_WIDTH])
        parts.append(
            Markup('<text x="0" y="{}">{}<title>{}</title></text>').format(top + 13, _shorten(name), name)
            + Markup('<line class="rule" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                NAME_WIDTH, right, top + STRIP_HEIGHT - 0.5, top + STRIP_HEIGHT - 0.5
            )
            + _polyline(x_T, y_T, f"line c{row % MAX_STRIPS}")
            + Markup('<text class="range" x="{}" y="{}">{} … {}</text>').format(
                STRIP_WIDTH, top + 13, *_range(float(low_A[dim]), float(high_A[dim]))
            )
        )
    axis = height - 4
    parts.append(Markup('<text class="axis" x="{}" y="{}">0 s</text>').format(NAME_WIDTH, axis))
    parts.append(
        Markup('<text class="axis end" x="{}" y="{}">{} s</text>').format(right, axis, f"{(num_frames - 1) / fps:.1f}")
    )
    return Markup("").join([*parts, Markup("</svg>")])


def loss_curve(steps: Sequence[int], losses: Sequence[float], width: int = 480, height: int = 200) -> Markup:
    """Draw the training loss: each logged value faintly, and their running mean over a twentieth of the log.

    Args:
        steps: Optimizer steps, ascending.
        losses: One value a step; values that are not finite leave a note instead of a point.

    Returns:
        An <svg>, or a sentence when there are fewer than two finite values.
    """
    step_N, loss_N = np.asarray(steps, float), np.asarray(losses, float)
    finite = np.isfinite(loss_N)
    step_N, loss_N = step_N[finite], loss_N[finite]
    if len(step_N) < 2 or step_N[0] == step_N[-1]:
        return Markup('<p class="muted small">Fewer than two logged steps: nothing to draw yet.</p>')
    left, right, top, bottom = 52, width - 10, 10, height - 26
    # The first steps may be far above all others; the axis ends where 99 of 100 values lie below.
    ticks = _ticks(min(0.0, float(loss_N.min())), float(np.quantile(loss_N, 0.99)))
    low, high = ticks[0], ticks[-1]
    parts = [_open_svg(width, height, f"Training loss over {int(step_N[-1])} steps")]
    for tick in ticks:
        y = bottom - (tick - low) / (high - low) * (bottom - top)
        parts.append(Markup('<line class="rule" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(left, right, y, y))
        parts.append(
            Markup('<text class="axis end" x="{}" y="{:.1f}">{}</text>').format(left - 8, y + 4, _number(tick))
        )
    for step in _ticks(float(step_N[0]), float(step_N[-1])):
        if step_N[0] <= step <= step_N[-1]:
            x = left + (step - step_N[0]) / (step_N[-1] - step_N[0]) * (right - left)
            anchor = "end" if x > right - 20 else "middle"
            parts.append(
                Markup('<text class="axis {}" x="{:.1f}" y="{}">{:,.0f}</text>').format(anchor, x, height - 6, step)
            )
    x_N = left + (step_N - step_N[0]) / (step_N[-1] - step_N[0]) * (right - left)
    y_N = bottom - np.clip((loss_N - low) / (high - low), 0, 1) * (bottom - top)
    mean_N = _running_mean(y_N, max(1, len(y_N) // 20))
    keep = np.unique(np.linspace(0, len(x_N) - 1, 600).round().astype(int))
    parts.append(_polyline(x_N[keep], y_N[keep], "line faint"))
    parts.append(_polyline(x_N[keep], mean_N[keep], "line c0"))
    return Markup("").join([*parts, Markup("</svg>")])


def _running_mean(values_N: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and up to `window - 1` before it."""
    sums = np.concatenate([[0.0], np.cumsum(values_N)])
    ends = np.arange(1, len(values_N) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers (1, 2 or 5 times a power of ten apart) that enclose low and high."""
    span = max(high - low, 1e-9)
    unit = 10.0 ** np.floor(np.log10(span / 4))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 5)
    first, last = int(np.floor(low / step)), int(np.ceil(high / step - 1e-9))
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _open_svg(width: int, height: int, label: str) -> Markup:
    return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, label)


def _polyline(x_N: np.ndarray, y_N: np.ndarray, css_class: str) -> Markup:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(x_N, y_N, strict=True))
    return Markup('<polyline class="{}" points="{}"/>').format(css_class, points)


def _shorten(name: str) -> str:
    return escape(name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…")


def _range(low: float, high: float) -> tuple[str, str]:
    """Both ends with as many decimals as it takes to tell them apart by two digits."""
    decimals = int(np.clip(1 - np.floor(np.log10(high - low)), 0, 6))
    # Adding zero turns -0.0 into 0.0.
    return f"{round(low, decimals) + 0.0:.{decimals}f}", f"{round(high, decimals) + 0.0:.{decimals}f}"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
