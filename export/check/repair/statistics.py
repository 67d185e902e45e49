"""Statistics computed again: of each episode from its rows and pictures, of the whole from its episodes.

Axes: D dimensions, E episodes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import reduce
from typing import Any

import numpy as np

from dreamgen.data.frames import FrameReader
from dreamgen.data.lerobot.files import find_file, read_json_object
from dreamgen.data.lerobot.image_statistics import ImageHistogram, sampled_frames
from dreamgen.data.lerobot.metadata import LeRobotMeta
from dreamgen.data.lerobot.rows import matrix
from dreamgen.data.lerobot.schema import EPISODE_STATS_V2, NUMERIC, STATS
from dreamgen.data.lerobot.statistics import GROOT_STATISTICS, Statistics, merge_statistics, vector_statistics
from dreamgen.data.parquet_rows import ParquetRows
from dreamgen.data.timeline import row_frames
from dreamgen.data.video import probe
from export.check.findings import Findings
from export.check.lerobot.files import FileGroup, table_groups
from export.check.lerobot.statistics import NEEDED, PICTURES, EpisodeStatistics, LeRobotCheck, merge_features
from export.check.repair.files import Replacements, json_text


def repair_statistics(check: LeRobotCheck, wanted: set[str], new_files: Replacements, notes: list[str]) -> None:
    """Write stats.json with the statistics of some features computed again from all rows.

    Args:
        check: The dataset.
        wanted: Features whose statistics are missing or wrong; the file's others are kept.
        new_files: Receives the new file.
        notes: Receives what could not be computed.
    """
    dataset = check.dataset
    old = read_json_object(dataset.root, STATS, Findings()) or {}
    merged: dict[str, Statistics] = {}
    for _, statistics in _row_statistics(dataset, wanted):
        merge_features(merged, statistics)
    is_groot = dataset.modality is not None
    pictures = set() if is_groot else {n for n in wanted if dataset.features[n]["dtype"] in PICTURES}
    for name in pictures:
        recorded = _recorded_pictures(check, name)
        if recorded is None:
            notes.append(f"not fixed: {STATS} has no statistics of {name}, and neither have its episodes")
        else:
            merged[name] = recorded
    new = {name: _as_json(whole, is_groot, name in pictures) for name, whole in merged.items()}
    if new:
        with new_files.file(STATS, f"statistics of {', '.join(new)}") as path:
            path.write_text(json_text({**old, **new}, dataset.root / STATS), encoding="utf-8")


def _recorded_pictures(check: LeRobotCheck, feature: str) -> Statistics | None:
    """Merge what is recorded of each episode's pictures; None where an episode has no statistics."""
    merged: Statistics | None = None
    with EpisodeStatistics(check, Findings(), of_pictures=True) as recorded:
        for position in range(len(check.dataset.episodes)):
            own = recorded.read(np.array([position])).get(feature, {})
            if not {*NEEDED, "count"} <= set(own) or not all(np.isfinite(values).all() for values in own.values()):
                return None
            one = {stat: values_ED[0] for stat, values_ED in own.items()}
            merged = one if merged is None else merge_statistics(merged, one)
    return merged and {**merged, "count": np.rint(merged["count"]).astype(np.int64)}


def _as_json(statistics: Statistics, is_groot: bool, of_pictures: bool) -> dict[str, Any]:
    # GR00T slices every statistic by modality.json, so `count` must not be among them.
    kept = {stat: v for stat, v in statistics.items() if not is_groot or stat in GROOT_STATISTICS}
    return {stat: (v.reshape(-1, 1, 1) if of_pictures and stat != "count" else v).tolist() for stat, v in kept.items()}


def _row_statistics(dataset: LeRobotMeta, wanted: set[str]) -> Iterator[tuple[int, dict[str, Statistics]]]:
    """Yield (position, statistics by feature) of the rows of each episode whose rows can be read."""
    names = {name for name in wanted if dataset.features[name]["dtype"] in NUMERIC}
    for group in table_groups(dataset) if names else ():
        for file in group.single_files(dataset.episodes):
            path = find_file(dataset.root, file.file, "", Findings())
            if path is not None:
                yield from _table_statistics(dataset, file, ParquetRows(path, names.__contains__))


def _table_statistics(
    dataset: LeRobotMeta, group: FileGroup, rows: ParquetRows
) -> Iterator[tuple[int, dict[str, Statistics]]]:
    for position in group.positions.tolist():
        begin = int(dataset.episodes.first_row_N[position]) - group.first_row if dataset.is_v3 else 0
        end = begin + int(dataset.episodes.length_N[position]) if dataset.is_v3 else rows.num_rows
        table, found = rows.read(begin, end), {}
        for name in table.column_names:
            shape = dataset.features[name]["shape"]
            values_ND, _ = matrix(table.column(name), math.prod(shape))
            if values_ND is not None and len(values_ND):
                found[name] = vector_statistics(values_ND, shape[-1])
        yield position, found
    rows.close()


def repair_episode_statistics(check: LeRobotCheck, new_files: Replacements) -> None:
    """Write the lines of episodes_stats.jsonl that are missing or malformed again; the others stay as they are."""
    dataset, bad = check.dataset, set(_malformed(check))
    if not bad:
        return
    kept = check.statistics.read() if check.statistics else (b"" for _ in dataset.episodes.index_N)
    with (
        new_files.file(EPISODE_STATS_V2, f"the lines of {len(bad)} episodes") as path,
        path.open("wb") as target,
    ):
        for line, (position, own) in zip(kept, _row_statistics(dataset, set(dataset.features)), strict=True):
            if position in bad:
                stats = {name: _as_json(statistics, False, False) for name, statistics in own.items()}
                for camera in dataset.video_keys:
                    if (pictures := _video_statistics(dataset, camera, position)) is not None:
                        stats[camera] = _as_json(pictures, False, True)
                row = {"episode_index": int(dataset.episodes.index_N[position]), "stats": stats}
                line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
            target.write(line.rstrip(b"\n") + b"\n")


def _malformed(check: LeRobotCheck) -> Iterator[int]:
    for position in range(len(check.dataset.episodes)):
        found = Findings()
        if check.statistics is not None and check.statistics.size_N[position]:
            for of_pictures in (False, True):
                with EpisodeStatistics(check, found, of_pictures) as recorded:
                    recorded.read(np.array([position]))
        if check.statistics is None or not check.statistics.size_N[position] or found.all():
            yield position


def _video_statistics(dataset: LeRobotMeta, camera: str, position: int) -> Statistics | None:
    """Decode an episode's video and return the statistics of its pictures in [0, 1], as LeRobot samples them."""
    path = find_file(dataset.root, dataset.episodes.file_name(position, camera), "", Findings())
    if path is None:
        return None
    info, length, reader = probe(path), int(dataset.episodes.length_N[position]), FrameReader()
    wanted = row_frames(info.times, dataset.fps, num_rows=length)[:length]
    wanted = wanted[sampled_frames(len(wanted))]
    histogram = reduce(ImageHistogram.with_frame, reader.frames(info, wanted), ImageHistogram.empty())
    reader.close()
    return histogram.metrics()
