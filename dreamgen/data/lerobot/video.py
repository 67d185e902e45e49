"""Episodes' videos cut out of, or joined into, mp4 files by copying packets: nothing is decoded or encoded.

In a copy, a packet's pts is its frame's number in units of 1/fps and its dts counts packets, so times never drift
however long the file gets, and B-frames stay as they are. An episode can be cut out exactly where it begins and ends if
its first frame is a key frame.

Axes: P packets in the order of the file, F frames.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from dreamgen.data.containers import open_video
from dreamgen.data.frames import FrameReader
from dreamgen.data.timeline import frame_index_at
from dreamgen.data.video import ENCODERS, probe, write_video
from dreamgen.errors import UserError
from dreamgen.run.files import atomic_file

MP4_OPTIONS = {"fflags": "+bitexact", "movflags": "+faststart"}
REENCODE_CRF, REENCODE_GOP = 18, 2


@dataclass(frozen=True)
class VideoSpan:
    """Consecutive frames of a video.

    Args:
        path: The mp4.
        num_frames: How many frames.
        first_frame: Number of the first one. None means all of the file: its packets are counted in their order,
            whatever their times are.
    """

    path: Path
    num_frames: int
    first_frame: int | None = None


@dataclass(frozen=True)
class SpanInfo:
    """What must be known of a span before it is copied.

    Args:
        problem: Why its packets cannot be copied, or None.
        encoding: Equal for packets that may share a file.
        num_bytes: Size of its packets.
        num_frames_in_file: Frames of the whole video.
        delay: By how many places a packet comes later than its frame is shown, at most; 0 without B-frames.
    """

    problem: str | None
    encoding: str
    num_bytes: int
    num_frames_in_file: int
    delay: int = 0


def encoding_of(stream: av.VideoStream) -> str:
    """Hash codec and parameter sets, which an mp4 holds once: videos that differ in them cannot share a file."""
    codec = stream.codec_context
    return hashlib.sha256(codec.codec.canonical_name.encode() + (codec.extradata or b"")).hexdigest()[:16]


def inspect_spans(path: Path, spans: Sequence[VideoSpan], fps: Fraction) -> list[SpanInfo]:
    """Read the positions of a video's packets once and find out whether each span can be copied.

    Args:
        path: The mp4.
        spans: Of this mp4, each with a `first_frame`.
        fps: Frames a second that it should have.

    Raises:
        UserError: if the video is damaged or has fewer frames than a span needs.
    """
    number_P, is_key_P, size_P, encoding = _scan_packets(path, fps)
    place_F = np.argsort(number_P, kind="stable")  # frame -> place of its packet
    wrong = np.flatnonzero(number_P[place_F] != np.arange(len(number_P)))
    if len(wrong):
        problem = f"frame {wrong[0]} is not at {wrong[0]}/{fps} s"
        return [SpanInfo(problem, encoding, 0, len(number_P)) for _ in spans]
    bytes_before_F = np.concatenate([[0], np.cumsum(size_P[place_F])])
    found = []
    for span in spans:
        first, end = span.first_frame or 0, (span.first_frame or 0) + span.num_frames
        if end > len(number_P):
            raise UserError(
                f"{path} has too few frames", actual=f"{len(number_P)}", allowed=f"at least {end}",
                next_step="dreamgen check lists all problems",
            )  # fmt: skip
        own_F = place_F[first:end]
        begin, last, problem = int(own_F.min()), int(own_F.max()), None
        if number_P[begin] != first or not is_key_P[begin]:
            problem = f"frame {first} is not a key frame"
        elif last - begin + 1 != span.num_frames:
            problem = f"frames {first} to {end - 1} are stored among others"
        delay = int((own_F - begin - np.arange(span.num_frames)).max())
        num_bytes = int(bytes_before_F[end] - bytes_before_F[first])
        found.append(SpanInfo(problem, encoding, num_bytes, len(number_P), max(delay, 0)))
    return found


def _scan_packets(path: Path, fps: Fraction) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Return frame number, whether it is a key frame, and size of each packet, and the video's encoding."""
    probe(path)
    numbers, keys, sizes = array("q"), bytearray(), array("q")
    with closing(open_video(path)) as source:
        stream = source.streams.video[0]
        for packet in source.demux(stream):
            if packet.size and packet.pts is not None:
                numbers.append(frame_index_at(packet.pts * packet.time_base, fps))
                keys.append(packet.is_keyframe)
                sizes.append(packet.size)
        columns = (np.array(numbers, np.int64), np.frombuffer(keys, np.uint8), np.array(sizes, np.int64))
        return *columns, encoding_of(stream)


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
        if span.first_frame is None:
            self.__exit__()
            self._source = None  # opened again, at its start
        source, stream = self.open(span.path)
        if span.first_frame is None:
            yield from enumerate(packet for packet in source.demux(stream) if packet.size and not packet.is_discard)
            return
        assert stream.time_base is not None, "a demuxer sets it"
        # Seeks to the key frame that the span begins with, or to one before it.
        source.seek(int(Fraction(span.first_frame) / fps / stream.time_base), stream=stream, backward=True)
        numbered = (
            (frame_index_at(packet.pts * packet.time_base, fps) - span.first_frame, packet)
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
                    stream = out.add_stream_from_template(reader.open(span.path)[1], opaque=True)
                    stream.time_base = time_base
                packet.stream, packet.time_base = stream, time_base
                packet.pts, packet.dts, packet.duration = num_written + number, num_written + order - delay, 1
                out.mux_one(packet)
            assert order + 1 == span.num_frames, f"{span} has {order + 1} packets"
            num_written += span.num_frames
    return num_written


def reencode_span(path: Path, span: VideoSpan, fps: Fraction) -> SpanInfo:
    """Decode a span and encode it again, in its own codec if that is one of `ENCODERS` and in H.264 otherwise.

    Returns:
        What must be known of the new video.
    """
    codec = probe(span.path).codec
    with closing(FrameReader()) as reader:
        frames = reader.frames(span.path, span.first_frame or 0, np.arange(span.num_frames))
        write_video(path, frames, fps, codec if codec in ENCODERS else "h264", REENCODE_CRF, REENCODE_GOP)
    return inspect_spans(path, [VideoSpan(path, span.num_frames, 0)], fps)[0]
