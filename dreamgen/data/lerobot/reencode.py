"""Episodes' videos encoded again where packets cannot be copied: same codec, pixel format and tags.

Frames go from the decoder to the encoder as they are stored, without RGB between them. Depth, and whatever has one
channel, is encoded without loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
from av.codec.context import Flags
from av.filter import Graph

from dreamgen.data.frames import FrameReader
from dreamgen.data.lerobot.video import MP4_OPTIONS, SpanInfo, StoredAs, inspect_spans
from dreamgen.data.timeline import MAX_FRAMES_APART, row_frames
from dreamgen.data.video import ENCODERS, VideoInfo, probe
from dreamgen.errors import UserError
from dreamgen.run.files import atomic_file

CRF, GOP = 18, 2
Options = dict[str, str]
# Encoders by codec: with a small loss, and without any. The first that has the pixel format is used.
LOSSY: dict[str, tuple[tuple[str, Options], ...]] = {
    **{codec: ((name, {**options, "crf": str(CRF)}),) for codec, (name, options) in ENCODERS.items()},
    "hevc": (("libx265", {"crf": str(CRF), "x265-params": "log-level=none:pools=none:frame-threads=1:bframes=0"}),),
    "vp9": (("libvpx-vp9", {"crf": str(CRF), "b": "0", "threads": "1"}),),
}
AOM = ("libaom-av1", {"crf": str(CRF), "cpu-used": "8", "lag-in-frames": "0", "threads": "1"})
LOSSY["av1"] += (AOM,)
LOSSLESS: dict[str, tuple[tuple[str, Options], ...]] = {
    "h264": (("libx264", {**ENCODERS["h264"][1], "qp": "0"}),),
    "hevc": (("libx265", {"x265-params": "lossless=1:log-level=none:pools=none:frame-threads=1:bframes=0"}),),
    "av1": ((AOM[0], {**AOM[1], "crf": "0", "aom-params": "lossless=1"}),),
    "vp9": (("libvpx-vp9", {"lossless": "1", "threads": "1"}),),
    "png": (("png", {}),),
}
ANY_LOSSLESS = ("hevc", "png")  # between them, they hold up to 16 bits
ANY_LOSSY = ("h264", "hevc")
PNG_FORMATS = {"gray16le": "gray16be", "rgb48le": "rgb48be"}


@dataclass(frozen=True)
class Encoding:
    """How a video is to be encoded again."""

    codec: str
    encoder: str
    options: Options
    pix_fmt: str


def encoding_for(stored: StoredAs, is_depth: bool) -> Encoding:
    """Choose an encoder that keeps the codec and the pixel format; where there is none, one that keeps the values.

    Args:
        stored: The video's encoding.
        is_depth: Whether its values must stay exact, as those of one channel must anyway.

    Raises:
        UserError: if nothing that an mp4 can hold keeps the values.
    """
    pix_fmt = stored.pix_fmt or "yuv420p"
    exact = is_depth or pix_fmt.startswith("gray")
    table = LOSSLESS if exact else LOSSY
    for codec in dict.fromkeys((stored.codec, *(ANY_LOSSLESS if exact else ANY_LOSSY))):
        for encoder, options in table.get(codec, ()):
            target = PNG_FORMATS.get(pix_fmt, pix_fmt) if encoder == "png" else pix_fmt
            if target in _formats(encoder):
                return Encoding(codec, encoder, options, target)
    if exact:
        raise UserError(
            f"no encoder keeps the values of {pix_fmt}", actual=f"{stored.codec}, {pix_fmt}",
            allowed="up to 16 bits of one channel, or 12 bits of YUV", next_step="store it as gray16 or gray12",
        )  # fmt: skip
    encoder, options = LOSSY["h264"][0]
    return Encoding("h264", encoder, options, "yuv420p")


@cache
def _formats(encoder: str) -> frozenset[str]:
    """Return the pixel formats that an encoder takes; none where this build of FFmpeg lacks it."""
    try:
        return frozenset(form.name for form in av.Codec(encoder, "w").video_formats or ())
    except av.FFmpegError:
        return frozenset()


def reencode_span(
    path: Path, source: Path, num_rows: int, span_s: tuple[float, float] | None, fps: Fraction, is_depth: bool
) -> SpanInfo:
    """Encode the frames of an episode's rows again, upright. A row without a frame gets the nearest in time.

    Args:
        path: The file to write.
        source: The video.
        num_rows: Rows of the episode.
        span_s: Where it begins and ends in a video that several share.
        fps: Frames a second.
        is_depth: As for `encoding_for`.

    Returns:
        What must be known of the new video.

    Raises:
        UserError: if the video is damaged, or a row has no frame near it.
    """
    info = probe(source)
    numbers = row_frames(info.times, fps, span_s, num_rows, reach=MAX_FRAMES_APART)[:num_rows]
    if len(numbers) < num_rows:
        raise UserError(f"{source} has too few frames", actual=len(numbers), allowed=f"at least {num_rows}",
                        next_step="dreamgen check lists all problems")  # fmt: skip
    with closing(FrameReader()) as reader:
        stored = (frame.frame for frame in reader.decoded(info, numbers))
        _encode(path, _turned(stored, info), info, encoding_for(StoredAs.of(info), is_depth), fps)
    return inspect_spans(path, [(num_rows, None)], fps)[0]


def _turned(frames: Iterator[av.VideoFrame], info: VideoInfo) -> Iterator[av.VideoFrame]:
    """Turn stored frames upright, in their own pixel format."""
    filters = info.display.orientation.filters()
    graph, source, sink = None, None, None
    for frame in frames:
        if filters and graph is None:
            graph = Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
            )
            sink = graph.add("buffersink")
            chain = [source, *(graph.add(*text.split("=")) for text in filters), sink]
            graph.link_nodes(*chain).configure()
        if graph is None or source is None or sink is None:
            yield frame
            continue
        source.push(frame)
        turned = sink.pull()
        assert isinstance(turned, av.VideoFrame), "a graph of video filters gives video frames"
        yield turned


def _encode(path: Path, frames: Iterator[av.VideoFrame], info: VideoInfo, encoding: Encoding, fps: Fraction) -> None:
    aspect = info.display.pixel_aspect
    with atomic_file(path) as temporary, av.open(str(temporary), "w", format="mp4", options=MP4_OPTIONS) as out:
        stream = out.add_stream(encoding.encoder, rate=fps, options={**encoding.options, "g": str(GOP)})
        assert isinstance(stream, av.VideoStream)
        codec = stream.codec_context
        codec.flags |= Flags.bitexact
        stream.pix_fmt = encoding.pix_fmt
        info.display.color.write_to(codec)
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.height, frame.width
                codec.sample_aspect_ratio = 1 / aspect if info.display.orientation.transpose else aspect
            frame = frame.reformat(format=encoding.pix_fmt)  # at most another byte order: the values stay
            frame.pts, frame.time_base, frame.pict_type = number, 1 / fps, 0
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
