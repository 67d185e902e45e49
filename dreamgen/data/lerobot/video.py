"""Episodes' videos cut out of, or joined into, mp4 files by copying packets: nothing is decoded or encoded.

In a copy, a packet's pts is its frame's number in units of 1/fps and its dts counts packets, so times never drift
however long the file gets, and B-frames stay as they are. An episode can be cut out exactly where it begins and ends if
its first frame is a key frame.

Axes: P packets in the order of the file, F frames.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from dreamgen.data.containers import open_video
from dreamgen.data.display import Display
from dreamgen.data.timeline import episode_begin_s, frame_index_at, row_frames, states_wrong_rate
from dreamgen.data.video import VideoInfo, probe
from dreamgen.errors import UserError
from dreamgen.run.files import atomic_file

MP4_OPTIONS = {"fflags": "+bitexact", "movflags": "+faststart"}


@dataclass(frozen=True)
class VideoSpan:
    """Consecutive frames of a video, frame i of them at begin_s + i / fps.

    Args:
        path: The mp4.
        num_frames: How many frames.
        begin_s: When the first one is shown. None means all of the file: its packets are counted in their order,
            whatever their times are.
    """

    path: Path
    num_frames: int
    begin_s: float | None = None


@dataclass(frozen=True)
class SpanInfo:
    """What must be known of a span before it is copied.

    Args:
        problem: Why its packets cannot be copied, or None.
        encoding: Equal for packets that may share a file.
        num_bytes: Size of its packets.
        num_frames_in_file: Frames of the whole video.
        delay: By how many places a packet comes later than its frame is shown, at most; 0 without B-frames.
        begin_s: When its first frame is shown.
        stored: What the whole file is encoded as.
    """

    problem: str | None
    encoding: str
    num_bytes: int
    num_frames_in_file: int
    delay: int
    begin_s: float
    stored: StoredAs


@dataclass(frozen=True)
class StoredAs:
    """What info.json says of a video's encoding; height and width are those of frames as shown."""

    codec: str
    pix_fmt: str | None
    height: int
    width: int
    is_plain: bool = True

    @classmethod
    def of(cls, info: VideoInfo) -> StoredAs:
        """Return it for a video that was probed."""
        return cls(info.codec, info.pix_fmt, info.height, info.width, info.display.is_plain)


def encoding_of(stream: av.VideoStream, info: VideoInfo) -> str:
    """Hash what an mp4 holds once: codec, parameter sets and display. Videos that differ in it cannot share a file."""
    codec = stream.codec_context
    display = "" if info.display == Display() else repr(info.display)
    parts = codec.codec.canonical_name.encode() + (codec.extradata or b"") + display.encode()
    return hashlib.sha256(parts).hexdigest()[:16]


def inspect_spans(path: Path, rows: Sequence[tuple[int, tuple[float, float] | None]], fps: Fraction) -> list[SpanInfo]:
    """Read the packets of a video once and find out where each episode is, and whether it can be copied.

    Args:
        path: The mp4.
        rows: Of each episode in it: how many rows it has, and where it begins and ends in a video that several share.
        fps: Frames a second that it should have.

    Raises:
        UserError: if the video is damaged or has fewer frames than an episode needs.
    """
    info = probe(path)
    packets = _scan_packets(path, info)
    return [_inspect(info, packets, num_rows, span_s, fps) for num_rows, span_s in rows]


@dataclass(frozen=True)
class _Packets:
    """The packets of a video in the order of the file: time, whether it is a key frame, size."""

    pts_P: np.ndarray
    is_key_P: np.ndarray
    size_P: np.ndarray
    encoding: str
    place_F: np.ndarray  # frame -> place of its packet


def _inspect(
    info: VideoInfo, packets: _Packets, num_rows: int, span_s: tuple[float, float] | None, fps: Fraction
) -> SpanInfo:
    begin_s = episode_begin_s(info.times, fps, span_s, num_rows)
    try:
        number_F, problem = row_frames(info.times, fps, span_s, num_rows)[:num_rows], None
    except UserError as error:
        number_F, problem = np.zeros(0, np.int64), error.what
    if problem is None and len(number_F) < num_rows:
        raise UserError(
            f"{info.path} has too few frames", actual=f"{len(number_F)}", allowed=f"at least {num_rows}",
            next_step="dreamgen check lists all problems",
        )  # fmt: skip
    if problem is None and states_wrong_rate(info.times, fps, span_s, num_rows):
        problem = f"its frames are not 1/{fps} s apart"
    elif problem is None and len(packets.pts_P) != info.num_frames:
        problem = "an edit list hides frames"
    elif problem is None and info.codec not in _mp4_codecs():
        problem = f"an mp4 cannot hold {info.codec}"
    elif problem is None and len(number_F) and number_F[-1] - number_F[0] + 1 != num_rows:
        problem = "it has frames between those of the rows"
    num_bytes = delay = 0
    if problem is None:
        first, end = int(number_F[0]), int(number_F[-1]) + 1
        own_F = packets.place_F[first:end]
        begin, last = int(own_F.min()), int(own_F.max())
        if packets.place_F[first] != begin or not packets.is_key_P[begin]:
            problem = f"frame {first} is not a key frame"
        elif last - begin + 1 != num_rows:
            problem = f"frames {first} to {end - 1} are stored among others"
        delay = int((own_F - begin - np.arange(num_rows)).max())
        num_bytes = int(packets.size_P[own_F].sum())
    stored = StoredAs.of(info)
    return SpanInfo(problem, packets.encoding, num_bytes, info.num_frames, max(delay, 0), begin_s, stored)


