"""What a video file holds: its packets counted and timed, or every frame decoded.

Axes: T frames, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np


@dataclass(frozen=True)
class VideoScan:
    """What reading a whole video gave; `error` says why it ended early.

    Args:
        times_s: When each frame is shown, in that order; NaN where it says nothing.
        num_corrupt: Frames that are there but broken.
    """

    times_s: np.ndarray
    height: int
    width: int
    codec: str
    pix_fmt: str | None
    fps: float | None
    num_corrupt: int
    error: str | None


def scan_video(path: Path, decode: bool, look: Callable[[float, av.VideoFrame], None] | None = None,
               threads: int = 0) -> VideoScan:  # fmt: skip
    """Read a video to its end.

    Args:
        path: The file.
        decode: Decode every frame, without converting its pixels; otherwise count the packets, each of which is one.
        look: Called with the time and frame of each that was decoded.
        threads: Of the decoder; 0 for as many as it likes.
    """
    times_s: list[float] = []
    num_corrupt, error = 0, None
    height = width = 0
    codec, pix_fmt, fps = "none", None, None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return VideoScan(np.empty(0), 0, 0, codec, None, None, 0, "no video stream")
            stream = container.streams.video[0]
            context = stream.codec_context
            codec, pix_fmt = context.codec.canonical_name, context.pix_fmt
            height, width = context.height, context.width
            fps = float(stream.average_rate) if stream.average_rate else None
            context.thread_type, context.thread_count = "AUTO", threads
            num_read, begins_whole = 0, False
            for packet in container.demux(stream):
                if packet.size:
                    begins_whole |= num_read == 0 and packet.is_keyframe
                    num_read += 1
                if decode:  # the last packet is empty, and asks for the frames that are still in the decoder
                    for frame in packet.decode():
                        time_s = np.nan if frame.pts is None else float(frame.pts * frame.time_base)
                        times_s.append(time_s)
                        num_corrupt += bool(frame.is_corrupt)
                        if look is not None:
                            look(time_s, frame)
                elif packet.size:
                    num_corrupt += bool(packet.is_corrupt)
                    if not packet.is_discard:  # an edit list hides packets that only feed the decoder
                        times_s.append(np.nan if packet.pts is None else float(packet.pts * packet.time_base))
            if num_read < stream.frames:
                error = f"it ends after {num_read} of the {stream.frames} frames that it states"
            elif not begins_whole:
                error = "it does not begin with a key frame"
            if not decode:
                times_s.sort()  # packets come in the order of decoding
    except (av.FFmpegError, ValueError) as failure:
        error = getattr(failure, "strerror", None) or str(failure)
    return VideoScan(np.array(times_s), height, width, codec, pix_fmt, fps, num_corrupt, error)
