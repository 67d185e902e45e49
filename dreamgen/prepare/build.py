"""Write the training set: each clip's video, first frames, text and trajectory, then the tables that list them.

Axes: H height, W width, C channels. Frames are uint8, 0-255, RGB.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from dreamgen.config.settings import Settings
from dreamgen.data.conditioning_frames import NUM_STORED_FRAMES
from dreamgen.data.frames import FrameReader
from dreamgen.data.images import fit_frame, write_png
from dreamgen.data.timeline import MAX_FRAMES_APART
from dreamgen.data.trajectory import write_trajectory
from dreamgen.data.video import write_video
from dreamgen.data.views import View, tile
from dreamgen.errors import UserError, reason_of
from dreamgen.prepare.survey import SurveyedClip, check_length
from dreamgen.run.files import atomic_file, write_json, write_text
from dreamgen.run.records import RobotFeatures

SUMMARY_COLUMNS = (
    "source", "name", "status", "detail", "num_source_frames", "num_frames", "source_fps", "height", "width",
)  # fmt: skip


@dataclass(frozen=True)
class ClipRow:
    """The outcome of one source clip: a row of summary.csv, and of metadata.csv unless it is refused.

    Args:
        source: Where it is in the source.
        name: File stem in the training set.
        status: used (unchanged), changed or refused.
        detail: How it is changed, or why it is refused.
        num_source_frames: Frames of the source.
        num_frames: Frames written; 0 if refused.
        source_fps: Frames a second of the source; 0 if unknown.
        height: Pixels of the source; 0 if unknown.
        width: Pixels of the source; 0 if unknown.
        instruction: The task in words.
    """

    source: str
    name: str
    status: Literal["used", "changed", "refused"]
    detail: str
    num_source_frames: int = 0
    num_frames: int = 0
    source_fps: float = 0.0
    height: int = 0
    width: int = 0
    instruction: str = ""


def row_of(surveyed: SurveyedClip, refused: str | None = None) -> ClipRow:
    """Return the row of a surveyed clip; `refused` is a reason that was found after the survey."""
    clip, info = surveyed.clip, surveyed.infos[0] if surveyed.infos else None
    refused = refused or surveyed.refused
    has_rows = clip.fps is not None or clip.load_trajectory is not None
    num_source_frames = surveyed.num_source_frames if has_rows else 0
    fps = (surveyed.fps if has_rows else 0) or clip.fps or (info.fps if info else Fraction(0))
    return ClipRow(
        source=clip.origin,
        name=clip.name,
        status="refused" if refused else "changed" if surveyed.changes else "used",
        detail=refused or "; ".join(surveyed.changes),
        num_source_frames=num_source_frames or (info.num_frames if info else 0),
        num_frames=0 if refused else len(surveyed.indices),
        source_fps=round(float(fps), 4),
        height=info.height if info else 0,
        width=info.width if info else 0,
        instruction=clip.instruction,
    )


def build_clip(
    folder: Path, surveyed: SurveyedClip, readers: Sequence[FrameReader], settings: Settings, views: Sequence[View] = ()
) -> ClipRow:
    """Write one clip into the training set; one that is found damaged leaves no files.

    Args:
        folder: The training set.
        surveyed: The clip; one that the survey refused is only reported.
        readers: One a camera; each keeps a packed mp4 open between its episodes.
        settings: Settings of the run.
        views: Tiles of several cameras; empty for one.

    Returns:
        Its row, with the frames that were counted.
    """
    if surveyed.refused:
        return row_of(surveyed)
    name = surveyed.clip.name
    video, first_frames = folder / "videos" / f"{name}.mp4", folder / "first_frames" / f"{name}.png"
    try:
        counted = _write_pictures(video, first_frames, surveyed, readers, settings, views)
        if surveyed.clip.load_trajectory is not None:
            trajectory = surveyed.clip.load_trajectory().first(counted.num_source_frames)
            trajectory = trajectory.at(counted.indices, settings.prepare.action_kind)
            if trajectory.state_TS is not None or trajectory.action_TA is not None:
                write_trajectory(folder / "trajectories" / f"{name}.parquet", trajectory)
    except UserError as error:
        for reader in readers:
            reader.close()
        video.unlink(missing_ok=True)
        first_frames.unlink(missing_ok=True)
        return row_of(surveyed, refused=reason_of(error))
    write_text(folder / "metas" / f"{name}.txt", settings.prompt_prefix + surveyed.clip.instruction)
    return row_of(counted)


def write_tables(folder: Path, rows: Sequence[ClipRow], features: RobotFeatures, settings: Settings) -> None:
    """Write metadata.csv, summary.csv and features.json."""
    metadata = [
        {
            "file_name": f"videos/{row.name}.mp4",
            "prompt": settings.prompt_prefix + row.instruction,
            "instruction": row.instruction,
            "source": row.source,
            "num_frames": row.num_frames,
        }
        for row in rows
        if row.status != "refused"
    ]
    _write_csv(folder / "metadata.csv", list(metadata[0]), metadata)
    _write_csv(folder / "summary.csv", SUMMARY_COLUMNS, [{c: getattr(row, c) for c in SUMMARY_COLUMNS} for row in rows])
    write_json(folder / "features.json", asdict(features))


def _write_pictures(
    path: Path,
    first_frames: Path,
    surveyed: SurveyedClip,
    readers: Sequence[FrameReader],
    settings: Settings,
    views: Sequence[View],
) -> SurveyedClip:
    """Encode the clip frame by frame, keep its first frames without loss, and return the survey as decoded."""
    clip, shape, num_decoded = surveyed.clip, settings.video, surveyed.num_source_frames
    cameras = list(zip(readers, clip.videos, surveyed.infos, surveyed.frames, strict=True))
    frames = [_part(reader.frames(info, numbers[surveyed.indices]), video.view)
              for reader, video, info, numbers in cameras]  # fmt: skip
    pictures = _tiled(frames, views, settings) if views else _fitted(frames[0], settings)
    pictures = _with_first_frames(pictures, first_frames)
    colors = {info.display.color for info in surveyed.infos}
    color = colors.pop() if len(colors) == 1 else None
    num_written = write_video(path, pictures, shape.fps, shape.codec, shape.crf, shape.gop, color)
    for reader, video, info, numbers in cameras:
        numbers = numbers[: surveyed.num_source_frames]
        found = int(np.searchsorted(numbers, reader.count_to(info, int(numbers[-1]) + 1)))
        if surveyed.num_source_frames - found > MAX_FRAMES_APART:
            raise UserError(
                f"{video.path} is damaged",
                actual=f"{found} of {surveyed.num_source_frames} frames could be decoded",
            )
        num_decoded = min(num_decoded, found)
    missing = surveyed.num_source_frames - num_decoded
    # Every index is below num_frames whatever num_frames is, so a shorter source only shortens the list.
    indices = surveyed.indices[:num_written]
    check_length(indices, settings, num_decoded, surveyed.fps)
    changes = (f"the last {missing} frames could not be decoded",) if missing else ()
    return replace(surveyed, num_source_frames=num_decoded, indices=indices, changes=surveyed.changes + changes)


def _with_first_frames(pictures: Iterator[np.ndarray], path: Path) -> Iterator[np.ndarray]:
    """Pass pictures on, and write the first of them stacked below one another: a clip can begin with one or all."""
    first = list(itertools.islice(pictures, NUM_STORED_FRAMES))
    if first:
        write_png(path, np.concatenate(first))
    return itertools.chain(first, pictures)


def _part(frames: Iterator[np.ndarray], view: View | None) -> Iterator[np.ndarray]:
    return frames if view is None else map(view.cut, frames)


def _fitted(frames: Iterator[np.ndarray], settings: Settings) -> Iterator[np.ndarray]:
    for frame_HWC in frames:
        yield fit_frame(frame_HWC, settings.video.height, settings.video.width, settings.prepare.fit)


def _tiled(cameras: Sequence[Iterator[np.ndarray]], views: Sequence[View], settings: Settings) -> Iterator[np.ndarray]:
    for frames in zip(*cameras, strict=False):  # to the end of the shortest
        fitted = [
            fit_frame(frame_HWC, view.height, view.width, settings.prepare.fit)
            for frame_HWC, view in zip(frames, views, strict=True)
        ]
        yield tile(fitted, views, settings.video.height, settings.video.width)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
