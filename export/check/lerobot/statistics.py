"""Recorded statistics, which trainers normalize with, against the rows: of each episode, and of the whole dataset.

An episode whose rows were exchanged with another's, index columns included, is recognized by nothing else.

Axes: E episodes, D values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dreamgen.data.lerobot.files import PARQUET_DAMAGE, find_file, open_parquet, parse_json_line, read_json_object
from dreamgen.data.lerobot.lines import EpisodeLines, find_lines
from dreamgen.data.lerobot.metadata import LeRobotMeta
from dreamgen.data.lerobot.rows import is_list, matrix
from dreamgen.data.lerobot.schema import EPISODE_STATS_V2, INDEX_COLUMNS, NUMERIC, STATS
from dreamgen.data.lerobot.statistics import GROOT_STATISTICS, Statistics, merge_statistics, over_last_axis
from dreamgen.data.parquet_rows import ParquetRows
from export.check.findings import Findings

NEEDED = ("min", "max", "mean", "std")
GROOT_COLUMNS = ("action", "observation.state")
PICTURES = ("video", "image")


@dataclass(frozen=True)
class LeRobotCheck:
    """What every process needs to check a part of a dataset.

    Args:
        dataset: Its metadata.
        fast: Decode no pictures.
        statistics: v2.1: lines of episodes_stats.jsonl; None without that file.
    """

    dataset: LeRobotMeta
    fast: bool = False
    statistics: EpisodeLines | None = None


def find_episode_statistics(dataset: LeRobotMeta, findings: Findings) -> EpisodeLines | None:
    """Find the lines of episodes_stats.jsonl, so that each process reads only its own; None where there are none."""
    if dataset.version != "v2.1":
        return None
    if not (dataset.root / EPISODE_STATS_V2).exists():
        findings.add("statistics-missing", EPISODE_STATS_V2, "", "it does not exist", "one line an episode")
        return None
    lines = find_lines(dataset.root, EPISODE_STATS_V2, dataset.episodes.index_N, findings)
    for index in dataset.episodes.index_N[lines.size_N == 0].tolist() if lines else ():
        findings.add("statistics-missing", EPISODE_STATS_V2, f"episode {index}", "no line", "one line an episode")
    return lines


def merge_features(into: dict[str, Statistics], added: dict[str, Statistics]) -> None:
    """Merge statistics by feature; those of vectors of another length, which are a finding, are left out."""
    for name, two in added.items():
        one = into.get(name)
        if one is None:
            into[name] = two
        elif one["min"].shape == two["min"].shape:
            into[name] = merge_statistics(one, two)


class EpisodeStatistics:
    """Reads recorded statistics of episodes; of a table, only the rows last read are in RAM. Use as a context.

    Args:
        check: The dataset.
        findings: Receives malformed statistics.
        of_pictures: Read those of videos and images, rather than those of columns.
    """

    def __init__(self, check: LeRobotCheck, findings: Findings, of_pictures: bool = False) -> None:
        self._dataset, self._lines = check.dataset, check.statistics
        self._findings, self._of_pictures = findings, of_pictures
        self._opened: tuple[int, ParquetRows | None] = (-1, None)
        self._damaged: dict[int, frozenset[str]] = {}

    def __enter__(self) -> EpisodeStatistics:
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened[1] is not None:
            self._opened[1].close()
        self._opened = (-1, None)

    def compare(self, file: str, positions: np.ndarray, computed: dict[str, Statistics]) -> None:
        """Report episodes whose rows do not have the statistics that are recorded.

        Args:
            file: Where the rows are.
            positions: Of the episodes.
            computed: Feature -> statistic -> (E, D), of the rows.
        """
        recorded, episodes = self.read(positions), self._dataset.episodes
        for name, statistics in computed.items():
            if name in INDEX_COLUMNS or name not in recorded:  # LeRobot's own tools renumber index columns
                continue
            last_axis = self._dataset.features[name]["shape"][-1]
            statistics = {stat: over_last_axis(stat, values, last_axis) for stat, values in statistics.items()}
            span_D = statistics["max"].max(axis=0) - statistics["min"].min(axis=0)
            for stat, actual_ED in statistics.items():
                recorded_ED = recorded[name].get(stat)
                if recorded_ED is None or recorded_ED.shape != actual_ED.shape:
                    continue
                # A value that could not be read is NaN here, compares false, and was reported when it was read.
                off_ED = np.abs(recorded_ED - actual_ED) > 1e-3 * span_D + 1e-5 * np.abs(actual_ED) + 1e-9
                for place in np.flatnonzero(off_ED.any(axis=1)).tolist():
                    dim, position = int(np.argmax(off_ED[place])), int(positions[place])
                    source = episodes.source(position) if self._dataset.is_v3 else EPISODE_STATS_V2
                    self._findings.add("episode-statistics-differ", source,
                                       f"episode {episodes.index_N[position]}, {name}, {stat}[{dim}]",
                                       f"{recorded_ED[place, dim]:g}",
                                       f"{actual_ED[place, dim]:g}, as in the rows in {file}")  # fmt: skip

    def read(self, positions: np.ndarray) -> dict[str, Statistics]:
        """Return feature -> statistic -> (E, D) float64, NaN where an episode has none that can be read.

        D is the length of the feature's last axis; of one recorded for every number, min, max and mean are read.
        """
        if self._dataset.is_v3:
            return self._read_v3(positions)
        return self._read_v21(positions, self._lines[positions]) if self._lines is not None else {}

    def _read_v3(self, positions: np.ndarray) -> dict[str, Statistics]:
        episodes, found = self._dataset.episodes, {}
        for source in np.unique(episodes.source_N[positions]).tolist():
            places = np.flatnonzero(episodes.source_N[positions] == source)
            rows = episodes.source_row_N[positions[places]]
            table = self._read_table(source, int(rows.min()), int(rows.max()) + 1)
            if table is None:
                continue
            if not np.array_equal(rows, np.arange(rows.min(), rows.min() + len(rows))):  # seldom; it imports pandas
                table = table.take(rows - rows.min())
            file = episodes.sources[source]
            for column in table.column_names:
                _, name, stat = column.split("/", 2)
                size = self._size(name, stat)
                if size is None:
                    continue
                values, own_places = self._without_nulls(table.column(column), column, file, positions, places)
                shape = self._dataset.features[name]["shape"]
                has_all = len(shape) > 1 and _num_axes(values.type) == len(shape) and not self._of_pictures
                values_ED = matrix(values, math.prod(shape) if has_all and stat != "count" else size)[0]
                if values_ED is None:
                    self._findings.add("statistics-length", file, column, str(values.type), f"{size} numbers",
                                       fixable=False)  # fmt: skip
                    continue
                values_ED = _of_last_axis(stat, values_ED.astype(np.float64), size)
                if values_ED is None:
                    continue
                for place in np.flatnonzero(~np.isfinite(values_ED).all(axis=1)).tolist():
                    index = episodes.index_N[positions[own_places[place]]]
                    self._findings.add("statistics-not-finite", file, f"episode {index}, {column}",
                                       values_ED[place].tolist(), "finite numbers", fixable=False)  # fmt: skip
                all_ED = found.setdefault(name, {}).setdefault(stat, np.full((len(positions), size), np.nan))
                all_ED[own_places] = values_ED
        return found

    def _without_nulls(
        self, values: pa.ChunkedArray, column: str, file: str, positions: np.ndarray, places: np.ndarray
    ) -> tuple[pa.ChunkedArray, np.ndarray]:
        """Return the recorded values and the places of their episodes; report episodes that have none."""
        if not values.null_count:
            return values, places
        is_null_E = values.is_null().to_numpy()
        if column.endswith(tuple(f"/{stat}" for stat in NEEDED)):
            for place in places[is_null_E].tolist():
                self._findings.add("statistics-missing", file,
                                   f"episode {self._dataset.episodes.index_N[positions[place]]}, {column}", None,
                                   "a value, with which the episode could be compared", severity="warning",
                                   fixable=False)  # fmt: skip
        return values.drop_null(), places[~is_null_E]

    def _read_table(self, source: int, begin: int, end: int) -> pa.Table | None:
        """Read rows of a file of v3.0's metadata; a column that cannot be read is a finding, and is left out."""
        try:
            opened = self._open(source)
            return None if opened is None else opened.read(begin, end)
        except PARQUET_DAMAGE:
            self._damaged[source] = self._damaged.get(source, frozenset()) | self._damaged_columns(source)
            self.__exit__()
        try:
            opened = self._open(source)
            return None if opened is None else opened.read(begin, end)
        except PARQUET_DAMAGE:
            return None  # a file without a footer, which was reported when the episodes were read

    def _damaged_columns(self, source: int) -> frozenset[str]:
        """Report and return the columns of recorded statistics that cannot be read, each with all of its rows."""
        file, damaged = self._dataset.episodes.sources[source], set()
        opened = open_parquet(self._dataset.root, file, "the layout", Findings())
        if opened is None:
            return frozenset()
        with opened:
            for column in filter(self._is_wanted, opened.schema_arrow.names):
                try:
                    opened.read([column], use_threads=False)
                except PARQUET_DAMAGE as error:
                    damaged.add(column)
                    self._findings.add("unreadable-file", file, column, str(error),
                                       "recorded statistics, with which the episodes could be compared")  # fmt: skip
        return frozenset(damaged)

    def _open(self, source: int) -> ParquetRows | None:
        if self._opened[0] != source:
            self.__exit__()
            path = find_file(self._dataset.root, self._dataset.episodes.sources[source], "the layout", Findings())
            damaged = self._damaged.get(source, frozenset())
            self._opened = (source, path and ParquetRows(path, lambda c: c not in damaged and self._is_wanted(c)))
        return self._opened[1]

    def _is_wanted(self, column: str) -> bool:
        parts = column.split("/", 2)
        return len(parts) == 3 and parts[0] == "stats" and self._size(parts[1], parts[2]) is not None

    def _size(self, name: str, stat: str) -> int | None:
        """Return how many numbers a statistic has; None for features that are not read."""
        feature = self._dataset.features.get(name)
        if feature is None or feature["dtype"] not in (PICTURES if self._of_pictures else NUMERIC):
            return None
        if stat == "count":
            return 1
        return min(feature["shape"]) if self._of_pictures else feature["shape"][-1]

    def _read_v21(self, positions: np.ndarray, lines: EpisodeLines) -> dict[str, Statistics]:
        found: dict[str, Statistics] = {}
        for place, (position, line) in enumerate(zip(positions.tolist(), lines.read(), strict=True)):
            where = f"episode {self._dataset.episodes.index_N[position]}"
            for name, recorded in self._features_of_line(line, where).items():
                size = self._size(name, "mean")
                if size is None:
                    continue
                shape = [size] if self._of_pictures else self._dataset.features[name]["shape"]
                good = check_values(EPISODE_STATS_V2, f"{where}, {name}", recorded, shape, NEEDED, self._findings)
                for stat, values in good.items():
                    if stat == "count" and len(values) != 1:
                        self._findings.add("statistics-length", EPISODE_STATS_V2, f"{where}, {name}, count",
                                           f"{len(values)} values", "1")  # fmt: skip
                        continue
                    values = values if stat == "count" else _of_last_axis(stat, values, size)
                    if values is not None:
                        kept = found.setdefault(name, {})
                        kept.setdefault(stat, np.full((len(positions), len(values)), np.nan))[place] = values
        return found

    def _features_of_line(self, line: bytes, where: str) -> dict[str, Any]:
        row = parse_json_line(line, EPISODE_STATS_V2, where, self._findings)
        if row is None:
            return {}
        statistics = row.get("stats")
        if not isinstance(statistics, dict):
            self._findings.add("statistics-missing", EPISODE_STATS_V2, where, statistics, "statistics by feature")
            return {}
        for name, feature in self._dataset.features.items() if not self._of_pictures else ():
            if feature["dtype"].startswith("float") and name != "timestamp" and name not in statistics:
                self._findings.add("statistics-missing", EPISODE_STATS_V2, f"{where}, {name}", "none",
                                   "statistics of every float feature")  # fmt: skip
        return statistics


