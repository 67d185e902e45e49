"""Thresholds from real clips: as strict as possible, while a real clip is rejected at most at a given rate.

Axes: N clips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dreamgen.extensions.score import Metric

TAIL_SHARE = 0.2  # of the clips, in the direction of rejection: an exponential tail is fitted to their values
LEAST_SCALE = 0.07  # of the distance from the median to the default threshold: values that hardly vary say too little
NUM_FOLDS = 10
Z_95 = 1.96


@dataclass(frozen=True)
class Calibration:
    """Thresholds, and how often a real clip that they were not set from was rejected.

    Args:
        limits: Setting -> threshold.
        num_clips: Real clips.
        num_rejected: Of these, by thresholds from the other recordings.
        interval: 95 % interval of the rate of rejections.
    """

    limits: dict[str, float]
    num_clips: int
    num_rejected: int
    interval: tuple[float, float]


def calibrate(
    values: Mapping[str, np.ndarray], groups: Sequence[str], metrics: Sequence[Metric], rate: float = 0.02
) -> Calibration:
    """Set one threshold for each metric, so that all of them together reject real clips at a rate.

    Each metric's tail is taken as exponential beyond its 80 % quantile (peaks over threshold; Pickands, 1975), and its
    threshold is where the tail's probability is `rate` over the number of metrics, so that all of them together stay
    below `rate`.

    Args:
        values: Metric -> value of each of the N clips; NaN where it was not measured.
        groups: Recording that each clip comes from.
        metrics: Those to set; metrics without any value keep their thresholds.
        rate: Share of real clips that may be rejected.

    Returns:
        The thresholds, with their rate of rejections by cross-validation.
    """
    known = [metric for metric in metrics if np.isfinite(values[metric.name]).any()]
    table = np.stack([_sign(metric) * np.asarray(values[metric.name], float) for metric in known], axis=1)
    fold_N = _folds(groups)
    alone = rate / len(known)
    rejected = _rejected_by_others(table, fold_N, known, alone)
    bounds = _bounds(table, known, alone)
    limits = {metric.threshold.setting: _rounded(metric, float(_sign(metric) * bound))
              for metric, bound in zip(known, bounds, strict=True)}  # fmt: skip
    num = int(rejected.sum())
    return Calibration(limits, len(table), num, wilson_interval(num, len(table)))


def wilson_interval(num: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson, 1927)."""
    if total == 0:
        return 0.0, 1.0
    share, square = num / total, Z_95**2
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = Z_95 * math.sqrt(share * (1 - share) / total + square / (4 * total**2)) / (1 + square / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def _rejected_by_others(table: np.ndarray, fold_N: np.ndarray, metrics: Sequence[Metric], alone: float) -> np.ndarray:
    """Return for each clip whether thresholds from other recordings reject it."""
    rejected = np.zeros(len(table), bool)
    for fold in np.unique(fold_N):
        here = fold_N == fold
        if not here.all():
            rejected[here] = (table[here] > _bounds(table[~here], metrics, alone)).any(1)
    return rejected


def _bounds(table: np.ndarray, metrics: Sequence[Metric], alone: float) -> np.ndarray:
    """Return for each metric where the tail's probability is `alone`; larger values are worse."""
    center = np.nanmedian(table, axis=0)
    begin = np.nanquantile(table, 1 - TAIL_SHARE, axis=0)
    scale = np.nanmean(np.where(table >= begin, table - begin, np.nan), axis=0)
    defaults = np.array([c if m.threshold.default is None else _sign(m) * m.threshold.default
                         for m, c in zip(metrics, center, strict=True)])  # fmt: skip
    least = np.where(defaults == center, np.abs(center), np.abs(defaults - center)) * LEAST_SCALE
    return begin + np.maximum(scale, np.maximum(least, 1e-9)) * math.log(TAIL_SHARE / alone)


def _folds(groups: Sequence[str]) -> np.ndarray:
    """Return a fold for each clip; clips of one recording are in the same fold."""
    number = {group: position % NUM_FOLDS for position, group in enumerate(dict.fromkeys(groups))}
    return np.array([number[group] for group in groups])


def _sign(metric: Metric) -> int:
    return 1 if metric.threshold.direction == "max" else -1


def _rounded(metric: Metric, limit: float) -> float:
    """Round to four digits, away from rejection, and stay within what the setting may be."""
    if limit:
        step = 10.0 ** (math.floor(math.log10(abs(limit))) - 3)
        limit = (math.ceil if _sign(metric) > 0 else math.floor)(limit / step) * step
    return float(f"{min(max(limit, metric.threshold.low), metric.threshold.high):.6g}")
