"""Plots of the report: how each score is distributed, and the training loss.

Axes: N planned clips, in planned order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from dreamgen.data.svg_plot import Line, histogram, line_plot
from dreamgen.report.clips import SHOWN, VERDICTS, ClipTable
from dreamgen.report.scores import ScoreColumn

NUM_BARS = 40


def distribution(column: ScoreColumn, clips: ClipTable) -> Markup:
    """Draw how many clips have which value of a score, and its threshold.

    The axis leaves out the farthest hundredth of the values on each side, which the outer bars hold, and includes a
    threshold that is not far away.

    Args:
        column: The score.
        clips: The run's clips.

    Returns:
        An `<svg>`; a sentence if no clip has a value.
    """
    value_N = np.where(np.isfinite(column.value_N), column.value_N, np.nan)
    values = value_N[~np.isnan(value_N)]
    if not len(values):
        return Markup('<p class="muted small">No clip has a value.</p>')
    low, high = np.quantile(values, [0.01, 0.99], method="nearest").tolist()
    span = (high - low) or abs(high) or 1.0
    if high == low:
        low, high = low - span / 2, high + span / 2
    near = [limit for limit in column.limits if low - span <= limit <= high + span]
    low, high = min([low, *near]), max([high, *near])
    verdict_N, groups = clips.verdict_N, []
    for verdict in SHOWN:
        own = np.clip(value_N[(verdict_N == VERDICTS.index(verdict)) & ~np.isnan(value_N)], low, high)
        groups.append((verdict.replace(" ", "-"), np.histogram(own, NUM_BARS, (low, high))[0].tolist()))
    label = f"Distribution of {column.label} over {len(values)} clips"
    return Markup(histogram(groups, (low, high), column.limits, label))


def loss_curve(steps: Sequence[int], losses: Sequence[float]) -> Markup:
    """Draw the training loss: each logged value faintly, and their running mean over a twentieth of the log.

    Args:
        steps: Optimizer steps, ascending.
        losses: One value per step; values that are not finite are left out.

    Returns:
        An `<svg>`; a sentence if there are fewer than two finite values.
    """
    step_N, loss_N = np.asarray(steps, float), np.asarray(losses, float)
    finite = np.isfinite(loss_N)
    step_N, loss_N = step_N[finite], loss_N[finite]
    if len(step_N) < 2 or step_N[0] == step_N[-1]:
        return Markup('<p class="muted small">Fewer than two logged steps: nothing to draw yet.</p>')
    mean_N = _running_mean(loss_N, max(1, len(loss_N) // 20))
    lines = [Line(step_N.tolist(), loss_N.tolist(), "faint"), Line(step_N.tolist(), mean_N.tolist())]
    label = f"Training loss over {int(step_N[-1])} steps"
    return Markup(line_plot(lines, label, width_px=480, height_px=200, from_zero=True))


def _running_mean(values_N: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of each value and up to `window - 1` before it."""
    sums = np.concatenate([[0.0], np.cumsum(values_N)])
    ends = np.arange(1, len(values_N) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)
