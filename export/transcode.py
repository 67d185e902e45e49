"""Clips brought to the one shape of a dataset: cut out of files or views, or decoded, resized, resampled and encoded.

What fits already is left as it is; what only has to be cut is copied packet by packet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from dreamgen.data.frames import FrameReader, PictureSource
from dreamgen.data.images import fit_frame
from dreamgen.data.lerobot.video import VideoSpan, copy_spans, inspect_spans
from dreamgen.data.timeline import resampled_indices, row_frames
from dreamgen.data.trajectory import read_trajectory, write_trajectory
from dreamgen.data.video import WRITTEN_PIX_FMT, probe, probe_again, video_writer
from dreamgen.data.views import View, check_views
from dreamgen.errors import UserError, reason_of
from export.clips import Clip


@dataclass(frozen=True)
class TargetSpec:
    """The one shape of all episodes and cameras of a dataset.

    Args:
        fps: Frames a second.
        height: Pixels.
        width: Pixels.
        codec: A key of `dreamgen.data.video.ENCODERS`; crf and gop are for clips that have to be encoded again.
        fit: crop or pad, where the aspect ratio differs.
        action_kind: absolute or delta, where the frame rate differs.
    """

    fps: int
    height: int
    width: int
    codec: str
    crf: int
    gop: int
    fit: str
    action_kind: str


@dataclass(frozen=True)
class VideoClipSource:
    """One camera's frames of a clip, within a file.

    Args:
        path: The file.
        codec: Of the file.
        height: Pixels of the used part of its frames.
        width: Pixels.
        span_s: Where the clip begins and ends in a file that others share, in seconds; None for one of its own.
        view: The used part of the frames; None for all of them.
        pictures: The frames, where they are not in a video.
    """

    path: Path
    codec: str
    height: int
    width: int
    span_s: tuple[float, float] | None = None
    view: View | None = None
    pictures: PictureSource | None = None


@dataclass(frozen=True)
class ClipSource:
    """A clip that is part of other files.

    Args:
        clip: `label` is the file of its rows.
        source_fps: Rate of its videos.
        videos: One a camera of the dataset.
        episode_index: Its rows in the label; None where all rows are its own.
        include_state: Whether states are kept.
    """

    clip: Clip
    source_fps: Fraction
    videos: tuple[VideoClipSource, ...]
    episode_index: int | None = None
    include_state: bool = True


def transcode_generated(
    clip: Clip, views: Sequence[View], include_state: bool, target: TargetSpec, folder: Path
) -> tuple[Clip | None, str | None]:
    """Transcode a generated clip as `transcode_clip` does: a video of each view, or one of the whole frame."""
    try:
        info = probe(clip.video)
        check_views(views, info.height, info.width)
    except UserError as error:
        return None, f"{clip.clip_id} is left out: {error}"
    videos = tuple(VideoClipSource(clip.video, info.codec, view.height, view.width, view=view) for view in views)
    whole = VideoClipSource(clip.video, info.codec, info.height, info.width)
    source = ClipSource(clip, Fraction(clip.fps), videos or (whole,), include_state=include_state)
    return transcode_clip(source, target, folder)


def transcode_clip(source: ClipSource, target: TargetSpec, folder: Path) -> tuple[Clip | None, str | None]:
    """Make files of a clip's own in the target shape; files of an earlier call are reused.

    Args:
        source: Where the clip is.
        target: The shape of the dataset.
        folder: Where its mp4s and its table go.

    Returns:
        The clip, and its id if it was encoded again; or None, and why it is left out.
    """
    clip, label = source.clip, folder / f"{source.clip.clip_id}.parquet"
    several = len(source.videos) > 1
    names = [f"{clip.clip_id}.{number}" if several else clip.clip_id for number in range(len(source.videos))]
    videos = tuple(folder / f"{name}.mp4" for name in names)
    encoded_marker = folder / f"{clip.clip_id}.encoded"
    frames = resampled_indices(clip.num_frames, source.source_fps, target.fps)
    try:
        if not label.exists():
            rows = read_trajectory(clip.label, episode_index=source.episode_index)
            if rows.action_TA is None:
                raise UserError(f"{clip.label} has no actions")
            if rows.num_rows != clip.num_frames:
                raise UserError(f"{clip.label} has {rows.num_rows} rows", allowed=f"{clip.num_frames}, a row a frame")
            to_encode: dict[Path, list[tuple[VideoClipSource, Path]]] = defaultdict(list)
            for video, path in zip(source.videos, videos, strict=True):
                if not _copied(source, video, target, path):
                    to_encode[video.path].append((video, path))
            for parts in to_encode.values():
                encoded_marker.touch()
                _encode(source, frames, parts, target)
            if source.source_fps != target.fps:
                rows = rows.at(frames, target.action_kind)
            write_trajectory(label, rows if source.include_state else replace(rows, state_TS=None))
    except UserError as error:
        return None, f"{clip.clip_id} is left out: {reason_of(error)}"
    encoded = encoded_marker.exists()
    crf, gop = (target.crf, target.gop) if encoded else (clip.crf, clip.gop)
    made = replace(clip, videos=videos, label=label, fps=target.fps, num_frames=len(frames), crf=crf, gop=gop)
    return made, clip.clip_id if encoded else None


def _copied(source: ClipSource, video: VideoClipSource, target: TargetSpec, path: Path) -> bool:
    """Copy the packets of a clip's frames and return True, or return False where they must be encoded again."""
    shape = (source.source_fps, video.codec, video.height, video.width)
    if video.view is not None or shape != (target.fps, target.codec, target.height, target.width):
        return False
    if video.pictures is not None:
        return False
    num_frames, fps = source.clip.num_frames, source.source_fps
    info = inspect_spans(video.path, [(num_frames, video.span_s)], fps)[0]
    is_alike = info.stored.pix_fmt == WRITTEN_PIX_FMT and info.stored.is_plain
    if info.problem or info.delay or not is_alike:
        return False
    copy_spans(path, [VideoSpan(video.path, num_frames, info.begin_s)], fps)
    return True


def _encode(
    clip: ClipSource, frames: np.ndarray, parts: Sequence[tuple[VideoClipSource, Path]], target: TargetSpec
) -> None:
    """Decode the wanted frames of one file once, and encode each part of them."""
    (source, _), num_frames = parts[0], 0
    info = source.pictures or probe_again(source.path)
    numbers = row_frames(info.times, clip.source_fps, source.span_s, clip.clip.num_frames)
    if len(numbers) < clip.clip.num_frames:
        raise UserError(f"{source.path} ends early", actual=f"{len(numbers)} frames", allowed=clip.clip.num_frames)
    with ExitStack() as stack:
        reader = stack.enter_context(closing(FrameReader()))
        writers = [
            stack.enter_context(
                video_writer(path, target.fps, target.codec, target.crf, target.gop, info.display.color)
            )
            for _, path in parts
        ]
        for frame_HWC in reader.frames(info, numbers[frames]):
            num_frames += 1
            for (part, _), write in zip(parts, writers, strict=True):
                part_HWC = part.view.cut(frame_HWC) if part.view else frame_HWC
                write(fit_frame(part_HWC, target.height, target.width, target.fit))
        if num_frames != len(frames):
            raise UserError(f"{source.path} ends early", actual=f"{num_frames} frames", allowed=f"{len(frames)}")
