"""The rows of a LeRobot dataset against its metadata: which file holds which episodes, and a run of rows at a time.

Axes: N rows, E episodes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from export.check.files import PARQUET_DAMAGE, existing, open_parquet
from export.check.findings import Findings
from export.check.lerobot.columns import INDEX_COLUMNS, FileRows, is_number
from export.check.lerobot.episodes import LeRobotEntry, data_file
from export.check.lerobot.modality import annotation_columns
from export.check.lerobot.ranges import Ranges
from export.check.lerobot.recorded import RecordedStatistics
from export.check.lerobot.row_batch import RowBatch, check_row_batch
from export.check.parallel import Workers

FILES_AT_ONCE = 32  # of v2, which has one an episode
ROWS_AT_ONCE, EPISODES_AT_ONCE = 20_000, 500


@dataclass(frozen=True)
class LeRobotCheck:
    """What every process needs to check a part of a dataset."""

    dataset: LeRobotEntry
    fast: bool


@dataclass(frozen=True)
class DataFiles:
    """A v3.0 data file and the episodes that should lie in it, or some v2 files of one episode each.

    Args:
        positions: Of the episodes in the table.
        file: v3.0: its path.
        first_row: v3.0: number of its first row in the dataset.
    """

    positions: np.ndarray
    named_by: str
    file: str = ""
    first_row: int = 0

    def __len__(self) -> int:
        return 1 if self.file else len(self.positions)


@dataclass
class RowSummary:
    """What the rows hold.

    Args:
        num_rows: Position of an episode -> rows that were found, where these are not its length.
        ranges: Figures of each feature.
    """

    num_rows: dict[int, int] = field(default_factory=dict)
    ranges: Ranges = field(default_factory=Ranges)

    def merge(self, other: RowSummary) -> None:
        """Take in what another process found."""
        self.num_rows.update(other.num_rows)
        self.ranges.merge(other.ranges)


def check_rows(workers: Workers, dataset: LeRobotEntry, findings: Findings) -> RowSummary:
    """Read every data file once and compare its rows with the episodes that should lie in it."""
    summary = RowSummary()
    for found, of_files in workers.map(check_data_files, list(data_files(dataset)), "check rows", "files"):
        findings.merge(found)
        summary.merge(of_files)
    return summary


def data_files(dataset: LeRobotEntry) -> Iterator[DataFiles]:
    """Yield the data files in the order in which readers join them."""
    episodes = dataset.episodes
    if not dataset.is_v3:
        for begin in range(0, len(episodes), FILES_AT_ONCE):
            yield DataFiles(np.arange(begin, min(begin + FILES_AT_ONCE, len(episodes))), episodes.sources[0])
        return
    by_file = _episodes_by_file(dataset)
    # v3.0 readers take every file that lies in the folder, by the order of their names.
    lying = {path.relative_to(dataset.root).as_posix() for path in (dataset.root / "data").glob("*/*.parquet")}
    first_row = 0
    for file in sorted(lying | set(by_file)):
        positions = by_file.get(file, np.empty(0, np.int64))
        named_by = episodes.sources[episodes.source_N[positions[0]]] if len(positions) else "nothing"
        opened = open_parquet(dataset.root, file, named_by, Findings())
        yield DataFiles(positions, named_by, file, first_row)
        if opened is None:
            first_row += int(episodes.length_N[positions].sum())
            continue
        with opened:
            first_row += opened.metadata.num_rows


def _episodes_by_file(dataset: LeRobotEntry) -> dict[str, np.ndarray]:
    episodes = dataset.episodes
    order = np.lexsort((episodes.first_row_N, episodes.file_N, episodes.chunk_N))
    places_E2 = np.stack([episodes.chunk_N[order], episodes.file_N[order]], axis=1)
    begins = np.flatnonzero(np.r_[True, (np.diff(places_E2, axis=0) != 0).any(axis=1)]) if len(order) else []
    return {
        data_file(dataset.info, True, {"chunk_index": int(chunk), "file_index": int(number)}): positions
        for (chunk, number), positions in zip(places_E2[begins], np.split(order, begins[1:]), strict=True)
    } if len(order) else {}  # fmt: skip


def check_data_files(check: LeRobotCheck, files: DataFiles) -> tuple[Findings, RowSummary]:
    """Check the rows of some data files; called in whichever process."""
    findings, summary = Findings(), RowSummary()
    recorded = RecordedStatistics(check.dataset, findings)
    if files.file:
        blocks: Iterator[RowBatch] = _blocks_of(check, files, summary, findings)
    else:
        blocks = iter(_together(check, files, summary, findings))
    for block in blocks:
        check_row_batch(block, recorded, summary.ranges, findings)
    recorded.close()
    return findings, summary


def _together(check: LeRobotCheck, files: DataFiles, summary: RowSummary, findings: Findings) -> list[RowBatch]:
    """Return the blocks of v2 files that must be looked at one by one: none where all pass together.

    One file takes as long as all of them joined, so they are taken apart only to say which is bad.
    """
    blocks = [
        block
        for position in files.positions.tolist()
        for block in _blocks_of(
            check, DataFiles(np.array([position]), files.named_by, check.dataset.data_file(position)), summary, findings
        )
    ]
    alike = all(b.table.schema.equals(blocks[0].table.schema) and b.usable == blocks[0].usable for b in blocks)
    decoded = not check.fast and any(feature["dtype"] == "image" for feature in check.dataset.features.values())
    if len(blocks) < 2 or not alike or decoded:
        return blocks
    scratch, ranges = Findings(), Ranges()
    recorded = RecordedStatistics(check.dataset, scratch)
    joined = RowBatch(
        check.dataset, "", pa.concat_tables([block.table for block in blocks]),
        np.concatenate([block.positions for block in blocks]), np.concatenate([block.num_rows_E for block in blocks]),
        blocks[0].usable, check.fast,
    )  # fmt: skip
    check_row_batch(joined, recorded, ranges, scratch)
    recorded.close()
    if scratch.all():
        return blocks
    summary.ranges.merge(ranges)
    return []


def _blocks_of(check: LeRobotCheck, file: DataFiles, summary: RowSummary, findings: Findings) -> Iterator[RowBatch]:
    """Yield the blocks of one data file, and note what is wrong with the file itself."""
    path = existing(check.dataset.root, file.file, file.named_by, findings)
    if path is None:
        return
    pictures = {n for n, feature in check.dataset.features.items() if feature["dtype"] in ("image", "depth")}
    rows = None
    try:
        rows = FileRows(path, lambda name: not (check.fast and name in pictures))
        usable = _check_columns(check.dataset, file.file, rows.schema, findings)
        covered = 0
        for positions, begins, ends in _blocks(check.dataset, file, rows.num_rows, summary, findings):
            table = rows.read(int(begins[0]), int(ends[-1]))
            covered += table.num_rows
            yield RowBatch(check.dataset, file.file, table, positions, ends - begins, usable, check.fast)
        if check.dataset.is_v3 and covered < rows.num_rows:
            findings.add("row-count", file.file, "", f"{rows.num_rows - covered} rows that no episode names",
                         "every row in one episode")  # fmt: skip
    except PARQUET_DAMAGE as error:
        findings.add("unreadable-file", file.file, "", str(error), "a parquet file with a footer")
    finally:
        if rows is not None:
            rows.close()


def _blocks(
    dataset: LeRobotEntry, file: DataFiles, num_rows: int, summary: RowSummary, findings: Findings
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (positions, begins, ends) of episodes that lie one behind the other; rows count from the file's first."""
    episodes, positions = dataset.episodes, file.positions
    lengths_E = episodes.length_N[positions]
    if dataset.is_v3:
        begins_E = episodes.first_row_N[positions] - file.first_row
        ends_E = begins_E + lengths_E
    else:  # a v2 file is one episode's own, whatever its length
        begins_E, ends_E = np.zeros(len(positions), np.int64), np.full(len(positions), num_rows)
    found_begins_E, found_ends_E = np.clip(begins_E, 0, num_rows), np.clip(ends_E, 0, num_rows)
    for place in np.flatnonzero(found_ends_E - found_begins_E != lengths_E).tolist():
        episode, found = episodes[int(positions[place])], int(found_ends_E[place] - found_begins_E[place])
        summary.num_rows[int(positions[place])] = found
        shown = f"{found} rows" if not dataset.is_v3 else (
            f"rows {begins_E[place]} to {ends_E[place]} of {num_rows}"
        )  # fmt: skip
        findings.add("row-count", file.file, episode.name, shown, f"length {episode.length}")
    kept = np.flatnonzero(found_ends_E > found_begins_E)
    positions, begins_E, ends_E = positions[kept], found_begins_E[kept], found_ends_E[kept]
    start = 0
    for place in range(1, len(positions) + 1):
        full = place == len(positions) or begins_E[place] != ends_E[place - 1] or (
            place - start >= EPISODES_AT_ONCE or ends_E[place - 1] - begins_E[start] >= ROWS_AT_ONCE
        )  # fmt: skip
        if full:
            yield positions[start:place], begins_E[start:place], ends_E[start:place]
            start = place


