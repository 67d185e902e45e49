"""Thresholds from real clips: as strict as possible, while a real clip is rejected at most at a given rate.

Axes: N clips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dreamgen.extensions.score import Metric

SPREAD_QUANTILE = 0.9  # of the values, in the direction of rejection; its distance from the median is their spread
LEAST_SPREAD = 0.1  # of the distance from the median to the default threshold: values that hardly vary say too little
TAIL_SHARE = 0.2  # of the clips, whose excess gives the tail where there are too few clips for a quantile
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

    A value's distance from the median in the direction of rejection is divided by the metric's spread, and a clip's
    distance is its largest one. One distance bounds all metrics: the quantile 1 - rate over clips, with the correction
    for finite samples of conformal prediction (Vovk et al., 2005). Distances are taken with medians and spreads of
    other recordings. With fewer than 1 / rate clips, an exponential tail extends the largest distance.

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
    rejected = np.zeros(len(table), bool)
    for fold in np.unique(fold_N):
        others = fold_N != fold
        if others.any():
            center, spread, bound = _fit(table[others], fold_N[others], known, rate)
            rejected[~others] = _distance(table[~others], center, spread) > bound
    center, spread, bound = _fit(table, fold_N, known, rate)
    limits = {metric.threshold.setting: _rounded(metric, float(_sign(metric) * (c + bound * s)))
              for metric, c, s in zip(known, center, spread, strict=True)}  # fmt: skip
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


def _fit(
    table: np.ndarray, fold_N: np.ndarray, metrics: Sequence[Metric], rate: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return medians, spreads, and the distance that bounds a clip."""
    distance_N = np.empty(len(table))
    for fold in np.unique(fold_N):
        here = fold_N == fold
        reference = table[~here] if (~here).any() else table
        distance_N[here] = _distance(table[here], *_center_and_spread(reference, metrics))
    return *_center_and_spread(table, metrics), _bound(distance_N, rate)


def _center_and_spread(table: np.ndarray, metrics: Sequence[Metric]) -> tuple[np.ndarray, np.ndarray]:
    center = np.nanmedian(table, axis=0)
    spread = np.nanquantile(table, SPREAD_QUANTILE, axis=0) - center
    defaults = np.array([c if m.threshold.default is None else _sign(m) * m.threshold.default
                         for m, c in zip(metrics, center, strict=True)])  # fmt: skip
    least = np.where(defaults == center, np.abs(center), np.abs(defaults - center)) * LEAST_SPREAD
    return center, np.maximum(spread, np.maximum(least, 1e-9))


def _distance(table: np.ndarray, center: np.ndarray, spread: np.ndarray) -> np.ndarray:
    return np.nanmax((table - center) / spread, axis=1)


def _bound(distance_N: np.ndarray, rate: float) -> float:
    ordered, num = np.sort(distance_N), len(distance_N)
    rank = math.ceil((num + 1) * (1 - rate))
    if rank <= num:
        return float(ordered[rank - 1])
    tail = ordered[-max(2, round(num * TAIL_SHARE)) :]
    return float(ordered[-1] + max(0.0, math.log(1 / ((num + 1) * rate))) * (tail.mean() - tail[0]))


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
