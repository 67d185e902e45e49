"""The tables of a LeRobot dataset against its metadata: columns, row counts, and the rows of each episode.

Axes: N rows, E episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from dreamgen.data.lerobot.files import PARQUET_DAMAGE, find_file
from dreamgen.data.lerobot.metadata import LeRobotMeta
from dreamgen.data.lerobot.rows import is_number
from dreamgen.data.lerobot.schema import INDEX_COLUMNS
from dreamgen.data.lerobot.statistics import Statistics
from dreamgen.data.parquet_rows import ParquetRows
from export.check.alignment import check_alignment
from export.check.findings import Findings
from export.check.lerobot.files import FileGroup, table_groups
from export.check.lerobot.metadata import annotation_columns
from export.check.lerobot.row_batch import Motion, RowBatch, check_row_batch, check_stored_pictures
from export.check.lerobot.statistics import EpisodeStatistics, LeRobotCheck, merge_features
from export.check.other_episodes import OtherEpisodes
from export.workers import Workers

ROWS_PER_BATCH, EPISODES_PER_BATCH = 20_000, 500


@dataclass
class RowSummary:
    """What the rows hold.

    Args:
        num_rows: Position of an episode -> rows that were found, where these are not its length.
        statistics: Feature -> statistics of its rows.
        motion: How actions fit states, and states of some rows; empty with `--fast`.
        thumbnails: (camera, position) -> thumbnail_HWC of the pictures in the tables; empty with `--fast`.
    """

    num_rows: dict[int, int] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    motion: Motion = field(default_factory=Motion)
    thumbnails: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)


def check_rows(workers: Workers, dataset: LeRobotMeta, findings: Findings) -> RowSummary:
    """Read every table once and compare its rows with the episodes that should lie in it."""
    summary, episodes = RowSummary(), dataset.episodes
    cameras: dict[str, OtherEpisodes] = {}

    def place_of(position: int) -> tuple[str, str]:
        return episodes.file_name(position), f"episode {episodes.index_N[position]}"

    for found, part in workers.map(check_tables, table_groups(dataset), "check rows", "files"):
        findings.merge(found)
        summary.num_rows.update(part.num_rows)
        merge_features(summary.statistics, part.statistics)
        summary.motion.merge(part.motion)
        for (camera, position), thumbnail_HWC in part.thumbnails.items():
            file, episode = place_of(position)
            cameras.setdefault(camera, OtherEpisodes()).add(file, f"{episode}, {camera}", thumbnail_HWC)
    check_alignment(summary.motion.alignments, place_of, findings)
    for others in cameras.values():
        others.check(findings)
    return summary


def check_tables(check: LeRobotCheck, group: FileGroup) -> tuple[Findings, RowSummary]:
    """Check the rows of some tables; called in any process."""
    findings, summary = Findings(), RowSummary()
    files = group.single_files(check.dataset.episodes)
    batches = (batch for file in files for batch in _read_batches(check, file, summary, findings))
    has_images = not check.fast and any(feature["dtype"] == "image" for feature in check.dataset.features.values())
    if not group.file and not has_images:
        batches = _check_together(check, list(batches), summary)
    with EpisodeStatistics(check, findings) as recorded:
        for batch in batches:
            motion = None if check.fast else summary.motion
            merge_features(summary.statistics, check_row_batch(batch, recorded, findings, motion))
            if has_images:
                summary.thumbnails |= check_stored_pictures(batch, findings)
    return findings, summary


def _check_together(check: LeRobotCheck, batches: list[RowBatch], summary: RowSummary) -> list[RowBatch]:
    """Check v2 files joined, which takes as long as one of them.

    Returns:
        The batches that must be checked one by one, to find which is bad; none where all pass together.
    """
    is_alike = all(b.table.schema.equals(batches[0].table.schema) and b.usable == batches[0].usable for b in batches)
    if len(batches) < 2 or not is_alike:
        return batches
    found, motion = Findings(), Motion()
    joined = replace(
        batches[0], file="", table=pa.concat_tables([batch.table for batch in batches]),
        positions=np.concatenate([batch.positions for batch in batches]),
        num_rows_E=np.concatenate([batch.num_rows_E for batch in batches]),
    )  # fmt: skip
    with EpisodeStatistics(check, found) as recorded:
        statistics = check_row_batch(joined, recorded, found, None if check.fast else motion)
    if found.all():
        return batches
    merge_features(summary.statistics, statistics)
    summary.motion.merge(motion)
    return []


def _read_batches(check: LeRobotCheck, group: FileGroup, summary: RowSummary, findings: Findings) -> Iterator[RowBatch]:
    """Yield the batches of one table, and report what is wrong with the table itself."""
    dataset, file = check.dataset, group.file
    path = find_file(dataset.root, file, group.named_by(dataset.episodes), findings)
    if path is None:
        return
    pictures = {name for name, feature in dataset.features.items() if feature["dtype"] in ("image", "depth")}
    rows = None
    try:
        rows = ParquetRows(path, lambda name: not (check.fast and name in pictures))
        usable = _check_columns(dataset, file, rows.schema, findings)
        covered = 0
        for positions, begins_E, ends_E in _runs(dataset, group, rows.num_rows, summary, findings):
            table = rows.read(int(begins_E[0]), int(ends_E[-1]))
            covered += table.num_rows
            yield RowBatch(dataset, file, table, positions, ends_E - begins_E, usable)
        if dataset.is_v3 and covered < rows.num_rows:
            findings.add("row-count", file, "", f"{rows.num_rows - covered} rows that no episode names",
                         "every row in one episode")  # fmt: skip
    except PARQUET_DAMAGE as error:
        findings.add("unreadable-file", file, "", str(error), "a parquet file with a footer")
    finally:
        if rows is not None:
            rows.close()


def _runs(
    dataset: LeRobotMeta, group: FileGroup, num_rows: int, summary: RowSummary, findings: Findings
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (positions, begins, ends) of episodes that lie one behind the other; rows count from the file's first."""
    episodes, positions = dataset.episodes, group.positions
    lengths_E = episodes.length_N[positions]
    if dataset.is_v3:
        begins_E = episodes.first_row_N[positions] - group.first_row
        ends_E = begins_E + lengths_E
    else:  # a v2 file is one episode's own, whatever its length
        begins_E, ends_E = np.zeros(len(positions), np.int64), np.full(len(positions), num_rows)
    found_begins_E, found_ends_E = np.clip(begins_E, 0, num_rows), np.clip(ends_E, 0, num_rows)
    for place in np.flatnonzero(found_ends_E - found_begins_E != lengths_E).tolist():
        position, found = int(positions[place]), int(found_ends_E[place] - found_begins_E[place])
        summary.num_rows[position] = found
        value = f"rows {begins_E[place]} to {ends_E[place]} of {num_rows}" if dataset.is_v3 else f"{found} rows"
        findings.add("row-count", group.file, f"episode {episodes.index_N[position]}", value,
                     f"length {lengths_E[place]}")  # fmt: skip
    kept = np.flatnonzero(found_ends_E > found_begins_E)
    positions, begins_E, ends_E = positions[kept], found_begins_E[kept], found_ends_E[kept]
    start = 0
    for place in range(1, len(positions) + 1):
        is_end = place == len(positions) or begins_E[place] != ends_E[place - 1] or (
            place - start >= EPISODES_PER_BATCH or ends_E[place - 1] - begins_E[start] >= ROWS_PER_BATCH
        )  # fmt: skip
        if is_end:
            yield positions[start:place], begins_E[start:place], ends_E[start:place]
            start = place


