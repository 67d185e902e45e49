"""The scores of a run's clips as columns: values, thresholds, which clips miss them, and the worst clips.

A score is any number that curate recorded; names, units and summaries come from the registries of scores and judges.

Axes: N planned clips, in planned order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from dreamgen.extensions.judge import curation_metrics
from dreamgen.extensions.score import Metric
from dreamgen.report.clips import ClipTable
from dreamgen.run.jobs import BATCH
from dreamgen.run.journal import latest_records
from dreamgen.run.records import METRICS_KEY
from dreamgen.run.run_folder import RunFolder

NOT_SCORES = ("num_frames", "wanted_num_frames")
NUM_WORST = 10
Direction = Literal["min", "max"]


@dataclass(frozen=True)
class ScoreColumn:
    """One score of every clip.

    Args:
        name: As recorded.
        label: In words.
        unit: Of the values; empty for a ratio.
        about: What it measures; empty where the package that measures it is not installed.
        direction: Whether a clip is rejected below a threshold (min) or above it (max); None where it never has one.
        value_N: float64; NaN where a clip has no value.
        limit_N: The threshold that each clip was compared with, float64; NaN where there was none.
    """

    name: str
    label: str
    unit: str
    about: str
    direction: Direction | None
    value_N: np.ndarray
    limit_N: np.ndarray

    @property
    def limits(self) -> tuple[float, ...]:
        """Return the distinct thresholds of clips with a value, ascending; one, unless thresholds were changed."""
        return tuple(np.unique(self.limit_N[np.isfinite(self.limit_N) & np.isfinite(self.value_N)]).tolist())

    @property
    def is_missed_N(self) -> np.ndarray:
        """Return which clips are beyond their threshold, bool."""
        beyond_N = self.value_N < self.limit_N if self.direction == "min" else self.value_N > self.limit_N
        return beyond_N & (self.direction is not None)

    def worst_rows(self, can_show_N: np.ndarray, num: int = NUM_WORST) -> list[int]:
        """Return the clips with the worst values, worst first; none for a score without a direction.

        Args:
            can_show_N: Which clips can be listed, bool.
            num: Largest number of clips.
        """
        if self.direction is None:
            return []
        rows = np.flatnonzero(can_show_N & np.isfinite(self.value_N))
        badness = self.value_N[rows] if self.direction == "min" else -self.value_N[rows]
        return rows[np.argsort(badness, kind="stable")[:num]].tolist()


def read_scores(run: RunFolder, clips: ClipTable) -> list[ScoreColumn]:
    """Read every number that curate recorded; 16 bytes of memory for each score and clip.

    Args:
        run: The run.
        clips: Its clips.

    Returns:
        Scores in the order of the registries, then others.
    """
    table = latest_records(run.journal, "curate", (METRICS_KEY,))
    rows = pc.index_in(table["clip_id"].combine_chunks(), value_set=clips.ids).fill_null(-1)
    value: dict[str, np.ndarray] = {}
    limit: dict[str, np.ndarray] = {}
    direction: dict[str, Direction] = {}
    for begin in range(0, len(table), BATCH):
        texts = table[METRICS_KEY].slice(begin, BATCH).to_pylist()
        for row, text in zip(rows.slice(begin, BATCH).to_pylist(), texts, strict=True):
            recorded = json.loads(text)
            for name, number in _scores_of(recorded).items() if row >= 0 else ():
                if name not in value:
                    value[name], limit[name] = np.full((2, len(clips)), np.nan)
                value[name][row] = number
                for side in ("min", "max"):
                    if f"{side}_{name}" in recorded:
                        direction[name] = side
                        limit[name][row] = _number(recorded[f"{side}_{name}"])
    declared = {metric.name: metric for metric in curation_metrics()}
    names = [name for name in declared if name in value] + [name for name in value if name not in declared]
    return [_column(name, declared, direction, value[name], limit[name]) for name in names]


def limit_words(column: ScoreColumn, limit: float) -> str:
    """Return a threshold in words, such as "min 0.5"."""
    return f"{column.direction} {limit:g}"


def _scores_of(recorded: dict[str, Any]) -> dict[str, float]:
    """Return the recorded numbers that are neither thresholds nor counts of frames."""
    return {
        name: _number(value)
        for name, value in recorded.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in NOT_SCORES
        and not (name.startswith(("min_", "max_")) and name[4:] in recorded)
    }  # fmt: skip


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else np.nan


def _column(
    name: str, declared: Mapping[str, Metric], direction: dict[str, Direction], value_N: np.ndarray, limit_N: np.ndarray
) -> ScoreColumn:
    metric = declared.get(name)  # None where the package that measured it is not installed
    unit = metric.unit if metric is not None else ""
    label = name.removesuffix(f"_{unit.lower()}").replace("_", " ").replace("psnr", "PSNR")
    side = direction.get(name) or (metric.threshold.direction if metric is not None else None)
    return ScoreColumn(name, label, unit, metric.summary if metric is not None else "", side, value_N, limit_N)
