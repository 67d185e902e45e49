"""Open videos for reading: the only place that does, so that a file can make FFmpeg read nothing but itself.

FFmpeg guesses a format from content, and some formats are scripts that name other files (`ffconcat`, HLS, DASH) or
patterns of them. Only containers that hold their frames themselves are opened, and only through the `file` protocol.
"""

from __future__ import annotations

import stat
from pathlib import Path

import av
from av.container import InputContainer

from dreamgen.data.images import MAX_PIXELS
from dreamgen.errors import UserError

# FFmpeg's names of its demuxers.
CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "ogg", "asf", "flv", "mxf", "ivf")
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS)}


def open_video(path: Path, options: dict[str, str] | None = None) -> InputContainer:
    """Open a video file for reading. The caller closes it.

    Args:
        path: The file.
        options: More options of FFmpeg's demuxer.

    Raises:
        UserError: if the path is not a regular file, such as a FIFO, which would be waited for.
        av.FFmpegError, ValueError: if it is not a video, or is of a format that may name other files.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path} is not a regular file", allowed="a video file")
    container = av.open(f"file:{path}", options={**(options or {}), **OPTIONS})
    for stream in container.streams.video:
        context = stream.codec_context
        if context is None:
            container.close()
            raise ValueError("its codec is unknown")
        if context.width * context.height > MAX_PIXELS:
            container.close()
            raise ValueError(f"frames of {context.width} x {context.height} pixels; at most {MAX_PIXELS} are decoded")
        context.options = {**context.options, "max_pixels": str(MAX_PIXELS)}  # of what the stream itself says later
    return container