def _check_columns(dataset: LeRobotMeta, file: str, schema: pa.Schema, findings: Findings) -> frozenset[str]:
    """Compare the columns with the features and return those of plain numbers."""
    stored = set(schema.names)
    for name, feature in dataset.features.items():
        if feature["dtype"] != "video" and name not in stored:
            findings.add("missing-column", file, name, "no such column", f"the feature {name} of info.json",
                         fixable=name in INDEX_COLUMNS and name != "task_index")  # fmt: skip
    for name in sorted(stored - set(dataset.features)):
        findings.add("unnamed-column", file, name, "a column", "only features of info.json")
    for name in INDEX_COLUMNS:
        if name not in stored and name not in dataset.features:
            # GR00T's datasets of v2.0 never had frame_index.
            is_usual = name == "frame_index" and dataset.version == "v2.0"
            findings.add("missing-column", file, name, "no such column", f"a column {name}",
                         severity="warning" if is_usual else None, fixable=name != "task_index")  # fmt: skip
    usable = frozenset(name for name in stored if is_number(schema.field(name).type))
    for name in INDEX_COLUMNS:
        if name in stored - usable:
            findings.add("column-type", file, name, str(schema.field(name).type), "one number a row")
    for name in sorted(set(annotation_columns(dataset)) & stored):
        if not pa.types.is_integer(schema.field(name).type):
            findings.add("annotation-list", file, name, str(schema.field(name).type), "one whole number a row")
    return usable
