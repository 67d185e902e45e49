"""Intervals and paired tests of success.

Axes: K seeds of the training, E episodes of the evaluation.
"""

from __future__ import annotations

import numpy as np

NUM_FLIPS = 20_000


def wilson_interval(num_successes: int, num_trials: int, z: float = 1.96) -> tuple[float, float]:
    """Return the score interval of a share of successes (Wilson, 1927); 95 % by default.

    Args:
        num_successes: Of the trials.
        num_trials: At least one.
        z: Quantile of the normal distribution.
    """
    share = num_successes / num_trials
    center = (share + z**2 / (2 * num_trials)) / (1 + z**2 / num_trials)
    half = z * np.sqrt(share * (1 - share) / num_trials + z**2 / (4 * num_trials**2)) / (1 + z**2 / num_trials)
    return max(0.0, center - half), min(1.0, center + half)


def paired_p_value(one_KE: np.ndarray, other_KE: np.ndarray, seed: int = 0) -> float:
    """Return the two-sided p-value of a sign-flip permutation test on episodes.

    Policies of all seeds meet the same episodes. The difference of an episode is its mean over seeds, as the policies
    of one arm tend to fail at the same positions. Under the hypothesis of no difference, both signs are as likely.

    Args:
        one_KE, other_KE: Successes, 0 or 1, or another metric.
        seed: Of the random flips; all are tried where there are few.
    """
    difference_E = one_KE.mean(axis=0) - other_KE.mean(axis=0)
    difference_E = difference_E[difference_E != 0]
    if not len(difference_E):
        return 1.0
    observed = abs(difference_E.sum())
    if len(difference_E) <= 14:
        bits = (np.arange(2 ** len(difference_E))[:, None] >> np.arange(len(difference_E))) & 1
        sums = (1 - 2 * bits) @ difference_E
        return float((np.abs(sums) >= observed - 1e-9).mean())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (NUM_FLIPS, len(difference_E)))
    extreme = (np.abs(signs @ difference_E) >= observed - 1e-9).sum()
    return float((extreme + 1) / (NUM_FLIPS + 1))


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Return Spearman's rank correlation, with mean ranks for ties; None if either does not vary.

    Args:
        one, other: Values of the same items.
    """
    ranks = [_mean_ranks(np.asarray(values, float)) for values in (one, other)]
    if min(np.ptp(ranks[0]), np.ptp(ranks[1])) == 0:
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
