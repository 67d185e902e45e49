"""What `dreamgen view` shows: frames and vectors of a clip or an episode, read when they are recorded.

Axes: T frames, D dimensions of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from dreamgen.data.frames import FrameReader
from dreamgen.data.lerobot.episodes import Episode
from dreamgen.data.lerobot.metadata import LeRobotMeta, read_meta
from dreamgen.data.lerobot.pictures import stored_pictures
from dreamgen.data.lerobot.rows import instruction_of, read_rows
from dreamgen.data.lerobot.schema import flat_names
from dreamgen.data.media_files import VIDEO_SUFFIXES
from dreamgen.data.timeline import row_frames
from dreamgen.data.trajectory import ACTION, ACTION_STD, STATE, read_columns, read_trajectory, vector_column
from dreamgen.data.video import iter_frames, probe
from dreamgen.errors import UserError, quoted
from dreamgen.run.jobs import REJECTIONS, iter_jobs, job_columns
from dreamgen.run.journal import latest_records, records_of
from dreamgen.run.records import Job, RobotFeatures
from dreamgen.run.run_folder import RunFolder
from dreamgen.text_escape import markdown_text

CAMERA = "camera"


@dataclass(frozen=True)
class Vectors:
    """Vectors of one kind.

    Args:
        names: One name per dimension.
        values_TD: One row per frame.
    """

    names: tuple[str, ...]
    values_TD: np.ndarray


@dataclass(frozen=True)
class Shown:
    """A clip or an episode.

    Args:
        name: Its name among others.
        fps: Frames per second.
        cameras: Camera -> what yields its frame_HWC, uint8, RGB.
        vectors: Column -> its vectors.
        about: Markdown.
    """

    name: str
    fps: float
    cameras: Mapping[str, Callable[[], Iterator[np.ndarray]]]
    vectors: Mapping[str, Vectors] = field(default_factory=dict)
    about: str = ""


def is_run(path: Path) -> bool:
    """Return whether a path is a run folder with planned clips."""
    return (path / "jobs.parquet").is_file()


def is_dataset(path: Path) -> bool:
    """Return whether a path is a LeRobot dataset."""
    return (path / "meta" / "info.json").is_file()


def is_video(path: Path) -> bool:
    """Return whether a path is a video file."""
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES


def file_of(path: Path) -> Shown:
    """Return a video; a clip of a run comes with what the run knows of it.

    Raises:
        UserError: if it cannot be read.
    """
    path = path.resolve()
    if len(path.parents) > 2 and path.parents[1].name == "clips" and is_run(path.parents[2]):
        run = RunFolder(path.parents[2])
        if path.stem in job_columns(run.jobs, ["clip_id"])["clip_id"].to_pylist():
            return run_clips(run.root, [path.stem], 1)[0]
    return Shown(path.stem, float(probe(path).fps), {CAMERA: partial(iter_frames, path)})


def run_clips(root: Path, wanted: Sequence[str], max_clips: int) -> list[Shown]:
    """Return clips of a run.

    Args:
        root: The run folder.
        wanted: Ids or their beginnings; none for the first clips of the plan.
        max_clips: How many clips there may be.

    Raises:
        UserError: if a name is not the beginning of exactly one clip's id, or there is no clip.
    """
    run = RunFolder(root)
    ids = job_columns(run.jobs, ["clip_id"])["clip_id"].to_pylist()
    if wanted:
        rows = [_row_of(name, ids, root) for name in wanted]
    else:
        rows = [row for row, clip_id in enumerate(ids) if run.clip_file(clip_id).is_file()]
    if not rows:
        raise UserError(f"{root} has no clip", next_step=f"dreamgen generate --out {quoted(root)}")
    jobs = iter_jobs(run.jobs, np.unique(np.array(rows, np.int64)))
    records = {stage: latest_records(run.journal, stage) for stage in ("curate", REJECTIONS)}
    return [_clip(run, job, records) for _, job in zip(range(max_clips), jobs, strict=False)]


def episode_of(root: Path, index: int) -> Shown:
    """Return an episode of a LeRobot dataset with all its cameras.

    Raises:
        UserError: if there is no such episode, or it cannot be read.
    """
    meta = read_meta(root)
    place = np.flatnonzero(meta.episodes.index_N == index)
    if not len(place):
        numbers = f"{meta.episodes.index_N.min()} to {meta.episodes.index_N.max()}" if len(meta.episodes) else "none"
        raise UserError(f"{root} has no episode {index}", allowed=numbers, next_step="choose another --episode")
    episode = meta.episodes[int(place[0])]
    trajectory = read_trajectory(episode.data_file, episode_index=episode.index if episode.shares_file else None)
    cameras = {camera: partial(_episode_frames, meta, episode, camera, trajectory.num_rows)
               for camera in meta.cameras_with_frames()}  # fmt: skip
    vectors = {name: Vectors(_names(meta, name, values_TD.shape[1]), values_TD)
               for name, values_TD in ((ACTION, trajectory.action_TA), (STATE, trajectory.state_TS))
               if values_TD is not None}  # fmt: skip
    instruction = instruction_of(meta, episode, read_rows([episode])[0])[0]
    about = _table({"episode": index, "instruction": instruction, "frames": trajectory.num_rows, "fps": meta.fps})
    return Shown(f"episode_{index:06d}", float(meta.fps), cameras, vectors, about)


def _row_of(name: str, ids: Sequence[str], root: Path) -> int:
    found = [row for row, clip_id in enumerate(ids) if clip_id == name or clip_id.startswith(name)]
    if len(found) != 1:
        actual = "no clip" if not found else f"{len(found)} clips begin with it"
        raise UserError(
            f"{name} is not a clip of {root}", actual=actual, allowed="an id, or as much of it as is needed"
        )
    return found[0]


def _clip(run: RunFolder, job: Job, records: Mapping[str, Any]) -> Shown:
    features = run.robot_features()
    about: dict[str, Any] = {"instruction": job.instruction, "seed": job.seed, "clip": job.clip_id}
    for stage, table in records.items():
        for record in records_of(table.filter(pc.equal(table["clip_id"], job.clip_id))):
            about |= {stage: record.status, "reason": record.reason, **record.metrics}
    file = run.clip_file(job.clip_id)
    return Shown(job.clip_id[:8], job.fps, {CAMERA: partial(iter_frames, file)},
                 _label(run.label_file(job.clip_id), features), _table(about))  # fmt: skip


def _label(path: Path, features: RobotFeatures) -> dict[str, Vectors]:
    if not path.is_file():
        return {}
    table = read_columns(path, [ACTION, ACTION_STD, STATE])
    names_of = {ACTION: features.action_names, ACTION_STD: features.action_names, STATE: features.state_names}
    found = {}
    for column, names in names_of.items():
        if column in table.column_names:
            values_TD = vector_column(table, column, None, path)
            found[column] = Vectors(_padded(names, column, values_TD.shape[1]), values_TD)
    return found


def _names(meta: LeRobotMeta, column: str, size: int) -> tuple[str, ...]:
    return _padded(flat_names(meta.info["features"].get(column, {}).get("names")), column, size)


def _padded(names: Sequence[str], column: str, size: int) -> tuple[str, ...]:
    """Return one name per dimension: those given, if they are as many, or numbers."""
    return tuple(names) if len(names) == size else tuple(f"{column.rpartition('.')[2]}_{i}" for i in range(size))


def _episode_frames(meta: LeRobotMeta, episode: Episode, camera: str, num_rows: int) -> Iterator[np.ndarray]:
    if camera in meta.pictures:
        index = episode.index if episode.shares_file else None
        info, numbers = stored_pictures(episode.data_file, camera, index, meta.fps), np.arange(num_rows)
    elif camera not in episode.videos:
        return
    else:
        info = probe(episode.videos[camera])
        numbers = row_frames(info.times, meta.fps, episode.spans_s.get(camera), num_rows)[:num_rows]
    yield from FrameReader().frames(info, numbers)


def _table(values: Mapping[str, Any]) -> str:
    """Return values as a Markdown table; texts from data are escaped."""
    rows = [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in values.items()
            if value is not None]  # fmt: skip
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {markdown_text(name)} | {markdown_text(text)} |" for name, text in rows)]
    )