def _scan_packets(path: Path, info: VideoInfo) -> _Packets:
    """Return what is to be known of each packet that is shown."""
    times, keys, sizes = array("q"), bytearray(), array("q")
    with closing(open_video(path)) as source:
        stream = source.streams.video[0]
        for packet in source.demux(stream):
            if packet.size and packet.pts is not None:
                times.append(packet.pts)
                keys.append(packet.is_keyframe)
                sizes.append(packet.size)
        encoding = encoding_of(stream, info)
    pts_P = np.array(times, np.int64)
    return _Packets(
        pts_P, np.frombuffer(keys, np.uint8), np.array(sizes, np.int64), encoding, np.argsort(pts_P, kind="stable")
    )


@cache
def _mp4_codecs() -> frozenset[str]:
    """Return what this build of FFmpeg writes into an mp4."""
    out = av.open(io.BytesIO(), "w", format="mp4")
    return frozenset(out.supported_codecs)


class PacketReader:
    """Reads the packets of spans. A video stays open for the next span, which is mostly in the same file."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._source: InputContainer | None = None

    def __enter__(self) -> PacketReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._source is not None:
            self._source.close()

    def open(self, path: Path) -> tuple[InputContainer, av.VideoStream]:
        """Open a video, unless it is open already."""
        source = self._source
        if source is None or self._path != path:
            self.__exit__()
            self._path = path
            source = self._source = open_video(path)
        return source, source.streams.video[0]

    def packets(self, span: VideoSpan, fps: int | Fraction) -> Iterator[tuple[int, av.Packet]]:
        """Yield the packets of a span in the order of the file, each with its frame's number within the span."""
        if span.begin_s is None:
            self.__exit__()
            self._source = None  # opened again, at its start
        source, stream = self.open(span.path)
        if span.begin_s is None:
            yield from enumerate(packet for packet in source.demux(stream) if packet.size and not packet.is_discard)
            return
        assert stream.time_base is not None, "a demuxer sets it"
        # Seeks to the key frame that the span begins with, or to one before it.
        begin_s = Fraction(span.begin_s)
        source.seek(int((begin_s + Fraction(1, 2) / fps) / stream.time_base), stream=stream, backward=True)
        numbered = (
            (frame_index_at(packet.pts * packet.time_base - begin_s, fps), packet)
            for packet in source.demux(stream) if packet.size and packet.pts is not None
        )  # fmt: skip
        yield from islice(((n, packet) for n, packet in numbered if 0 <= n < span.num_frames), span.num_frames)


def copy_spans(
    path: Path, spans: Iterable[VideoSpan], fps: int | Fraction, delay: int = 0, reader: PacketReader | None = None
) -> int:
    """Copy the packets of spans, one after another, into one mp4, atomically.

    Args:
        path: The file to write.
        spans: At least one, all of one encoding, none with a problem.
        fps: Frames a second.
        delay: The largest delay of the spans.
        reader: Reads them; a new one when not given.

    Returns:
        Frames in the file.
    """
    if reader is None:
        with PacketReader() as reader:
            return copy_spans(path, spans, fps, delay, reader)
    num_written, stream, time_base = 0, None, 1 / Fraction(fps)
    with atomic_file(path) as temporary, av.open(str(temporary), "w", format="mp4", options=MP4_OPTIONS) as out:
        for span in spans:
            order = -1
            for order, (number, packet) in enumerate(reader.packets(span, fps)):
                if stream is None:
                    # Opaque: parameters are copied without looking for an encoder, which decoders such as dav1d lack.
                    source = reader.open(span.path)[1]
                    stream = out.add_stream_from_template(source, opaque=True)
                    if source.sample_aspect_ratio:  # which the container may hold, and not the parameters
                        stream.codec_context.sample_aspect_ratio = source.sample_aspect_ratio
                    stream.time_base = time_base
                packet.stream, packet.time_base = stream, time_base
                packet.pts, packet.dts, packet.duration = num_written + number, num_written + order - delay, 1
                out.mux_one(packet)
            assert order + 1 == span.num_frames, f"{span} has {order + 1} packets"
            num_written += span.num_frames
    return num_written
