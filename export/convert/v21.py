"""A LeRobot dataset as v2.1: one table and, for each camera, one mp4 an episode."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dreamgen.core.files import atomic_file, write_json, write_text
from dreamgen.core.progress import Progress
from export.convert.rows import read_episode, target_features
from export.convert.source import SourceDataset
from export.convert.statistics import StatsSum
from export.convert.videos import Clip, copy_spans
from export.lerobot_v21 import CHUNKS_SIZE, DATA_PATH, VIDEO_PATH, json_lines
from export.workers import Workers

EPISODES_PER_TASK = 20
OF_V30 = ("data_files_size_in_mb", "video_files_size_in_mb")


def write_v21(
    root: Path, dataset: SourceDataset, clips: dict[str, list[Clip]], workers: Workers
) -> tuple[StatsSum, list[tuple[int, str]]]:
    """Write tables, videos and metadata, except meta/stats.json.

    Args:
        root: A folder with nothing of the dataset in it.
        dataset: The source.
        clips: By camera, where each episode's packets lie.
        workers: Who writes the files.

    Returns:
        What the episodes' statistics add up to; by episode, what had to be changed.
    """
    first_index_E = np.cumsum([0, *(episode.length for episode in dataset.episodes)])
    starts = range(0, len(dataset.episodes), EPISODES_PER_TASK)
    tasks = [
        partial(write_episodes, root, dataset.part(start, start + EPISODES_PER_TASK),
                {camera: own[start : start + EPISODES_PER_TASK] for camera, own in clips.items()},
                int(first_index_E[start]))
        for start in starts
    ]  # fmt: skip
    total, notes, meta = StatsSum(), [], root / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    with (
        atomic_file(meta / "episodes_stats.jsonl") as temporary, temporary.open("w", encoding="utf-8") as lines,
        Progress("convert: v2.1", len(dataset.episodes), "episodes") as progress,
    ):  # fmt: skip
        for found in workers.run(tasks):
            for index, figures, own in found:
                lines.write(json_lines([{"episode_index": index, "stats": figures}]))
                total.add(figures, dataset.pictures)
                notes += [(index, note) for note in own]
            progress.add(len(found))
    write_text(meta / "episodes.jsonl", json_lines(_episode_lines(dataset)))
    write_text(meta / "tasks.jsonl", json_lines({"task_index": i, "task": t} for i, t in enumerate(dataset.tasks)))
    write_json(meta / "info.json", _info(dataset))
    return total, notes


def write_episodes(
    root: Path, dataset: SourceDataset, clips: dict[str, list[Clip]], first_index: int
) -> list[tuple[int, dict[str, Any], tuple[str, ...]]]:
    """Write the files of some episodes.

    Returns:
        Of each, its number, its statistics and what had to be changed.
    """
    done = []
    for place, episode in enumerate(dataset.episodes):
        rows = read_episode(dataset, episode, first_index, as_lists=True)
        first_index += episode.length
        values = {"episode_chunk": episode.index // CHUNKS_SIZE, "episode_index": episode.index}
        with atomic_file(root / DATA_PATH.format(**values)) as temporary:
            pq.write_table(rows.table, temporary)
        for camera, own in clips.items():
            copy_spans(root / VIDEO_PATH.format(video_key=camera, **values), [own[place].span], dataset.fps)
        done.append((episode.index, rows.figures, rows.notes))
    return done


def _episode_lines(dataset: SourceDataset) -> Iterator[dict[str, Any]]:
    for episode in dataset.episodes:
        known = {"episode_index": episode.index, "tasks": list(episode.tasks), "length": episode.length}
        yield known | dataset.extras[episode.index]


def _info(dataset: SourceDataset) -> dict[str, Any]:
    num_episodes, fps = len(dataset.episodes), dataset.fps
    kept = {name: value for name, value in dataset.info.items() if name not in OF_V30}
    return kept | {
        "codebase_version": "v2.1",
        "total_episodes": num_episodes,
        "total_frames": sum(episode.length for episode in dataset.episodes),
        "total_tasks": len(dataset.tasks),
        "total_videos": num_episodes * len(dataset.cameras),
        "total_chunks": -(-num_episodes // CHUNKS_SIZE),
        "chunks_size": CHUNKS_SIZE,
        "fps": fps.numerator if fps.denominator == 1 else float(fps),
        "splits": {"train": f"0:{num_episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if dataset.cameras else None,
        "features": target_features(dataset),
    }
