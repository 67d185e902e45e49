"""Clips made to fit a dataset: cut out of a file of many, or decoded, resized, resampled in time and encoded again.

What fits already is left as it is; what only has to be cut is copied packet by packet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from dreamgen.core.errors import UserError, reason_of
from dreamgen.core.frames import FrameReader
from dreamgen.core.timeline import frame_index_at, resampled_indices
from dreamgen.core.trajectory import Trajectory, read_trajectory, write_trajectory
from dreamgen.core.video import fit_frame, write_video
from export.clips import Clip
from export.video_files import copy_packets


@dataclass(frozen=True)
class Target:
    """The one shape of all episodes of a dataset.

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
class Cut:
    """A clip that lies within other files.

    Args:
        clip: `video` and `label` are those files.
        source_fps: Rate of the video.
        codec: Of the video.
        height: Pixels.
        width: Pixels.
        from_frame: Where it begins in the video.
        episode_index: Its rows in the label; None where all rows are its own.
        is_alone: Whether the video holds nothing else.
        include_state: Whether states are kept.
    """

    clip: Clip
    source_fps: Fraction
    codec: str
    height: int
    width: int
    from_frame: int = 0
    episode_index: int | None = None
    is_alone: bool = True
    include_state: bool = True

    def fits(self, target: Target) -> bool:
        """Say whether its frames can stay as they are."""
        return (self.source_fps, self.codec, self.height, self.width) == (
            target.fps, target.codec, target.height, target.width
        )  # fmt: skip


def fit_clip(cut: Cut, target: Target, folder: Path) -> tuple[Clip | None, str | None]:
    """Make a clip of its own that fits; one that was made before is taken as it is.

    Args:
        cut: Where it lies.
        target: What it is to be like.
        folder: Where its mp4 and its table go.

    Returns:
        The clip and a note where it had to be encoded again; or no clip, and why.
    """
    clip = cut.clip
    video, label = folder / f"{clip.clip_id}.mp4", folder / f"{clip.clip_id}.parquet"
    note = folder / f"{clip.clip_id}.encoded"
    try:
        if not label.exists():
            rows = read_trajectory(clip.label, episode_index=cut.episode_index)
            if rows.action_TA is None:
                raise UserError(f"{clip.label} has no actions")
            if rows.num_rows != clip.num_frames:
                raise UserError(f"{clip.label} has {rows.num_rows} rows", allowed=f"{clip.num_frames}, a row a frame")
            if not (cut.fits(target) and _copy(cut, video)):
                note.touch()
                rows = _encode(cut, target, video, rows)
            write_trajectory(label, rows if cut.include_state else replace(rows, state_TS=None))
        num_frames = len(resampled_indices(clip.num_frames, cut.source_fps, target.fps))
    except UserError as error:
        return None, f"{clip.clip_id} is left out: {reason_of(error)}"
    encoded = note.exists()
    crf, gop = (target.crf, target.gop) if encoded else (clip.crf, clip.gop)
    fitted = replace(clip, video=video, label=label, fps=target.fps, num_frames=num_frames, crf=crf, gop=gop)
    return fitted, clip.clip_id if encoded else None


def _encode(cut: Cut, target: Target, video: Path, rows: Trajectory) -> Trajectory:
    wanted = resampled_indices(cut.clip.num_frames, cut.source_fps, target.fps)
    reader = FrameReader()
    try:
        frames = (
            fit_frame(frame_HWC, target.height, target.width, target.fit)
            for frame_HWC in reader.frames(cut.clip.video, cut.from_frame, wanted)
        )
        num_frames = write_video(video, frames, target.fps, target.codec, target.crf, target.gop)
    finally:
        reader.close()
    if num_frames != len(wanted):
        raise UserError(f"{cut.clip.video} ends early", actual=f"{num_frames} frames", allowed=f"{len(wanted)}")
    return rows.at(wanted, target.action_kind) if cut.source_fps != target.fps else rows


def _copy(cut: Cut, video: Path) -> bool:
    """Copy the packets of a clip's frames; say whether that could be done."""
    with av.open(str(cut.clip.video)) as source:
        stream = source.streams.video[0]
        packets = _packets(source, stream, cut)
        times = [packet.pts for packet in packets]
        in_order = None not in times and bool((np.diff(times) > 0).all())
        if len(packets) != cut.clip.num_frames or not packets[0].is_keyframe or not in_order:
            return False
        copy_packets(video, stream, packets, int(cut.source_fps))
    return True


def _packets(source: av.container.InputContainer, stream: av.VideoStream, cut: Cut) -> list[av.Packet]:
    if cut.is_alone:
        return [packet for packet in source.demux(stream) if packet.size and not packet.is_discard]
    if cut.from_frame:
        source.seek(int(cut.from_frame / cut.source_fps / stream.time_base), stream=stream, backward=True)
    found, end = [], cut.from_frame + cut.clip.num_frames
    for packet in source.demux(stream):
        if packet.size and packet.pts is not None:
            number = frame_index_at(packet.pts * packet.time_base, cut.source_fps)
            if number >= end:
                break
            if number >= cut.from_frame:
                found.append(packet)
    return found
