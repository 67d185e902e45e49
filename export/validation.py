"""Which clips become episodes: workers inspect them one by one, then all are compared and numbered.

The results go to small files on disk, so memory does not grow with the number of clips.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamgen.data.lerobot.statistics import Range
from dreamgen.data.trajectory import read_columns
from dreamgen.errors import UserError
from dreamgen.progress import Progress
from dreamgen.run.records import RobotFeatures
from export.clip_video import inspect_clip
from export.clips import GENERATED, REAL, Clip
from export.episode_store import LIGHT_COLUMNS, VECTORS, EpisodeStore, accepted_row, error_row, write_part
from export.episodes import label_again, read_label
from export.workers import Workers

CLIPS_PER_PART = 16  # fixed, so that the number of workers changes no file


def validate_clips(
    clips: Iterable[Clip], features: RobotFeatures, include_state: bool, folder: Path | None = None,
    workers: Workers | None = None, num_clips: int | None = None, dream_prefix: str = "",
    lerobot_sample: bool = False,
) -> tuple[EpisodeStore, list[str]]:  # fmt: skip
    """Make episodes of clips, leaving out those whose frames, rows or shapes disagree.

    Args:
        clips: In the order of the dataset.
        features: Names of the robot's dimensions; empty names take any number of dimensions, the same for all.
        include_state: Whether to use states where the labels have them.
        folder: Where results are stored; existing files are reused. By default a temporary folder that lasts as long
            as the process.
        workers: Inspect the clips; by default this process does.
        num_clips: How many there are, for the progress line.
        dream_prefix: Put before the tasks of generated clips.
        lerobot_sample: Compute image statistics over the frames that LeRobot's writer samples, not over a few.

    Returns:
        The episodes, numbered from 0, and one sentence for each clip that is left out.
    """
    if folder is None:
        _temporary_folders.append(tempfile.TemporaryDirectory(prefix="dreamgen-export-"))
        folder = Path(_temporary_folders[-1].name)
    parts: list[Path] = []

    def tasks() -> Iterator[functools.partial]:
        for number, batch in enumerate(itertools.batched(clips, CLIPS_PER_PART)):
            parts.append(folder / f"part-{number:06d}.parquet")
            yield functools.partial(inspect_clips, parts[-1], batch, include_state, lerobot_sample)

    with Progress("export: inspect clips", num_clips or 0) as progress:
        for num_good, num_bad in (workers or Workers()).run(tasks()):
            progress.add(num_good + num_bad, failed=num_bad)
    return number_episodes(parts, features, dream_prefix)


_temporary_folders: list[tempfile.TemporaryDirectory] = []


def inspect_clips(part: Path, clips: Sequence[Clip], include_state: bool, lerobot_sample: bool) -> tuple[int, int]:
    """Inspect a few clips and store the results, unless the file exists.

    Returns:
        How many may become episodes, and how many cannot.
    """
    if part.exists():
        errors = read_columns(part, ["error"])["error"]
        return errors.null_count, len(errors) - errors.null_count
    rows = [_inspected_row(clip, include_state, lerobot_sample) for clip in clips]
    write_part(part, rows)
    num_errors = sum("error" in row for row in rows)
    return len(rows) - num_errors, num_errors


def _inspected_row(clip: Clip, include_state: bool, lerobot_sample: bool) -> dict[str, Any]:
    try:
        action_TA, state_TS = read_label(clip.label, include_state)
        videos = [inspect_clip(path, clip.fps, lerobot_sample) for path in clip.videos]
        for video in videos:
            counts = {
                "frames in the mp4": video.info.num_frames,
                "frames in the journal": clip.num_frames,
                "label rows": len(action_TA),
            }
            if len(set(counts.values())) != 1:
                raise UserError(
                    f"{video.info.path.name}: frames and label rows differ",
                    actual=", ".join(f"{count} {what}" for what, count in counts.items()),
                    next_step=label_again(clip.label),
                )
        shapes = [(v.info.width, v.info.height, v.info.codec, v.info.pix_fmt, v.info.fps) for v in videos]
        assert len(set(shapes)) == 1, f"the cameras of {clip.clip_id} have one shape: {shapes}"
    except UserError as error:
        return error_row(clip, f"{clip.clip_id} is left out: {error}")
    return accepted_row(clip, videos, action_TA, state_TS)


def number_episodes(
    parts: Sequence[Path], features: RobotFeatures, dream_prefix: str = ""
) -> tuple[EpisodeStore, list[str]]:
    """Compare the clips with the first good one, leave out those that differ, and number the others from 0."""
    names = ("part", "row", "num_frames", "num_bytes", "task", "encoding", "real")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    tasks: dict[str, int] = {}
    encodings: dict[str, int] = {}
    ranges: dict[str, Range] = {}
    errors: list[str] = []
    first: dict[str, Any] | None = None
    for number, part in enumerate(parts):
        for row_number, row in enumerate(read_columns(part, LIGHT_COLUMNS).to_pylist()):
            problem = row["error"] or _mismatch(row, first, features)
            if problem:
                errors.append(problem)
                continue
            first = first or row
            for vector in VECTORS:
                if row[f"{vector}_low"] is not None:
                    own = Range(*(np.array(row[f"{vector}_{end}"], np.float64) for end in ("low", "high")))
                    ranges[vector] = ranges[vector] | own if vector in ranges else own
            prefix = dream_prefix if row["kind"] == GENERATED else ""
            values = (number, row_number, row["num_frames"], row["num_bytes"],
                      tasks.setdefault(prefix + row["instruction"], len(tasks)),
                      [encodings.setdefault(encoding, len(encodings)) for encoding in row["encoding"]],
                      row["kind"] == REAL)  # fmt: skip
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    axes = dict.fromkeys(columns, "E") | {"num_bytes": "EV", "encoding": "EV"}
    arrays = {f"{name}_{axes[name]}": np.array(column, np.int64) for name, column in columns.items()}
    arrays["real_E"] = arrays["real_E"].astype(bool)
    first_index_E = np.cumsum(arrays["num_frames_E"]) - arrays["num_frames_E"]
    return EpisodeStore(
        tuple(parts), 0, first_index_E=first_index_E, tasks=tuple(tasks), ranges=ranges, **arrays
    ), errors


def _mismatch(row: dict[str, Any], first: dict[str, Any] | None, features: RobotFeatures) -> str | None:
    shape = _shape(row)
    if first is not None and shape != (expected := _shape(first)):
        different = [name for name in shape if shape[name] != expected[name]]
        error = UserError(
            f"it differs from clip {first['clip_id']}, and a dataset has one shape",
            actual=", ".join(f"{name} {shape[name]}" for name in different),
            allowed=", ".join(f"{name} {expected[name]}" for name in different),
        )
        return f"{row['clip_id']} is left out: {error}"
    for name, names in (("action", features.action_names), ("state", features.state_names)):
        dims = shape[f"{name} dimensions"]
        if names and dims and dims != len(names):
            error = UserError(
                f"{row['label']}: {name} does not fit train/features.json",
                actual=f"{dims} dimensions", allowed=f"{len(names)}",
            )  # fmt: skip
            return f"{row['clip_id']} is left out: {error}"
    return None


def _shape(row: dict[str, Any]) -> dict[str, Any]:
    dims = {f"{v} dimensions": None if row[f"{v}_low"] is None else len(row[f"{v}_low"]) for v in VECTORS}
    return dims | {name: row[name] for name in ("height", "width", "fps", "codec", "pix_fmt")}