def check_values(
    file: str, where: str, recorded: Any, shape: Sequence[int], needed: Sequence[str], findings: Findings,
    fixable: bool | None = None,
) -> Statistics:  # fmt: skip
    """Return the statistics of a feature that are finite and of the right shape, flat; report the others.

    LeRobot 0.6 records one value for each entry of the last axis, earlier releases one for each number.
    """
    if not isinstance(recorded, dict):
        findings.add("statistics-missing", file, where, recorded, "statistics by name")
        return {}
    good = {}
    for stat in (stat for stat in needed if stat not in recorded):
        findings.add("statistics-missing", file, where, f"no {stat}", ", ".join(needed))
    for stat, value in recorded.items():
        values = _flat_numbers(value)
        if values is None or not np.isfinite(values).all():
            findings.add("statistics-not-finite", file, f"{where}, {stat}", value, "finite numbers", fixable=fixable)
        elif not (stat == "count" or len(values) == shape[-1] or np.shape(value) == tuple(shape)):
            findings.add("statistics-length", file, f"{where}, {stat}", f"{len(values)} values", f"{shape[-1]}",
                         fixable=fixable)  # fmt: skip
        else:
            good[stat] = values
    return good


def _of_last_axis(stat: str, values: np.ndarray, last_axis: int) -> np.ndarray | None:
    """Return statistics (..., last_axis) of those of every number; None where they do not follow from them."""
    if values.shape[-1] == last_axis:
        return values
    return over_last_axis(stat, values, last_axis) if stat in ("min", "max", "mean") else None


