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
    fit_L = np.array([_correlation(action_ND, state_ND, lag) for lag in LAGS], np.float32)
    if fit_L.max() > FITS:
        return Alignment(position, fit_L, -1.0)
    return Alignment(position, fit_L, max(_correlation(action_ND[::-1], state_ND, lag) for lag in LAGS))


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


def _correlation(action_ND: np.ndarray, state_ND: np.ndarray, lag: int) -> float:
    """Return the correlation of action[n] with state[n + lag], averaged over dimensions by their movement."""
    num_rows = len(action_ND) - abs(lag)
    one_ND = action_ND[max(0, -lag) :][:num_rows]
    other_ND = state_ND[max(0, lag) :][:num_rows]
    one_ND, other_ND = one_ND - one_ND.mean(axis=0), other_ND - other_ND.mean(axis=0)
    deviation = np.sqrt((one_ND**2).sum() * (other_ND**2).sum())
    return float((one_ND * other_ND).sum() / deviation) if deviation > 0 else 0.0
