"""Inspection of a clip's mp4 before it becomes part of a dataset: frames, timestamps and image statistics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from av.error import FFmpegError

from dreamgen.data.display import to_rgb
from dreamgen.data.lerobot.image_statistics import ImageHistogram, few_frames, sampled_frames
from dreamgen.data.lerobot.video import encoding_of
from dreamgen.data.stream_copy import copy_problem
from dreamgen.data.video import OpenPackets, VideoInfo, open_packets
from dreamgen.errors import UserError


@dataclass(frozen=True)
class ClipVideo:
    """What inspecting a clip's mp4 gives.

    Args:
        info: Size, rate, codec; frames are counted.
        num_bytes: Size of the file.
        encoding: From `encoding_of`; clips that differ in it cannot share a file.
        image: Histogram of sampled frames.
    """

    info: VideoInfo
    num_bytes: int
    encoding: str
    image: ImageHistogram


def inspect_clip(path: Path, fps: int, as_lerobot: bool = False) -> ClipVideo:
    """Count a clip's frames, make sure that its packets can be copied, and compute image statistics of a sample.

    Args:
        path: The mp4.
        fps: The rate that it should have.
        as_lerobot: Sample as LeRobot's writer does, instead of a few frames that are cheap to decode.

    Raises:
        UserError: if it is missing or damaged, or cannot be copied without encoding it again.
    """
    with open_packets(path) as opened:
        info, stream, packets, _ = opened
        if problem := copy_problem(packets, fps):
            raise UserError(f"{path.name} cannot be copied without encoding it again", actual=problem)
        image = _histogram(path, opened, as_lerobot)
        return ClipVideo(info, path.stat().st_size, encoding_of(stream, info), image)


def _histogram(path: Path, opened: OpenPackets, as_lerobot: bool) -> ImageHistogram:
    """Return the histogram of sampled frames; a sample of a few frames takes the key frame at or before each."""
    _, stream, packets, first = opened
    by_lerobot = sampled_frames(len(packets)).tolist()
    wanted = by_lerobot if as_lerobot else few_frames(len(packets)).tolist()
    image, decoded = ImageHistogram.empty(), list(range(len(packets)))
    if len(wanted) < len(packets) and not as_lerobot:
        keys = [index for index, packet in enumerate(packets) if packet.is_keyframe]
        decoded = wanted = sorted({max(key for key in keys if key <= index) for index in wanted})
        if first is not None and decoded[0] == 0:
            image, decoded = image.with_frame(to_rgb(first)), decoded[1:]  # a key frame needs no other one
    taken, num_decoded = set(wanted), 0
    try:
        for packet in [*(packets[index] for index in decoded), None]:
            for frame in stream.decode(packet):
                if num_decoded < len(decoded) and decoded[num_decoded] in taken:
                    image = image.with_frame(to_rgb(frame))
                num_decoded += 1
    except FFmpegError as error:
        raise UserError(f"{path.name} is damaged", actual=str(error), allowed="frames that can be decoded") from None
    if num_decoded != len(decoded):
        raise UserError(f"{path.name} is damaged", actual=f"{num_decoded} frames decoded", allowed=f"{len(decoded)}")
    return image.scaled_to(len(by_lerobot))