def _num_axes(kind: pa.DataType) -> int:
    return 1 + _num_axes(kind.value_type) if is_list(kind) else 0


def _flat_numbers(value: Any) -> np.ndarray | None:
    try:
        values = np.array(value)
    except (ValueError, OverflowError):  # lists of different lengths
        return None
    return values.ravel().astype(np.float64) if values.dtype.kind in "fiu" else None


def check_statistics(dataset: LeRobotMeta, rows: dict[str, Statistics], findings: Findings) -> None:
    """Check stats.json: present, finite, of the right length, and of these rows.

    Args:
        dataset: The metadata.
        rows: Statistics of all rows by feature, at least min, max, mean and count.
        findings: Receives what is wrong.
    """
    # LeRobot reads v2.1 by its episodes' statistics; only GR00T needs stats.json too.
    if not (dataset.root / STATS).exists():
        if dataset.version != "v2.1" or dataset.modality is not None:
            findings.add("statistics-missing", STATS, "", "it does not exist", "statistics of every float feature")
        return
    statistics = read_json_object(dataset.root, STATS, findings)
    if statistics is None:
        return
    for name, feature in dataset.features.items():
        if feature["dtype"] in PICTURES:
            if isinstance(statistics.get(name), dict):  # GR00T's file has none of pictures
                check_values(STATS, name, statistics[name], [min(feature["shape"])], (), findings, fixable=False)
        elif feature["dtype"] in NUMERIC and name in statistics:
            good = _check_feature(dataset, name, statistics[name], findings)
            found = rows.get(name)
            # Index columns are left out: LeRobot's own tools renumber them and keep the statistics.
            if found and name not in INDEX_COLUMNS and found["count"][0] == dataset.episodes.length_N.sum():
                _compare_rows(name, good, found, findings)
        elif feature["dtype"].startswith("float") and name != "timestamp" and name not in statistics:
            findings.add("statistics-missing", STATS, name, "none", "statistics of every float feature")


