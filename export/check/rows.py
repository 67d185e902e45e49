"""The rows of a LeRobot dataset against its metadata: counts, times, numbers, tasks, vectors.

Axes: N rows, D dimensions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dreamgen.core.timeline import frame_times_s
from export.check.findings import Findings
from export.check.metadata import EpisodeEntry, LeRobotEntry, read_parquet

TIME_TOLERANCE_S = 1e-4  # LeRobot's own: a frame farther off is an error for its loader
NUMERIC = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
NO_ROWS = "the episode has no actions"


@dataclass
class RowSummary:
    """What the rows hold, gathered file by file.

    Args:
        num_rows: Episode -> rows that were found.
        ranges: Feature -> (lowest, highest) of each dimension.
    """

    num_rows: dict[int, int] = field(default_factory=dict)
    ranges: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def widen(self, name: str, matrix_ND: np.ndarray) -> None:
        """Take in values of a feature."""
        low_D, high_D = matrix_ND.min(axis=0), matrix_ND.max(axis=0)
        if name in self.ranges:
            low_D = np.minimum(low_D, self.ranges[name][0])
            high_D = np.maximum(high_D, self.ranges[name][1])
        self.ranges[name] = (low_D, high_D)


def check_rows(dataset: LeRobotEntry, findings: Findings) -> RowSummary:
    """Read every data file once and compare its rows with the episodes that should lie in it."""
    summary = RowSummary()
    by_file: dict[str, list[EpisodeEntry]] = defaultdict(list)
    for episode in dataset.episodes:
        by_file[episode.data_file].append(episode)
    first_row = 0
    for file in _data_files(dataset, by_file):
        episodes = by_file.get(file, [])
        named_by = episodes[0].named_by if episodes else "nothing"
        table = read_parquet(dataset.root, file, named_by, findings, consequence=NO_ROWS)
        if table is None:
            first_row += sum(episode.length for episode in episodes)
            continue
        _check_columns(dataset, file, table, findings)
        _check_file(dataset, file, table, episodes, first_row, summary, findings)
        first_row += table.num_rows if dataset.version == "v3.0" else sum(episode.length for episode in episodes)
    return summary


def _data_files(dataset: LeRobotEntry, by_file: dict[str, list[EpisodeEntry]]) -> list[str]:
    """Return the files in the order in which readers join them; v3.0 readers take every file in the folder."""
    if dataset.version != "v3.0":
        return list(by_file)
    lying = {path.relative_to(dataset.root).as_posix() for path in (dataset.root / "data").glob("*/*.parquet")}
    return sorted(lying | set(by_file))


def _check_columns(dataset: LeRobotEntry, file: str, table: pa.Table, findings: Findings) -> None:
    stored = set(table.column_names)
    for name, feature in dataset.features.items():
        if feature["dtype"] != "video" and name not in stored:
            findings.error("missing column", file, name, "no such column", f"the feature {name} of info.json",
                           "loading fails")  # fmt: skip
    for name in sorted(stored - set(dataset.features)):
        findings.warning(
            "unnamed column", file, name, "a column", "only features of info.json", "readers refuse it or drop it"
        )
    for name in ("timestamp", "episode_index", "index", "task_index", "frame_index"):
        if name not in stored and name not in dataset.features:
            note = findings.warning if name == "frame_index" and dataset.version == "v2.0" else findings.error
            note("missing column", file, name, "no such column", f"a column {name}", "readers that need it fail")


def _check_file(
    dataset: LeRobotEntry, file: str, table: pa.Table, episodes: list[EpisodeEntry], first_row: int,
    summary: RowSummary, findings: Findings,
) -> None:  # fmt: skip
    scalars = {n: _scalars(file, table, n, findings) for n in ("timestamp", "episode_index", "index", "task_index",
                                                               "frame_index") if n in table.column_names}  # fmt: skip
    vectors = dict(_vectors(dataset, file, table, findings))
    for name, matrix_ND in vectors.items():
        if len(matrix_ND):
            summary.widen(name, matrix_ND)
    covered = 0
    for episode in episodes:
        # A v2 file is one episode's own; in a v3.0 file its rows begin where the metadata says.
        begin = episode.first_row - first_row if dataset.version == "v3.0" else 0
        end = begin + episode.length if dataset.version == "v3.0" else table.num_rows
        if begin < 0 or end > table.num_rows:
            findings.error("row count", file, episode.name, f"rows {begin} to {end} of {table.num_rows}",
                           "rows within the file", "rows of another episode are read in their place")  # fmt: skip
        rows = slice(max(0, begin), max(0, end))
        covered += max(0, min(end, table.num_rows) - max(0, begin))
        own = {name: values[rows] for name, values in scalars.items() if values is not None}
        summary.num_rows[episode.index] = max(0, min(end, table.num_rows) - max(0, begin))
        if dataset.version != "v3.0" and table.num_rows != episode.length:
            findings.error("row count", file, episode.name, f"{table.num_rows} rows", f"length {episode.length}",
                           "readers run past the end or miss frames")  # fmt: skip
        _check_episode(dataset, file, episode, own, findings)
        for name, matrix_ND in vectors.items():
            _check_finite(file, episode, name, matrix_ND[rows], findings)
    if covered < table.num_rows:
        findings.error("row count", file, "", f"{table.num_rows - covered} rows that no episode names",
                       "every row in one episode",
                       "rows behind them shift, so episodes read one another's actions")  # fmt: skip


def _check_episode(
    dataset: LeRobotEntry, file: str, episode: EpisodeEntry, columns: dict[str, np.ndarray], findings: Findings
) -> None:
    where = episode.name
    if (times := columns.get("timestamp")) is not None and len(times):
        off_s = np.abs(times - _times(dataset, len(times)))
        # NaN compares false with everything, hence "not within".
        if (~(off_s <= TIME_TOLERANCE_S)).any():
            row = int(np.argmax(~(off_s <= TIME_TOLERANCE_S)))
            findings.error("timestamp", file, f"{where}, row {row}", f"{times[row]:.6f} s",
                           f"{row}/{dataset.fps:g} = {_times(dataset, row + 1)[row]:.6f} s",
                           "the loader fails, or takes another frame's picture for this action")  # fmt: skip
    for name, expected in (
        ("episode_index", episode.index),
        ("frame_index", np.arange(episode.length)),
        ("index", episode.first_row + np.arange(episode.length)),
    ):
        values = columns.get(name)
        if values is None:
            continue
        wanted = np.broadcast_to(expected, episode.length)[: len(values)]
        wrong = values[: len(wanted)] != wanted
        if wrong.any():
            row = int(np.argmax(wrong))
            kind = "episode_index" if name == "episode_index" else "index"
            findings.error(kind, file, f"{where}, {name}, row {row}", f"{values[row]:g}",
                           f"{wanted[row]}", "rows are taken for those of another frame")  # fmt: skip
    if (task_index := columns.get("task_index")) is not None:
        _check_tasks(dataset, file, episode, task_index, findings)


def _check_tasks(
    dataset: LeRobotEntry, file: str, episode: EpisodeEntry, task_index: np.ndarray, findings: Findings
) -> None:
    used = set(task_index.tolist())
    for index in sorted(used - set(dataset.tasks)):
        findings.error("tasks", file, f"{episode.name}, task_index", f"{index:g}", "an index of the task table",
                       "the instruction cannot be found")  # fmt: skip
    if not episode.tasks:
        findings.error("tasks", episode.named_by, episode.name, "no task", "at least one", "no instruction is known")
        return
    named = {dataset.tasks[index] for index in used if index in dataset.tasks}
    for task in sorted(named - set(episode.tasks)):
        findings.error("tasks", episode.named_by, episode.name, f"{list(episode.tasks)} without {task!r}",
                       "the tasks of its rows", "two readers train two different instructions")  # fmt: skip
    for task in (task for task in episode.tasks if task not in named):
        findings.warning("tasks", episode.named_by, episode.name, f"the task {task!r}, which no row has",
                         "only tasks that rows point at",
                         "readers that pick from the list train it as an instruction")  # fmt: skip


def _check_finite(file: str, episode: EpisodeEntry, name: str, matrix_ND: np.ndarray, findings: Findings) -> None:
    bad_N = ~np.isfinite(matrix_ND).all(axis=1)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        column = int(np.argmin(np.isfinite(matrix_ND[row])))
        findings.error("not finite", file, f"{episode.name}, row {row}, {name}[{column}]", f"{matrix_ND[row, column]}",
                       "finite numbers", "the loss becomes NaN")  # fmt: skip


def _scalars(file: str, table: pa.Table, name: str, findings: Findings) -> np.ndarray | None:
    column = table.column(name)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        findings.error("column type", file, name, str(column.type), "one number a row", "loading fails")
        return None
    if column.null_count:
        findings.error(
            "column type", file, name, f"{column.null_count} empty cells", "a number in every row", "loading fails"
        )
        return None
    return column.to_numpy()


def _vectors(dataset: LeRobotEntry, file: str, table: pa.Table, findings: Findings) -> Iterator[tuple[str, np.ndarray]]:
    for name, feature in dataset.features.items():
        if feature["dtype"] not in NUMERIC or len(feature["shape"]) != 1 or name not in table.column_names:
            continue
        size, column = feature["shape"][0], table.column(name).combine_chunks()
        matrix_ND, stored = _matrix(column, size)
        if matrix_ND is None:
            findings.error("vector length", file, name, _shape_of(column), f"vectors of {size}", "loading fails")
            continue
        if stored != feature["dtype"]:
            findings.warning(
                "column type", file, name, stored, f"{feature['dtype']} as info.json says", "loading casts or fails"
            )
        if feature["dtype"].startswith("float"):
            yield name, matrix_ND


def _matrix(column: Any, size: int) -> tuple[np.ndarray | None, str]:
    """Return rows as float64 (N, D) and the stored type; None where a row is not a vector of `size` numbers."""
    kind, values = column.type, column
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.list_value_length(column)
        if column.null_count or not pc.all(pc.equal(lengths, size), min_count=0).as_py():
            return None, str(kind)
        kind, values = kind.value_type, column.flatten()
    elif size != 1:
        return None, str(kind)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None, str(kind)
    names = {"halffloat": "float16", "float": "float32", "double": "float64"}
    flat = values.to_numpy(zero_copy_only=False).astype(np.float64)
    return flat.reshape(-1, size), names.get(str(kind), str(kind))


def _shape_of(column: Any) -> str:
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = sorted(
            {length for length in pc.unique(pc.list_value_length(column)).to_pylist() if length is not None}
        )
        empty = f", {column.null_count} empty cells" if column.null_count else ""
        return f"{kind} with {', '.join(map(str, lengths[:5]))} values{empty}"
    return str(kind)


def _times(dataset: LeRobotEntry, num_frames: int) -> np.ndarray:
    return frame_times_s(num_frames, dataset.exact_fps)
