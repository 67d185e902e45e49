"""Reading and writing mp4 with PyAV; frames come as they are to be shown, as `display` says.

Axes: T frames, H height, W width, C channels. A `video_THWC` is uint8, 0-255, RGB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer

from dreamgen.data.containers import open_video
from dreamgen.data.display import BT601, LIMITED, ColorTags, Display, Orientation, pixel_aspect_of, to_rgb
from dreamgen.data.timeline import FrameTimes
from dreamgen.errors import UserError
from dreamgen.run.files import atomic_file

# Log errors only: both print information about files otherwise, libav once another library turns its log on.
os.environ.setdefault("SVT_LOG", "1")
av.logging.set_libav_level(av.logging.ERROR)

# Of a frame. Below this, a decoder thread for each core takes longer to start than it saves.
SMALL_FRAME_PIXELS = 320 * 240
_decoder_threads = 0

# One thread: with more, the encoders' output may depend on the machine, and clips are compared byte for byte.
# x264's lookahead reads past the edge of small frames: 10 of 250 encodes of one 48x64 clip differed, none without it.
# Lookahead has little use with key frames this close together.
# B-frames are off, so that a stream copy can cut or join at any key frame without losing or repeating a frame.
ENCODERS = {
    "h264": (
        "libx264",
        {"preset": "veryfast", "bf": "0", "threads": "1", "x264-params": "rc-lookahead=0:sync-lookahead=0:mbtree=0"},
    ),
    "av1": ("libsvtav1", {"preset": "8", "svtav1-params": "lp=1:pred-struct=1"}),
}


# What frames are converted to for encoding; it is written into the file.
WRITTEN_PIX_FMT, WRITTEN_COLOR = "yuv420p", ColorTags(matrix=BT601, color_range=LIMITED)


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file; frames are counted, not read from the header.

    Args:
        path: The file.
        codec: FFmpeg's name.
        pix_fmt: Pixel format; None where the stream has none.
        height: Of a frame as shown, in pixels.
        width: Of a frame as shown, in pixels.
        fps: Average rate.
        num_frames: Frames that are shown.
        display: How stored frames become those that are shown.
        times: When each is shown.
    """

    path: Path
    codec: str
    pix_fmt: str | None
    height: int
    width: int
    fps: Fraction
    num_frames: int
    display: Display = field(default_factory=Display)
    times: FrameTimes = field(default_factory=lambda: FrameTimes.regular(0, 1), compare=False, repr=False)


