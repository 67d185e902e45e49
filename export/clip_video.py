"""A clip's mp4 before it becomes part of a dataset: counted, fit to be copied, and a sample of its frames decoded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from dreamgen.core.errors import UserError
from dreamgen.core.video import VideoInfo, open_packets
from export.image_statistics import ImageHistogram, sampled_frames


@dataclass(frozen=True)
class ClipVideo:
    """What is known of a clip's mp4.

    Args:
        info: Size, rate, codec; frames are counted.
        num_bytes: Size of the file.
        encoding: Hash of codec and parameter sets: clips that differ in it cannot share a file.
        image: Histogram of a sample of its frames.
    """

    info: VideoInfo
    num_bytes: int
    encoding: str
    image: ImageHistogram


def look_at_clip(path: Path, fps: int) -> ClipVideo:
    """Count a clip's frames, make sure that its packets can be copied, and count the levels of a sample of frames.

    Args:
        path: The mp4.
        fps: The rate that it should have.

    Raises:
        UserError: if it is missing or damaged, or cannot be copied without encoding it again.
    """
    with open_packets(path) as (info, stream, packets):
        if problem := why_uncopyable(packets, fps):
            raise UserError(f"{path.name} cannot be copied without encoding it again", actual=problem)
        return ClipVideo(info, path.stat().st_size, encoding_of(stream), _histogram(path, stream, packets))


def why_uncopyable(packets: Sequence[av.Packet], fps: int) -> str | None:
    """Say why packets cannot simply be copied, or None.

    Args:
        packets: Of one video, in the order of the file.
        fps: The rate that it should have.

    Returns:
        What is wrong: the first frame is no key frame, frames are stored out of order, or a frame is not at i / fps.
    """
    if not packets[0].is_keyframe:
        return "the first frame is not a key frame"
    for index, packet in enumerate(packets):
        if packet.pts is None or packet.pts * packet.time_base != Fraction(index, fps):
            time = "no time" if packet.pts is None else f"{float(packet.pts * packet.time_base):.6f} s"
            return f"packet {index} has {time}, not {index}/{fps} s"
    return None


def encoding_of(stream: av.VideoStream) -> str:
    """Return a hash of what stands once at a file's head: files of one codec may still differ in parameter sets."""
    codec = stream.codec_context
    return hashlib.sha256(codec.codec.canonical_name.encode() + (codec.extradata or b"")).hexdigest()[:16]


def _histogram(path: Path, stream: av.VideoStream, packets: Sequence[av.Packet]) -> ImageHistogram:
    """Decode the sampled frames: all of a short clip, else the key frame at or before each."""
    wanted = sampled_frames(len(packets)).tolist()
    if len(wanted) < len(packets):
        keys = [index for index, packet in enumerate(packets) if packet.is_keyframe]
        wanted = sorted({max(key for key in keys if key <= index) for index in wanted})
    # Another process is at work on another clip: threads of the decoder would only stand in its way.
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    image = ImageHistogram.empty()
    try:
        for packet in [*(packets[index] for index in wanted), None]:
            for frame in stream.decode(packet):
                image = image.with_frame(frame.to_ndarray(format="rgb24"))
    except av.FFmpegError as error:
        raise UserError(f"{path.name} is damaged", actual=str(error), allowed="frames that can be decoded") from None
    if image.num_sampled != len(wanted):
        raise UserError(
            f"{path.name} is damaged", actual=f"{image.num_sampled} frames decoded", allowed=f"{len(wanted)}"
        )
    return image
