"""Frames of some videos as one video, by copying packets: B-frames and whatever codec stay as they are.

A packet's pts is its frame's number in the new file, in units of 1/fps; its dts counts packets. So an episode can be
taken out exactly where it begins and ends, provided that its first frame can be decoded without those before it.

Axes: P packets in the order of the file, F frames.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np

from dreamgen.data.timeline import frame_index_at
from dreamgen.data.video import ENCODERS, decode_frames, probe, write_video
from dreamgen.errors import UserError
from dreamgen.run.files import atomic_file
from export.clip_video import encoding_of

REENCODE_CRF, REENCODE_GOP = 18, 2


@dataclass(frozen=True)
class Span:
    """Frames of a video.

    Args:
        path: The mp4.
        first_frame: Number of the first one.
        num_frames: How many.
    """

    path: Path
    first_frame: int
    num_frames: int


@dataclass(frozen=True)
class SpanLook:
    """What has to be known of a span before it is copied.

    Args:
        problem: Why its packets cannot be copied, or None.
        encoding: Equal where packets may share a file.
        num_bytes: Size of its packets.
        num_in_file: Frames of the whole video.
        delay: By how many places a packet stands behind its frame's turn, at most: 0 without B-frames.
    """

    problem: str | None
    encoding: str
    num_bytes: int
    num_in_file: int
    delay: int = 0


def inspect_spans(path: Path, spans: Sequence[Span], fps: Fraction) -> list[SpanLook]:
    """Look at the packets of several spans of one video, in one go, without keeping their content.

    Raises:
        UserError: if the video is damaged or has fewer frames than a span asks for.
    """
    probe(path)
    numbers, keys, sizes = array("q"), bytearray(), array("q")
    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        for packet in source.demux(stream):
            if packet.size and packet.pts is not None:
                numbers.append(frame_index_at(packet.pts * packet.time_base, fps))
                keys.append(packet.is_keyframe)
                sizes.append(packet.size)
        encoding = encoding_of(stream)
    packets = Packets(np.array(numbers, np.int64), np.frombuffer(keys, np.uint8), np.array(sizes, np.int64))
    if (odd := packets.first_odd()) is not None:
        return [SpanLook(f"frame {odd} is not at {odd}/{fps} s", encoding, 0, len(numbers)) for _ in spans]
    looks = []
    for span in spans:
        end = span.first_frame + span.num_frames
        if end > len(numbers):
            raise UserError(
                f"{path} has too few frames", actual=f"{len(numbers)}", allowed=f"at least {end}",
                next_step="dreamgen check names what does not fit",
            )  # fmt: skip
        looks.append(packets.look(span.first_frame, end, encoding))
    return looks


class Packets:
    """The packets of one video, by their places in it and by the numbers of their frames.

    Args:
        number_P: Of each packet's frame, int64.
        is_key_P: Whether it is a key frame.
        size_P: Bytes, int64.
    """

    def __init__(self, number_P: np.ndarray, is_key_P: np.ndarray, size_P: np.ndarray) -> None:
        self._number_P, self._is_key_P = number_P, is_key_P
        self._place_F = np.argsort(number_P, kind="stable")  # frame -> place of its packet
        self._bytes_before_F = np.concatenate([[0], np.cumsum(size_P[self._place_F])])

    def first_odd(self) -> int | None:
        """Return the first frame that is missing or there twice; None where they are 0, 1, 2 ..."""
        wrong = np.flatnonzero(self._number_P[self._place_F] != np.arange(len(self._number_P)))
        return int(wrong[0]) if len(wrong) else None

    def look(self, first: int, end: int, encoding: str) -> SpanLook:
        """Look at the packets of frames from `first` up to `end`."""
        place_F = self._place_F[first:end]
        begin, last, problem = int(place_F.min()), int(place_F.max()), None
        if self._number_P[begin] != first or not self._is_key_P[begin]:
            problem = f"frame {first} is not a key frame"
        elif last - begin + 1 != end - first:
            problem = f"frames {first} to {end - 1} are stored among others"
        delay = int((place_F - begin - np.arange(end - first)).max())
        num_bytes = int(self._bytes_before_F[end] - self._bytes_before_F[first])
        return SpanLook(problem, encoding, num_bytes, len(self._number_P), max(delay, 0))


class PacketReader:
    """Reads the packets of spans; a video stays open for the next span, which is mostly in the same one."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._source: av.container.InputContainer | None = None

    def __enter__(self) -> PacketReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._source is not None:
            self._source.close()

    def stream(self, span: Span) -> av.VideoStream:
        """Open the span's video where another one is open, and return its stream."""
        if self._path != span.path:
            self.__exit__()
            self._path, self._source = span.path, av.open(str(span.path))
        return self._source.streams.video[0]

    def packets(self, span: Span, fps: Fraction) -> Iterator[av.Packet]:
        """Yield the packets of a span in the order of the file."""
        stream = self.stream(span)
        # To the key frame that the span begins with, or to one before it.
        self._source.seek(int(Fraction(span.first_frame) / fps / stream.time_base), stream=stream, backward=True)
        in_span = (
            packet for packet in self._source.demux(stream)
            if packet.size
            and 0 <= frame_index_at(packet.pts * packet.time_base, fps) - span.first_frame < span.num_frames
        )  # fmt: skip
        return islice(in_span, span.num_frames)


def copy_spans(path: Path, spans: Sequence[Span], fps: Fraction, delay: int, reader: PacketReader | None = None) -> int:
    """Copy the packets of some spans into one mp4, whole or absent.

    Args:
        path: The file to write.
        spans: At least one, of one encoding, none with a problem.
        fps: Frames a second.
        delay: The largest of their delays.
        reader: Who reads them; a new one when not given.

    Returns:
        Frames in the file.
    """
    if reader is None:
        with PacketReader() as reader:
            return copy_spans(path, spans, fps, delay, reader)
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    num_written, stream = 0, None
    with atomic_file(path) as temporary, av.open(str(temporary), "w", format="mp4", options=options) as out:
        for span in spans:
            if stream is None:
                # Opaque: parameters are copied as they are, without asking for an encoder.
                stream = out.add_stream_from_template(reader.stream(span), opaque=True)
                stream.time_base = 1 / fps
            order = -1
            for order, packet in enumerate(reader.packets(span, fps)):
                number = frame_index_at(packet.pts * packet.time_base, fps) - span.first_frame
                packet.stream, packet.time_base = stream, 1 / fps
                packet.pts, packet.dts, packet.duration = num_written + number, num_written + order - delay, 1
                out.mux_one(packet)
            assert order + 1 == span.num_frames, f"{span} has {order + 1} packets"
            num_written += span.num_frames
    return num_written


def encode_span(path: Path, span: Span, fps: Fraction) -> SpanLook:
    """Decode a span and encode it again, in its own codec where that is one of ours and in H.264 otherwise.

    Returns:
        What has to be known of the new video.
    """
    codec = probe(span.path).codec
    frames = islice(decode_frames(span.path), span.first_frame, span.first_frame + span.num_frames)
    write_video(
        path, (frame.to_ndarray(format="rgb24") for frame in frames), fps, codec if codec in ENCODERS else "h264",
        REENCODE_CRF, REENCODE_GOP,
    )  # fmt: skip
    return inspect_spans(path, [Span(path, 0, span.num_frames)], fps)[0]
