"""The statistics that a dataset records of each episode, and whether they are those of its rows.

An episode whose rows were swapped with another's, index columns and all, is told by nothing else.

Axes: E episodes, D values.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from export.check.files import PARQUET_DAMAGE, existing
from export.check.findings import Findings
from export.check.lerobot.columns import INDEX_COLUMNS, NUMERIC, FileRows, matrix
from export.check.lerobot.episodes import LeRobotEntry
from export.check.lerobot.read import EPISODE_STATISTICS

# LeRobot's own tools move index columns without touching what was recorded of them.
NOT_COMPARED = INDEX_COLUMNS
NEEDED = ("min", "max", "mean", "std")
PICTURES = ("video", "image")


class RecordedStatistics:
    """Reads what is recorded of episodes; in a process of its own it keeps only the rows last looked at.

    Args:
        dataset: The dataset.
        findings: Where malformed statistics are noted.
        of_pictures: Whether those of cameras are looked at, rather than those of columns.
    """

    def __init__(self, dataset: LeRobotEntry, findings: Findings, of_pictures: bool = False) -> None:
        self._dataset, self._findings, self._of_pictures = dataset, findings, of_pictures
        self._opened: tuple[int, FileRows | None] = (-1, None)
        self._stream = None

    def compare(
        self, file: str, positions: np.ndarray, computed: dict[str, dict[str, np.ndarray]], findings: Findings
    ) -> None:
        """Note episodes whose rows do not have the figures that are recorded.

        Args:
            file: Where the rows lie.
            positions: Of the episodes.
            computed: Feature -> figure -> (E, D), of the rows.
        """
        recorded = self.of(positions)
        for name, metrics in computed.items():
            if name in NOT_COMPARED or name not in recorded:
                continue
            span_D = metrics["max"].max(axis=0) - metrics["min"].min(axis=0)
            for stat, actual_ED in metrics.items():
                told_ED = recorded[name].get(stat)
                if told_ED is None or told_ED.shape != actual_ED.shape:
                    continue
                # A figure that could not be read is NaN here, compares false, and was noted when it was read.
                off_ED = np.abs(told_ED - actual_ED) > 1e-3 * span_D + 1e-5 * np.abs(actual_ED) + 1e-9
                for place in np.flatnonzero(off_ED.any(axis=1)).tolist():
                    dim, episode = int(np.argmax(off_ED[place])), self._dataset.episodes[int(positions[place])]
                    findings.add("episode-statistics-differ", self._file(episode.position),
                                 f"{episode.name}, {name}, {stat}[{dim}]", f"{told_ED[place, dim]:g}",
                                 f"{actual_ED[place, dim]:g}, as in the rows in {file}")  # fmt: skip

    def of(self, positions: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Return feature -> figure -> (E, D) float64, NaN where an episode has none that can be read."""
        if self._dataset.is_v3:
            return self._of_v3(positions)
        return self._of_v21(positions) if self._dataset.statistics_lines is not None else {}

    def _of_v3(self, positions: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        episodes, found = self._dataset.episodes, {}
        for source in np.unique(episodes.source_N[positions]).tolist():
            places = np.flatnonzero(episodes.source_N[positions] == source)
            rows = episodes.source_row_N[positions[places]]
            try:
                opened = self._file_rows(source)
                table = opened and opened.read(int(rows.min()), int(rows.max()) + 1).take(rows - rows.min())
            except PARQUET_DAMAGE:
                continue  # reading the episodes themselves has noted it
            for column in table.column_names if table is not None else ():
                _, name, stat = column.split("/", 2)
                size = self._size(name, stat)
                values_ED = None if table.column(column).null_count else matrix(table.column(column), size)[0]
                if values_ED is None:
                    if not table.column(column).null_count:
                        self._findings.add("statistics-length", episodes.sources[source], column,
                                           str(table.column(column).type), f"{size} numbers",
                                           fixable=False)  # fmt: skip
                    continue
                values_ED = values_ED.astype(np.float64)
                for place in np.flatnonzero(~np.isfinite(values_ED).all(axis=1)).tolist():
                    episode = episodes[int(positions[places[place]])]
                    self._findings.add("statistics-not-finite", episode.named_by, f"{episode.name}, {column}",
                                       values_ED[place].tolist(), "finite numbers", fixable=False)  # fmt: skip
                into = found.setdefault(name, {}).setdefault(stat, np.full((len(positions), size), np.nan))
                into[places] = values_ED
        return found

    def _file_rows(self, source: int) -> FileRows | None:
        if self._opened[0] != source:
            self.close()
            path = existing(self._dataset.root, self._dataset.episodes.sources[source], "the layout", Findings())
            self._opened = (source, path and FileRows(path, self._wanted))
        return self._opened[1]

    def _wanted(self, column: str) -> bool:
        parts = column.split("/", 2)
        return len(parts) == 3 and parts[0] == "stats" and self._size(parts[1], parts[2]) is not None

    def _size(self, name: str, stat: str) -> int | None:
        """Return how many numbers a figure has; None for features that are not looked at."""
        feature = self._dataset.features.get(name)
        if feature is None or (feature["dtype"] in PICTURES) != self._of_pictures:
            return None
        if feature["dtype"] in PICTURES:
            return 1 if stat == "count" else min(feature["shape"])
        if feature["dtype"] not in NUMERIC:
            return None
        return 1 if stat == "count" else math.prod(feature["shape"])

    def _of_v21(self, positions: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        found: dict[str, dict[str, np.ndarray]] = {}
        for place, position in enumerate(positions.tolist()):
            for name, metrics in self._line(position).items():
                feature = self._dataset.features.get(name)
                if feature is None or self._size(name, "mean") is None:
                    continue
                where = f"episode {self._dataset.episodes.index_N[position]}, {name}"
                for stat, values in self._statistics(where, name, metrics).items():
                    into = found.setdefault(name, {}).setdefault(stat, np.full((len(positions), len(values)), np.nan))
                    into[place] = values
        return found

    def _line(self, position: int) -> dict[str, Any]:
        offset, size = self._dataset.statistics_lines[position].tolist()
        if not size:
            return {}
        if self._stream is None:
            self._stream = (self._dataset.root / EPISODE_STATISTICS).open("rb")
        self._stream.seek(offset)
        where = f"episode {self._dataset.episodes.index_N[position]}"
        try:
            statistics = json.loads(self._stream.read(size)).get("stats")
        except (ValueError, RecursionError, AttributeError) as error:
            self._findings.add("unreadable-file", EPISODE_STATISTICS, where, str(error), "one JSON object a line")
            return {}
        if not isinstance(statistics, dict):
            self._findings.add("statistics-missing", EPISODE_STATISTICS, where, statistics, "figures by feature")
            return {}
        if not self._of_pictures:
            for name, feature in self._dataset.features.items():
                if feature["dtype"].startswith("float") and name != "timestamp" and name not in statistics:
                    self._findings.add("statistics-missing", EPISODE_STATISTICS, f"{where}, {name}", "none",
                                       "figures of every float feature")  # fmt: skip
        return statistics

    def _statistics(self, where: str, name: str, metrics: Any) -> dict[str, np.ndarray]:
        if not isinstance(metrics, dict):
            self._findings.add("statistics-missing", EPISODE_STATISTICS, where, metrics, "figures by name")
            return {}
        good = {}
        for stat in (stat for stat in NEEDED if stat not in metrics):
            self._findings.add("statistics-missing", EPISODE_STATISTICS, where, f"no {stat}", ", ".join(NEEDED))
        for stat, told in metrics.items():
            values, wrong = numbers_of(told), None
            if values is None or not np.isfinite(values).all():
                wrong = "statistics-not-finite", told, "finite numbers"
            elif len(values) != self._size(name, stat):
                wrong = "statistics-length", f"{len(values)} values", f"{self._size(name, stat)}"
            if wrong is None:
                good[stat] = values
            else:
                self._findings.add(wrong[0], EPISODE_STATISTICS, f"{where}, {stat}", *wrong[1:])
        return good

    def _file(self, position: int) -> str:
        return self._dataset.episodes[position].named_by if self._dataset.is_v3 else EPISODE_STATISTICS

    def close(self) -> None:
        """Close the files."""
        if self._opened[1] is not None:
            self._opened[1].close()
        self._opened = (-1, None)
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def numbers_of(value: Any) -> np.ndarray | None:
    """Return a figure as JSON holds it, a number or nested lists of numbers, as flat float64, or None."""
    try:
        values = np.array(value)
    except (ValueError, OverflowError):  # lists of different lengths
        return None
    return values.ravel().astype(np.float64) if values.dtype.kind in "fiu" else None