def _check_feature(dataset: LeRobotMeta, name: str, recorded: Any, findings: Findings) -> Statistics:
    is_groot = dataset.modality is not None and not dataset.is_v3  # GR00T reads no v3.0
    is_sliced = is_groot and name in GROOT_COLUMNS
    needed = GROOT_STATISTICS if is_sliced else () if is_groot else NEEDED
    if is_sliced and isinstance(recorded, dict) and "count" in recorded:
        # LeRobot's count is one number whatever the vector; GR00T slices it like the others, and fails.
        findings.add("groot-count", STATS, f"{name}, count", recorded["count"], "no count")
        recorded = {stat: value for stat, value in recorded.items() if stat != "count"}
    return check_values(STATS, name, recorded, dataset.features[name]["shape"], needed, findings)


def _compare_rows(name: str, recorded: Statistics, rows: Statistics, findings: Findings) -> None:
    for stat, actual_D in ((stat, rows[stat]) for stat in ("min", "max", "mean")):
        recorded_D = recorded.get(stat)
        if recorded_D is None or len(actual_D) % len(recorded_D):
            continue
        actual_D, low_D, high_D = (
            over_last_axis(of, values, len(recorded_D))
            for of, values in ((stat, actual_D), ("min", rows["min"]), ("max", rows["max"]))
        )
        tolerance_D = 1e-3 * (high_D - low_D) + 1e-4 * np.abs(actual_D) + 1e-6
        if (off_D := np.abs(recorded_D - actual_D) > tolerance_D).any():
            dim = int(np.argmax(off_D))
            findings.add("statistics-differ", STATS, f"{name}, {stat}[{dim}]", f"{recorded_D[dim]:g}",
                         f"{actual_D[dim]:g}, as in the rows")  # fmt: skip
