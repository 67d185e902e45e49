"""Clips made to fit a dataset: cut out of a file or picture of many, or decoded, resized, resampled and encoded again.

What fits already is left as it is; what only has to be cut is copied packet by packet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from dreamgen.data.frames import FrameReader
from dreamgen.data.timeline import frame_index_at, resampled_indices
from dreamgen.data.trajectory import read_trajectory, write_trajectory
from dreamgen.data.video import fit_frame, probe, video_writer
from dreamgen.data.views import View, check_views
from dreamgen.errors import UserError, reason_of
from export.clips import Clip
from export.video_files import copy_packets


@dataclass(frozen=True)
class TargetSpec:
    """The one shape of all episodes and cameras of a dataset.

    Args:
        fps: Frames a second.
        height: Pixels.
        width: Pixels.
        codec: A key of `core.video.ENCODERS`; also crf and gop where a clip has to be encoded again.
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
        height: Pixels of what is wanted of its pictures.
        width: Pixels.
        from_frame: Where the clip begins in the file.
        is_alone: Whether the file holds nothing else.
        view: Which part of the picture it is; None for the whole.
    """

    path: Path
    codec: str
    height: int
    width: int
    from_frame: int = 0
    is_alone: bool = True
    view: View | None = None


@dataclass(frozen=True)
class ClipSource:
    """A clip that lies within other files.

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

    def can_be_copied(self, video: VideoClipSource, target: TargetSpec) -> bool:
        """Say whether a video's frames can stay as they are."""
        return video.view is None and (self.source_fps, video.codec, video.height, video.width) == (
            target.fps, target.codec, target.height, target.width
        )  # fmt: skip


def fit_dreamed(
    clip: Clip, views: Sequence[View], include_state: bool, target: TargetSpec, folder: Path
) -> tuple[Clip | None, str | None]:
    """Make a clip that fits of a dreamed one, as `fit_clip` does: a video of each view, or one of the whole picture."""
    try:
        info = probe(clip.video)
        check_views(views, info.height, info.width)
    except UserError as error:
        return None, f"{clip.clip_id} is left out: {error}"
    videos = tuple(VideoClipSource(clip.video, info.codec, view.height, view.width, view=view) for view in views)
    whole = VideoClipSource(clip.video, info.codec, info.height, info.width)
    return fit_clip(
        ClipSource(clip, Fraction(clip.fps), videos or (whole,), include_state=include_state), target, folder
    )


def fit_clip(cut: ClipSource, target: TargetSpec, folder: Path) -> tuple[Clip | None, str | None]:
    """Make a clip of its own that fits; one that was made before is taken as it is.

    Args:
        cut: Where it lies.
        target: What it is to be like.
        folder: Where its mp4s and its table go.

    Returns:
        The clip and a note where it had to be encoded again; or no clip, and why.
    """
    clip, label = cut.clip, folder / f"{cut.clip.clip_id}.parquet"
    names = [f"{clip.clip_id}.{number}" for number in range(len(cut.videos))] if cut.videos[1:] else [clip.clip_id]
    videos = tuple(folder / f"{name}.mp4" for name in names)
    note = folder / f"{clip.clip_id}.encoded"
    try:
        if not label.exists():
            rows = read_trajectory(clip.label, episode_index=cut.episode_index)
            if rows.action_TA is None:
                raise UserError(f"{clip.label} has no actions")
            if rows.num_rows != clip.num_frames:
                raise UserError(f"{clip.label} has {rows.num_rows} rows", allowed=f"{clip.num_frames}, a row a frame")
            to_encode: dict[Path, list[tuple[VideoClipSource, Path]]] = defaultdict(list)
            for source, video in zip(cut.videos, videos, strict=True):
                if not (cut.can_be_copied(source, target) and _copy(cut, source, video)):
                    to_encode[source.path].append((source, video))
            for parts in to_encode.values():
                note.touch()
                _encode(cut, parts, target)
            if cut.source_fps != target.fps:
                rows = rows.at(_wanted(cut, target), target.action_kind)
            write_trajectory(label, rows if cut.include_state else replace(rows, state_TS=None))
        num_frames = len(_wanted(cut, target))
    except UserError as error:
        return None, f"{clip.clip_id} is left out: {reason_of(error)}"
    encoded = note.exists()
    crf, gop = (target.crf, target.gop) if encoded else (clip.crf, clip.gop)
    fitted = replace(clip, videos=videos, label=label, fps=target.fps, num_frames=num_frames, crf=crf, gop=gop)
    return fitted, clip.clip_id if encoded else None


def _wanted(cut: ClipSource, target: TargetSpec) -> np.ndarray:
    return resampled_indices(cut.clip.num_frames, cut.source_fps, target.fps)


def _encode(cut: ClipSource, parts: Sequence[tuple[VideoClipSource, Path]], target: TargetSpec) -> None:
    """Decode a file's frames once and encode each part of their pictures."""
    (source, _), wanted, num_frames = parts[0], _wanted(cut, target), 0
    with ExitStack() as stack:
        reader = stack.enter_context(closing(FrameReader()))
        writers = [
            stack.enter_context(video_writer(video, target.fps, target.codec, target.crf, target.gop))
            for _, video in parts
        ]
        for frame_HWC in reader.frames(source.path, source.from_frame, wanted):
            num_frames += 1
            for (part, _), write in zip(parts, writers, strict=True):
                part_HWC = part.view.cut(frame_HWC) if part.view else frame_HWC
                write(fit_frame(part_HWC, target.height, target.width, target.fit))
        if num_frames != len(wanted):
            raise UserError(f"{source.path} ends early", actual=f"{num_frames} frames", allowed=f"{len(wanted)}")


def _copy(cut: ClipSource, source: VideoClipSource, video: Path) -> bool:
    """Copy the packets of a clip's frames; say whether that could be done."""
    with av.open(str(source.path)) as container:
        stream = container.streams.video[0]
        packets = _packets(container, stream, cut, source)
        times = [packet.pts for packet in packets]
        in_order = None not in times and bool((np.diff(times) > 0).all())
        if len(packets) != cut.clip.num_frames or not packets[0].is_keyframe or not in_order:
            return False
        copy_packets(video, stream, packets, int(cut.source_fps))
    return True


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream, cut: ClipSource, source: VideoClipSource
) -> list[av.Packet]:
    if source.is_alone:
        return [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
    if source.from_frame:
        container.seek(int(source.from_frame / cut.source_fps / stream.time_base), stream=stream, backward=True)
    found, end = [], source.from_frame + cut.clip.num_frames
    for packet in container.demux(stream):
        if packet.size and packet.pts is not None:
            number = frame_index_at(packet.pts * packet.time_base, cut.source_fps)
            if number >= end:
                break
            if number >= source.from_frame:
                found.append(packet)
    return found
