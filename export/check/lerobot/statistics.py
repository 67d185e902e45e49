"""The statistics of the whole dataset, which trainers normalise with: there, finite, of the right length, of this data.

Axes: D dimensions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from export.check.files import read_json_object
from export.check.findings import Findings
from export.check.lerobot.columns import INDEX_COLUMNS, NUMERIC
from export.check.lerobot.episodes import LeRobotEntry
from export.check.lerobot.ranges import Range
from export.check.lerobot.recorded import NEEDED, numbers_of
from export.check.lerobot.rows import RowSummary

STATS = "meta/stats.json"
GROOT_STATISTICS = ("mean", "std", "min", "max", "q01", "q99")
ABSENT = object()
GROOT_COLUMNS = ("action", "observation.state")


def check_statistics(dataset: LeRobotEntry, rows: RowSummary, findings: Findings) -> None:
    """Look at stats.json."""
    # LeRobot reads v2.1 by its episodes' statistics; only GR00T wants stats.json beside them.
    wanted = dataset.version != "v2.1" or dataset.modality is not None
    if not (dataset.root / STATS).exists():
        if wanted:
            findings.add("statistics-missing", STATS, "", "it does not exist", "figures of every float feature")
        return
    statistics = read_json_object(dataset.root, STATS, findings)
    if statistics is None:
        return
    groot = dataset.modality is not None and dataset.version != "v3.0"  # GR00T reads no v3.0
    for name, feature in dataset.features.items():
        metrics = statistics.get(name, ABSENT)
        if feature["dtype"] in ("video", "image"):
            if isinstance(metrics, dict):  # GR00T's file has none of pictures
                _check_values(name, metrics, min(feature["shape"]), False, findings, fixable=False)
        elif feature["dtype"] in NUMERIC:
            _check_feature(dataset, name, metrics, rows, groot, findings)


def _check_feature(
    dataset: LeRobotEntry, name: str, metrics: Any, rows: RowSummary, groot: bool, findings: Findings
) -> None:
    feature = dataset.features[name]
    if metrics is ABSENT:
        if feature["dtype"].startswith("float") and name != "timestamp":
            findings.add("statistics-missing", STATS, name, "none", "figures of every float feature")
        return
    if not isinstance(metrics, dict):
        findings.add("statistics-missing", STATS, name, metrics, "figures by name")
        return
    cut = groot and name in GROOT_COLUMNS
    needed = GROOT_STATISTICS if cut else NEEDED
    for stat in (stat for stat in needed if stat not in metrics and (cut or not groot)):
        findings.add("statistics-missing", STATS, name, f"no {stat}", ", ".join(needed))
    good = _check_values(name, metrics, math.prod(feature["shape"]), cut, findings)
    # Index columns are left out: LeRobot's own tools renumber them and keep the statistics.
    found = rows.ranges.by_feature.get(name)
    if found is not None and name not in INDEX_COLUMNS and found.count == dataset.episodes.length_N.sum():
        _check_range(name, good, found, findings)


def _check_values(
    name: str, metrics: dict[str, Any], size: int, cut: bool, findings: Findings, fixable: bool = True
) -> dict[str, np.ndarray]:
    """Return the figures that are finite and of the right length; note the others."""
    good = {}
    for stat, told in metrics.items():
        values = numbers_of(told)
        # LeRobot's count is one number whatever the vector; GR00T cuts it like the others, and fails.
        if stat == "count" and cut:
            findings.add("groot-count", STATS, f"{name}, {stat}", told, "no count")
        elif values is None or not np.isfinite(values).all():
            findings.add("statistics-not-finite", STATS, f"{name}, {stat}", told, "finite numbers", fixable=fixable)
        elif len(values) != size and stat != "count":
            findings.add("statistics-length", STATS, f"{name}, {stat}", f"{len(values)} values", f"{size}",
                         fixable=fixable)  # fmt: skip
        elif stat != "count":
            good[stat] = values
    return good


def _check_range(name: str, metrics: dict[str, np.ndarray], found: Range, findings: Findings) -> None:
    mean_D = found.sum_D / found.count
    for stat, actual_D in (("min", found.low_D), ("max", found.high_D), ("mean", mean_D)):
        told_D = metrics.get(stat)
        if told_D is None or told_D.shape != actual_D.shape:
            continue
        slack_D = 1e-3 * (found.high_D - found.low_D) + 1e-4 * np.abs(actual_D) + 1e-6
        if (off_D := np.abs(told_D - actual_D) > slack_D).any():
            dim = int(np.argmax(off_D))
            findings.add("statistics-differ", STATS, f"{name}, {stat}[{dim}]", f"{told_D[dim]:g}",
                         f"{actual_D[dim]:g}, as in the rows")  # fmt: skip
