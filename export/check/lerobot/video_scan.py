"""Reads a whole video file: counts and times its packets, or decodes every frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from dreamgen.data.containers import open_video
from dreamgen.data.display import Display, Orientation, pixel_aspect_of
from dreamgen.data.video import choose_decoder_threads, ends_early
from dreamgen.errors import UserError, reason_of


@dataclass(frozen=True)
class VideoScan:
    """What was read of a video.

    Args:
        times_s: When each frame is shown, in that order, float64; NaN for a frame without a time.
        height: Of the stream.
        width: Of the stream.
        codec: FFmpeg's name.
        pix_fmt: Pixel format; None where the stream has none.
        fps: Average rate that the stream states; None where it states none.
        num_corrupt: Frames that are present but damaged.
        display: How frames are to be shown; only of a video that was decoded.
        error: Why reading ended early; None for a whole video.
    """

    times_s: np.ndarray
    height: int
    width: int
    codec: str
    pix_fmt: str | None
    fps: float | None
    num_corrupt: int
    error: str | None
    display: Display = field(default_factory=Display)


def scan_video(path: Path, decode: bool, on_frame: Callable[[float, av.VideoFrame], None] | None = None) -> VideoScan:
    """Read a video to its end.

    Args:
        path: The file.
        decode: Decode every frame, without converting its pixels; otherwise count the packets, each of which is one.
        on_frame: Called with the time and the frame of each that was decoded.
    """
    times_s: list[float] = []
    num_corrupt, error, display = 0, None, Display()
    height = width = 0
    codec, pix_fmt, fps = "none", None, None
    try:
        with open_video(path) as container:
            if not container.streams.video:
                return VideoScan(np.empty(0), 0, 0, codec, None, None, 0, "no video stream")
            stream = container.streams.video[0]
            context = stream.codec_context
            codec, pix_fmt = context.codec.canonical_name, context.pix_fmt
            height, width = context.height, context.width
            fps = float(stream.average_rate) if stream.average_rate else None
            choose_decoder_threads(stream)
            time_base = stream.time_base
            seconds = (time_base.numerator, time_base.denominator) if time_base else None
            num_read, begins_with_key_frame = 0, False
            for packet in container.demux(stream):
                if packet.size:
                    begins_with_key_frame |= num_read == 0 and packet.is_keyframe
                    num_read += 1
                if decode:  # the last packet is empty: it flushes the decoder
                    for frame in stream.decode(packet):
                        if not times_s:
                            display = Display(Orientation.of(frame), pixel_aspect_of(stream))
                        time_s = _time_s(frame.pts, seconds)
                        times_s.append(time_s)
                        num_corrupt += bool(frame.is_corrupt)
                        if on_frame is not None:
                            on_frame(time_s, frame)
                elif packet.size:
                    num_corrupt += bool(packet.is_corrupt)
                    if not packet.is_discard:  # an edit list hides packets that only feed the decoder
                        times_s.append(_time_s(packet.pts, seconds))
            if ends_early(path, stream, num_read):
                error = f"it ends after {num_read} of the {stream.frames} frames that its header states"
            elif not begins_with_key_frame:
                error = "it does not begin with a key frame"
            if not decode:
                times_s.sort()  # packets come in the order of decoding
    except (FFmpegError, ValueError) as failure:
        error = getattr(failure, "strerror", None) or str(failure)
    except UserError as failure:
        error = reason_of(failure)
    return VideoScan(np.array(times_s), height, width, codec, pix_fmt, fps, num_corrupt, error, display)


def _time_s(pts: int | None, time_base: tuple[int, int] | None) -> float:
    """Return the time nearest to pts * time_base; a Fraction of each frame would take a fifth of all time."""
    return math.nan if pts is None or time_base is None else pts * time_base[0] / time_base[1]
