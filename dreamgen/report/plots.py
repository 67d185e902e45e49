"""Plots of the report: predicted actions over time as strips, and the training loss.

Axes: T frames, A action.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from dreamgen.data.svg_plot import Line, Strip, line_plot, strip_plot

MAX_STRIPS = 8
MIN_SPREAD = 1e-6  # below it, a dimension does not move


def action_strips(action_TA: np.ndarray, names: Sequence[str], fps: int) -> Markup:
    """Draw the dimensions that move most, one strip each.

    Args:
        action_TA: One row per frame.
        names: One name per dimension; numbers are used where there are none.
        fps: Frames per second, for the time axis.

    Returns:
        An `<svg>` of at most `MAX_STRIPS` strips; a sentence if nothing moves.
    """
    num_frames, num_dims = action_TA.shape
    spread_A = np.ptp(action_TA, axis=0)
    moving = [dim for dim in np.argsort(-spread_A, kind="stable") if spread_A[dim] > MIN_SPREAD]
    shown = sorted(int(dim) for dim in moving[:MAX_STRIPS])
    if not shown:
        return Markup('<p class="muted small">No dimension of the predicted action moves.</p>')
    strips = [Strip(names[dim] if dim < len(names) else f"action {dim}", [action_TA[:, dim].tolist()]) for dim in shown]
    label = f"Predicted actions: {len(shown)} of {num_dims} dimensions over time"
    return Markup(strip_plot(strips, label, ("0 s", f"{(num_frames - 1) / fps:.1f} s")))


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
