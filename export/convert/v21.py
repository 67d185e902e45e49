"""A LeRobot dataset as v2.1: one table and, for each camera, one mp4 an episode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dreamgen.progress import Progress
from dreamgen.run.files import atomic_file, write_json, write_text
from export.convert.clips import Clips
from export.convert.rows import EpisodeTables, read_episode, target_features
from export.convert.source import SourceDataset
from export.convert.statistics import StatsSum
from export.convert.videos import PacketReader, copy_spans
from export.formats.lerobot_v21 import CHUNKS_SIZE, DATA_PATH, VIDEO_PATH, json_lines
from export.workers import Workers

TASKS_AT_LEAST = 64
OF_V30 = ("data_files_size_in_mb", "video_files_size_in_mb")


def write_v21(
    root: Path, dataset: SourceDataset, clips: dict[str, Clips], workers: Workers
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
    num_episodes, first_index_N = len(dataset.episodes), dataset.first_index_N()
    # A task opens a file that many episodes share once: with more episodes, more of them to a task.
    per_task = min(max(num_episodes // TASKS_AT_LEAST, 20), 500)
    tasks = (
        partial(write_episodes, root, dataset.part(start, start + per_task),
                {camera: own[start : start + per_task] for camera, own in clips.items()}, int(first_index_N[start]))
        for start in range(0, num_episodes, per_task)
    )  # fmt: skip
    total, notes, meta = StatsSum(), [], root / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    with (
        atomic_file(meta / "episodes_stats.jsonl") as temporary, temporary.open("w", encoding="utf-8") as lines,
        Progress("convert: v2.1", num_episodes, "episodes") as progress,
    ):  # fmt: skip
        for text, own_total, own_notes in workers.run(tasks):
            lines.write(text)
            total.add_sum(own_total)
            notes += own_notes
            progress.add(text.count("\n"))
    with atomic_file(meta / "episodes.jsonl") as temporary, temporary.open("w", encoding="utf-8") as lines:
        lines.writelines(json_lines([line]) for line in _episode_lines(dataset))
    write_text(meta / "tasks.jsonl", json_lines({"task_index": i, "task": t} for i, t in enumerate(dataset.tasks)))
    write_json(meta / "info.json", _info(dataset))
    return total, notes


def write_episodes(
    root: Path, dataset: SourceDataset, clips: dict[str, Clips], first_index: int
) -> tuple[str, StatsSum, list[tuple[int, str]]]:
    """Write the files of some episodes.

    Returns:
        Their lines of episodes_stats.jsonl, what their statistics add up to, and by episode what had to be changed.
    """
    lines, total, notes, tables = [], StatsSum(), [], EpisodeTables()
    readers = {camera: PacketReader() for camera in clips}
    with ExitStack() as opened:
        for reader in readers.values():
            opened.enter_context(reader)
        for place, (episode, pictures) in enumerate(zip(dataset.episodes, dataset.picture_statistics(), strict=True)):
            rows = read_episode(dataset, episode, pictures, tables, first_index, as_lists=True)
            first_index += episode.length
            values = {"episode_chunk": episode.index // CHUNKS_SIZE, "episode_index": episode.index}
            with atomic_file(root / DATA_PATH.format(**values)) as temporary:
                pq.write_table(rows.table, temporary)
            for camera, own in clips.items():
                path = root / VIDEO_PATH.format(video_key=camera, **values)
                copy_spans(path, [own[place]], dataset.fps, int(own.delay_N[place]), readers[camera])
            lines.append(json_lines([{"episode_index": episode.index, "stats": rows.metrics}]))
            total.add(rows.metrics, dataset.pictures)
            notes += [(episode.index, note) for note in rows.notes]
    return "".join(lines), total, notes


def _episode_lines(dataset: SourceDataset) -> Iterator[dict[str, Any]]:
    for episode, extras in zip(dataset.episodes, dataset.episode_extras(), strict=True):
        yield {"episode_index": episode.index, "tasks": list(episode.tasks), "length": episode.length} | extras


def _info(dataset: SourceDataset) -> dict[str, Any]:
    num_episodes, fps = len(dataset.episodes), dataset.fps
    kept = {name: value for name, value in dataset.info.items() if name not in OF_V30}
    return kept | {
        "codebase_version": "v2.1",
        "total_episodes": num_episodes,
        "total_frames": dataset.num_frames,
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