def _check_columns(dataset: LeRobotEntry, file: str, schema: pa.Schema, findings: Findings) -> set[str]:
    """Compare the columns with the features and return those whose type can be compared with numbers."""
    stored = set(schema.names)
    for name, feature in dataset.features.items():
        if feature["dtype"] != "video" and name not in stored:
            findings.add("missing-column", file, name, "no such column", f"the feature {name} of info.json",
                         fixable=name in INDEX_COLUMNS and name != "task_index")  # fmt: skip
    for name in sorted(stored - set(dataset.features)):
        # GR00T's chunks of v2.0 never had frame_index among the features; the column itself is what readers want.
        findings.add("unnamed-column", file, name, "a column", "only features of info.json")
    for name in INDEX_COLUMNS:
        if name not in stored and name not in dataset.features:
            mild = name == "frame_index" and dataset.version == "v2.0"
            findings.add("missing-column", file, name, "no such column", f"a column {name}",
                         severity="warning" if mild else None, fixable=name != "task_index")  # fmt: skip
    usable = {name for name in stored if is_number(schema.field(name).type)}
    for name in INDEX_COLUMNS:
        if name in stored - usable:
            findings.add("column-type", file, name, str(schema.field(name).type), "one number a row")
    for name in sorted(set(annotation_columns(dataset)) & stored):
        if not pa.types.is_integer(schema.field(name).type):
            findings.add("annotation-list", file, name, str(schema.field(name).type), "one whole number a row")
    return usable
