"""Statistics computed again: of each episode from its rows and pictures, of the whole from its episodes.

Axes: N rows or pixels, D dimensions, H height, W width, C channels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from dreamgen.data.lerobot.image_statistics import downsampled, sampled_frames
from dreamgen.data.lerobot.statistics import Statistics, merge_statistics, vector_statistics
from dreamgen.data.video import decode_frames
from export.check.files import existing
from export.check.findings import Findings
from export.check.lerobot.columns import NUMERIC, FileRows, matrix
from export.check.lerobot.episodes import LeRobotEntry
from export.check.lerobot.read import EPISODE_STATISTICS
from export.check.lerobot.recorded import RecordedStatistics
from export.check.lerobot.rows import data_files
from export.check.lerobot.statistics import GROOT_STATISTICS, STATS
from export.check.repair.files import Change, replaced


def repair_statistics(dataset: LeRobotEntry, wanted: set[str], changes: list[Change], notes: list[str]) -> None:
    """Write stats.json with the figures of some features computed again from all rows.

    Args:
        wanted: Features whose figures are missing or wrong; the file's others are kept.
    """
    path, old = dataset.root / STATS, {}
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
    merged: dict[str, Statistics] = {}
    for _, metrics in episode_statistics(dataset, wanted):
        for name, own in metrics.items():
            merged[name] = merge_statistics(merged[name], own) if name in merged else own
    groot = dataset.modality is not None
    cameras = set() if groot else {n for n in wanted if dataset.features[n]["dtype"] in ("video", "image")}
    for name in cameras:
        told = _recorded_pictures(dataset, name)
        if told is None:
            notes.append(f"not fixed: {STATS} has no figures of {name}, and neither have its episodes")
        else:
            merged[name] = told
    new = {name: _as_json(of_all, groot, name in cameras) for name, of_all in merged.items()}
    if new:
        with replaced(dataset.root, STATS, f"figures of {', '.join(new)}", changes) as temporary:
            text = json.dumps({**old, **new}, indent=4, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")


def _recorded_pictures(dataset: LeRobotEntry, camera: str) -> Statistics | None:
    recorded, merged = RecordedStatistics(dataset, Findings(), of_pictures=True), None
    for position in range(len(dataset.episodes)):
        metrics = recorded.of(np.array([position])).get(camera, {})
        if not {"min", "max", "mean", "std", "count"} <= set(metrics) or not all(
            np.isfinite(values).all() for values in metrics.values()
        ):
            return None
        own = {stat: values_ED[0] for stat, values_ED in metrics.items()}
        merged = own if merged is None else merge_statistics(merged, own)
    recorded.close()
    return merged and {**merged, "count": np.rint(merged["count"]).astype(np.int64)}


def _as_json(metrics: Statistics, groot: bool, of_pictures: bool) -> dict[str, Any]:
    # GR00T cuts every figure to a modality's slice, so `count` must not be among them.
    kept = {stat: v for stat, v in metrics.items() if not groot or stat in GROOT_STATISTICS}
    return {stat: (v.reshape(-1, 1, 1) if of_pictures and stat != "count" else v).tolist() for stat, v in kept.items()}


def episode_statistics(dataset: LeRobotEntry, wanted: set[str]) -> Iterator[tuple[int, dict[str, Statistics]]]:
    """Yield (position, figures by feature) of the rows of each episode whose rows can be read."""
    names = {n for n in wanted if dataset.features[n]["dtype"] in NUMERIC}
    if not names:
        return
    rows, opened, first_row = None, "", 0
    first_rows = _first_rows(dataset) if dataset.is_v3 else {}
    for episode in dataset.episodes:
        file = dataset.data_file(episode.position)
        if file != opened:
            if rows is not None:
                rows.close()
            path = existing(dataset.root, file, "", Findings())
            rows = FileRows(path, names.__contains__) if path is not None else None
            opened, first_row = file, first_rows.get(file, 0)
        if rows is None:
            continue
        begin = episode.first_row - first_row if dataset.is_v3 else 0
        table = rows.read(begin, begin + episode.length if dataset.is_v3 else rows.num_rows)
        found = {}
        for name in table.column_names:
            values_ND, _ = matrix(table.column(name), math.prod(dataset.features[name]["shape"]))
            if values_ND is not None and len(values_ND):
                found[name] = vector_statistics(values_ND)
        yield episode.position, found
    if rows is not None:
        rows.close()


def _first_rows(dataset: LeRobotEntry) -> dict[str, int]:
    return {file.file: file.first_row for file in data_files(dataset)}


def repair_episode_statistics(dataset: LeRobotEntry, changes: list[Change], notes: list[str]) -> None:
    """Write the lines of episodes_stats.jsonl that are missing or malformed again; the others stay as they are."""
    path = dataset.root / EPISODE_STATISTICS
    bad = set(_malformed(dataset))
    if not bad:
        return
    places_N2 = dataset.statistics_lines
    with replaced(dataset.root, EPISODE_STATISTICS, f"the lines of {len(bad)} episodes", changes) as temporary:
        source = path.open("rb") if path.exists() else None
        with temporary.open("wb") as target:
            computed = episode_statistics(dataset, set(dataset.features))
            for position, metrics in computed:
                if position not in bad and source is not None:
                    offset, size = places_N2[position].tolist()
                    source.seek(offset)
                    target.write(source.read(size).rstrip(b"\n") + b"\n")
                    continue
                stats = {name: _as_json(of_rows, False, False) for name, of_rows in metrics.items()}
                for camera in dataset.cameras:
                    if (of_pictures := _image_statistics(dataset, camera, position)) is not None:
                        stats[camera] = _as_json(of_pictures, False, True)
                line = {"episode_index": int(dataset.episodes.index_N[position]), "stats": stats}
                target.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        if source is not None:
            source.close()


def _malformed(dataset: LeRobotEntry) -> Iterator[int]:
    for position in range(len(dataset.episodes)):
        found = Findings()
        if dataset.statistics_lines is None or not dataset.statistics_lines[position, 1]:
            yield position
            continue
        for of_pictures in (False, True):
            recorded = RecordedStatistics(dataset, found, of_pictures)
            recorded.of(np.array([position]))
            recorded.close()
        if found.all():
            yield position


def _image_statistics(dataset: LeRobotEntry, camera: str, position: int) -> Statistics | None:
    """Decode an episode's video and return the figures of its pictures in [0, 1], as LeRobot samples them."""
    path = existing(dataset.root, dataset.video_file(camera, position), "", Findings())
    if path is None:
        return None
    wanted = set(sampled_frames(int(dataset.episodes.length_N[position])).tolist())
    pixels = [
        downsampled(frame.to_ndarray(format="rgb24")).reshape(-1, 3)
        for number, frame in enumerate(decode_frames(path))
        if number in wanted
    ]
    if not pixels:
        return None
    return {**vector_statistics(np.concatenate(pixels) / 255), "count": np.array([len(pixels)])}
