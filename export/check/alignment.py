"""Whether the actions of an episode fit its states at another delay than those of all other episodes, or backwards.

Only datasets in which actions are commands of what the states measure say anything about it: there, one delay fits
nearly all episodes almost perfectly.

Axes: N rows, D dimensions, L lags, E episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from export.check.findings import Findings

LAGS = range(-6, 13)  # rows by which a state comes after its action
MIN_ROWS, MIN_EPISODES = 40, 4
FITS = 0.95  # correlation
MOST = 0.8  # of the episodes have the same lag
WORSE = 4.0  # times farther from a perfect fit than any of the others


@dataclass(frozen=True)
class Alignment:
    """How an episode's actions correlate with its states.

    Args:
        position: Of the episode.
        fit_L: Correlation at each of `LAGS`, float32.
        backwards: Best correlation of the reversed actions; -1 where they fit as they are.
    """

    position: int
    fit_L: np.ndarray
    backwards: float


def alignment_of(position: int, action_ND: np.ndarray, state_ND: np.ndarray) -> Alignment | None:
    """Correlate actions with states; None where they have other dimensions, or the episode says too little."""
    if action_ND.shape != state_ND.shape or len(action_ND) < MIN_ROWS:
        return None
    moves_D = (np.ptp(action_ND, axis=0) > 0) & (np.ptp(state_ND, axis=0) > 0)
    if not moves_D.any():
        return None
    action_ND, state_ND = action_ND[:, moves_D].astype(np.float64), state_ND[:, moves_D].astype(np.float64)
    fit_L = _correlations(action_ND, state_ND).astype(np.float32)
    if fit_L.max() > FITS:
        return Alignment(position, fit_L, -1.0)
    return Alignment(position, fit_L, float(_correlations(action_ND[::-1], state_ND).max()))


def check_alignment(
    alignments: list[Alignment], place_of: Callable[[int], tuple[str, str]], findings: Findings
) -> None:
    """Report the few episodes whose actions fit at another lag than those of the others.

    Args:
        alignments: Of the episodes.
        place_of: Returns file and place of an episode, by its position.
        findings: Findings are added here.
    """
    if len(alignments) < MIN_EPISODES:
        return
    fit_EL = np.stack([alignment.fit_L for alignment in alignments])
    best_E, is_clear_E = fit_EL.argmax(axis=1), fit_EL.max(axis=1) > FITS
    usual = int(np.bincount(best_E[is_clear_E], minlength=len(LAGS)).argmax())
    agrees_E = is_clear_E & (best_E == usual)
    if agrees_E.sum() < max(MIN_EPISODES - 1, MOST * len(alignments)):
        return
    limit = WORSE * (1 - fit_EL[agrees_E, usual].min())
    for place in np.flatnonzero(~agrees_E & (1 - fit_EL[:, usual] > limit)).tolist():
        alignment = alignments[place]
        if alignment.backwards > FITS > fit_EL[place].max():
            value = "its actions fit its states when they are read backwards"
        elif is_clear_E[place]:
            value = f"its actions fit its states at a delay of {LAGS[int(best_E[place])]} rows"
        else:
            continue
        findings.add("action-lag", *place_of(alignment.position), value,
                     f"a delay of {LAGS[usual]} rows, as in {int(agrees_E.sum())} other episodes")  # fmt: skip


def _correlations(action_ND: np.ndarray, state_ND: np.ndarray) -> np.ndarray:
    """Return the correlation of action[n] with state[n + lag] at each of `LAGS`, over dimensions by their movement."""
    lag_L = np.array(LAGS)
    action_L, state_L = np.maximum(0, -lag_L), np.maximum(0, lag_L)  # where the rows that are compared begin
    count_L = len(action_ND) - np.abs(lag_L)
    action_ND, state_ND = action_ND - action_ND.mean(axis=0), state_ND - state_ND.mean(axis=0)
    product_L = np.array([
        np.einsum("n,n->", action_ND[one : one + count].ravel(), state_ND[other : other + count].ravel())
        for one, other, count in zip(action_L.tolist(), state_L.tolist(), count_L.tolist(), strict=True)
    ])  # fmt: skip
    action_sum_LD, action_squares_L = _sums(action_ND, action_L, count_L)
    state_sum_LD, state_squares_L = _sums(state_ND, state_L, count_L)
    covariance_L = product_L - (action_sum_LD * state_sum_LD).sum(axis=1) / count_L
    scale_L = np.sqrt(np.maximum(action_squares_L * state_squares_L, 0))
    return np.divide(covariance_L, scale_L, out=np.zeros(len(LAGS)), where=scale_L > 0)


def _sums(values_ND: np.ndarray, begin_L: np.ndarray, count_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of some neighboring rows at each lag, and of their squared distances from their mean.

    Each leaves out a few rows at one end, so these are taken off the sum of all rows.
    """
    with_squares_NX = np.column_stack([values_ND, np.einsum("nd,nd->n", values_ND, values_ND)])
    num_left_out, nothing_1X = max(map(abs, LAGS)), np.zeros((1, with_squares_NX.shape[1]))
    first_KX, last_KX = (np.vstack([nothing_1X, ends_NX[:num_left_out].cumsum(axis=0)])
                         for ends_NX in (with_squares_NX, with_squares_NX[::-1]))  # fmt: skip
    sum_LX = with_squares_NX.sum(axis=0) - first_KX[begin_L] - last_KX[len(values_ND) - begin_L - count_L]
    sum_LD = sum_LX[:, :-1]
    return sum_LD, sum_LX[:, -1] - (sum_LD**2).sum(axis=1) / count_L