@dataclass(frozen=True)
class DecodedFrame:
    """A frame as its decoder gives it, which is converted when it is needed.

    Args:
        frame: PyAV's frame.
        pixel_aspect: Width of a pixel by its height.
        small: What `frame_features.small_frame` returned for it, by size.
    """

    frame: av.VideoFrame
    pixel_aspect: Fraction
    small: dict[int, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def rgb(self) -> np.ndarray:
        """Return frame_HWC as shown, uint8, 0-255, RGB."""
        return to_rgb(self.frame, self.pixel_aspect)


class OpenPackets(NamedTuple):
    """What `open_packets` yields.

    Args:
        info: The result of `probe`.
        stream: Decodes packets.
        packets: All packets with content, in file order.
        first_frame: The first one, decoded; None if the decoder gave none.
    """

    info: VideoInfo
    stream: av.VideoStream
    packets: list[av.Packet]
    first_frame: av.VideoFrame | None


def probe(path: str | Path) -> VideoInfo:
    """Open a video, count and time its frames, and decode the first, which knows how it is to be shown.

    Raises:
        UserError: if the file is missing, cannot be opened (truncated, not a video), has fewer frames than its header
            states, has no frames, or says something of their display that cannot be followed.
    """
    path = Path(path)
    with _open(path) as container:
        return _count(container, path)[0]


def probe_again(path: Path) -> VideoInfo:
    """Return what `probe` returns; of the last files, without reading them again."""
    state = path.stat() if path.is_file() else None
    return _probed(path, (state.st_mtime_ns, state.st_size) if state else None)


@lru_cache(maxsize=8)
def _probed(path: Path, _: tuple[int, int] | None) -> VideoInfo:
    return probe(path)


@contextmanager
def open_packets(path: str | Path) -> Iterator[OpenPackets]:
    """Read a short video in one pass: what `probe` returns, and its encoded frames.

    Yields:
        The result of `probe`; the stream, which decodes packets; all packets with content, in file order.

    Raises:
        UserError: as for `probe`.
    """
    path = Path(path)
    with _open(path) as container:
        packets: list[av.Packet] = []
        info, first = _count(container, path, packets)
        yield OpenPackets(info, container.streams.video[0], packets, first)


def _count(
    container: InputContainer, path: Path, packets: list[av.Packet] | None = None
) -> tuple[VideoInfo, av.VideoFrame | None]:
    """Demux to the end and time the frames; append the packets to the list, if one is passed.

    Returns:
        What `probe` returns, and the first frame that the decoder gave.
    """
    stream = container.streams.video[0]
    codec = stream.codec_context
    # Other processes read other clips: threads of the decoder would only compete with them.
    stream.thread_type, codec.thread_count = "NONE", 1
    pts: list[int | None] = []
    first = None
    try:
        for packet in _whole(container, stream, path):
            if packet.size and not packet.is_discard:
                pts.append(packet.pts)
            if packets is not None and packet.size:
                packets.append(packet)
            if first is None:
                first = _first_frame(stream, packet)
    except av.FFmpegError as error:
        raise _damaged(path, error) from None
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise UserError(f"{path} states no frame rate", next_step="encode it again with a frame rate")
    codec.flush_buffers()
    display = _display_of(stream, first, path)
    height, width = display.size(codec.height, codec.width)
    times = [time for time in pts if time is not None]
    if len(times) < len(pts) or stream.time_base is None:  # AVI and streams without a container have no times
        timed = FrameTimes.regular(len(pts), rate)
    else:
        timed = FrameTimes(np.sort(np.array(times, np.int64)), stream.time_base)
    name, pix_fmt = codec.codec.canonical_name, codec.pix_fmt
    return VideoInfo(path, name, pix_fmt, height, width, Fraction(rate), len(pts), display, timed), first


def _whole(container: InputContainer, stream: av.VideoStream, path: Path) -> Iterator[av.Packet]:
    """Yield all packets of a video, and refuse one with fewer frames than its header states."""
    num_shown = num_hidden = 0
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise _damaged(path, ValueError(f"the file ends within frame {num_shown}"))
        if packet.size and packet.is_discard:
            num_hidden += 1  # by an edit list: packets that are only there for the decoder
        elif packet.size:
            num_shown += 1
        yield packet
    if not num_shown:
        raise UserError(f"{path} has 0 frames", allowed="a video with at least one frame")
    if ends_early(path, stream, num_shown + num_hidden):
        raise _damaged(path, ValueError(f"it ends after {num_shown} of the {stream.frames} frames that it states"))


def ends_early(path: Path, stream: av.VideoStream, num_read: int) -> bool:
    """Return whether a file has fewer frames than its header states, those that an edit list hides not counted."""
    if num_read >= stream.frames:
        return False
    try:
        with _open(path, {"ignore_editlist": "1"}) as container:
            return sum(bool(packet.size) for packet in container.demux(video=0)) < stream.frames
    except av.FFmpegError:
        return True


def _first_frame(stream: av.VideoStream, packet: av.Packet) -> av.VideoFrame | None:
    try:
        return next(iter(stream.decode(packet)), None)
    except av.FFmpegError:
        return None  # whoever decodes the whole video reports it


def _display_of(stream: av.VideoStream, first: av.VideoFrame | None, path: Path) -> Display:
    try:
        orientation = Orientation() if first is None else Orientation.of(first)
        return Display(orientation, pixel_aspect_of(stream), ColorTags.of(stream.codec_context))
    except UserError as error:
        raise UserError(f"{path}: {error.what}", actual=error.actual, allowed=error.allowed,
                        next_step=error.next_step) from None  # fmt: skip


def set_decoder_threads(num: int) -> None:
    """Set how many threads decode a video of large frames in this process; 0, the default, is one for each core."""
    global _decoder_threads
    _decoder_threads = num


def choose_decoder_threads(stream: av.VideoStream) -> None:
    """Decode a stream of small frames on one thread, and others on as many as `set_decoder_threads` says."""
    context = stream.codec_context
    if _decoder_threads == 1 or context.width * context.height <= SMALL_FRAME_PIXELS:
        context.thread_type, context.thread_count = "NONE", 1
    else:
        context.thread_type, context.thread_count = "AUTO", _decoder_threads


def decode_frames(path: str | Path, whole: bool = False) -> Generator[DecodedFrame]:
    """Decode a video frame by frame, without converting frames to RGB.

    Args:
        path: The file.
        whole: Whether to refuse a file that ends early, as `probe` does: it may decode without an error.

    Yields:
        Frames in presentation order; `rgb()` gives frame_HWC.

    Raises:
        UserError: if the file is missing or damaged.
    """
    path = Path(path)
    with _open(path) as container:
        stream = container.streams.video[0]
        choose_decoder_threads(stream)
        pixel_aspect = _display_of(stream, None, path).pixel_aspect
        try:
            for packet in _whole(container, stream, path) if whole else container.demux(stream):
                for frame in stream.decode(packet):
                    yield DecodedFrame(frame, pixel_aspect)
        except av.FFmpegError as error:
            raise _damaged(path, error) from None


def iter_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Decode a video frame by frame.

    Yields:
        frame_HWC, uint8, 0-255, RGB.

    Raises:
        UserError: if the file is missing or damaged.
    """
    for frame in decode_frames(path):
        yield frame.rgb()


def read_video(path: str | Path) -> np.ndarray:
    """Decode a whole video.

    Returns:
        video_THWC, uint8, 0-255, RGB.

    Raises:
        UserError: if the file is missing, damaged, or has no frames.
    """
    frames = list(iter_frames(path))
    if not frames:
        raise UserError(f"{path} has 0 frames", allowed="a video with at least one frame")
    return np.stack(frames)


def write_video(
    path: str | Path, frames: Iterable[np.ndarray], fps: int | Fraction, codec: str = "h264", crf: int = 18,
    gop: int = 2, color: ColorTags | None = None,
) -> int:  # fmt: skip
    """Encode frames to an mp4, atomically. Its bytes depend on the arguments only.

    Args:
        path: The file to write.
        frames: frame_HWC each, uint8, 0-255, RGB, all of one even size.
        fps: Frames per second.
        codec: A key of `ENCODERS`.
        crf: Quality, lower is better.
        gop: Frames between key frames.
        color: Tags of the source, whose primaries and transfer function the frames keep; unspecified for None.

    Returns:
        The number of frames written.
    """
    num_frames = 0
    with video_writer(path, fps, codec, crf, gop, color) as write:
        for frame in frames:
            write(frame)
            num_frames += 1
    return num_frames


@contextmanager
def video_writer(
    path: str | Path, fps: int | Fraction, codec: str = "h264", crf: int = 18, gop: int = 2,
    color: ColorTags | None = None,
) -> Iterator[Callable[[np.ndarray], None]]:  # fmt: skip
    """Open an mp4 and write it frame by frame, so that several can be written in one pass over their source.

    Args:
        path, fps, codec, crf, gop, color: As for `write_video`.

    Yields:
        A function that encodes the next frame_HWC. The complete file exists once the context ends without an error.
    """
    encoder, options = ENCODERS[codec]
    num_frames = 0
    with (
        atomic_file(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"}) as out,
    ):
        stream = out.add_stream(encoder, rate=fps, options={**options, "crf": str(crf), "g": str(gop)})
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.flags |= Flags.bitexact
        stream.pix_fmt = WRITTEN_PIX_FMT
        tags = WRITTEN_COLOR if color is None else replace(color, matrix=BT601, color_range=LIMITED)
        tags.write_to(stream.codec_context)

        def write(frame_HWC: np.ndarray) -> None:
            nonlocal num_frames
            if num_frames == 0:
                stream.height, stream.width = frame_HWC.shape[:2]
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")))
            num_frames += 1

        yield write
        if num_frames:
            out.mux(stream.encode())
        else:
            raise ValueError(f"no frames to write to {path}")


@contextmanager
def _open(path: Path, options: dict[str, str] | None = None) -> Iterator[InputContainer]:
    if not path.is_file():
        raise UserError(f"{path} does not exist", allowed="a video file")
    try:
        container = open_video(path, options)
    except (av.FFmpegError, ValueError) as error:
        raise _damaged(path, error) from None
    with container:
        if not container.streams.video:
            raise UserError(f"{path} has no video stream", allowed="an mp4 with a video stream")
        yield container


def _damaged(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(
        f"{path} is damaged or is not a video",
        actual=reason,
        allowed="a whole mp4",
        next_step="copy it again from its source, or take it out of the dataset",
    )
