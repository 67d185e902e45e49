"""Frames of some videos as one video, by copying packets: B-frames and whatever codec stay as they are.

A packet's pts is its frame's number in the new file, in units of 1/fps; its dts counts packets. So an episode can be
taken out exactly where it begins and ends, provided that its first frame can be decoded without those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path

import av

from dreamgen.core.errors import UserError
from dreamgen.core.files import atomic_file
from dreamgen.core.timeline import frame_index_at
from dreamgen.core.video import ENCODERS, decode_frames, probe, write_video
from export.clip_video import encoding_of
from export.convert.source import SourceDataset
from export.workers import Workers

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
    """

    problem: str | None
    encoding: str
    num_bytes: int
    num_in_file: int


@dataclass(frozen=True)
class Clip:
    """One episode of one camera: where its packets lie, and what has to be known of them."""

    span: Span
    look: SpanLook


def look_at_spans(path: Path, spans: Sequence[Span], fps: Fraction) -> list[SpanLook]:
    """Look at the packets of several spans of one video, in one go, without keeping their content.

    Raises:
        UserError: if the video is damaged or has fewer frames than a span asks for.
    """
    probe(path)
    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        packets = [
            (frame_index_at(packet.pts * packet.time_base, fps), packet.is_keyframe, packet.size)
            for packet in source.demux(stream) if packet.size and packet.pts is not None
        ]  # fmt: skip
        encoding = encoding_of(stream)
    shown = sorted(number for number, _, _ in packets)
    if shown != list(range(len(packets))):
        odd = next(i for i, number in enumerate(shown) if number != i)
        return [SpanLook(f"frame {odd} is not at {odd}/{fps} s", encoding, 0, len(packets)) for _ in spans]
    looks = []
    for span in spans:
        end = span.first_frame + span.num_frames
        if end > len(packets):
            raise UserError(
                f"{path} has too few frames", actual=f"{len(packets)}", allowed=f"at least {end}",
                next_step="dreamgen check names what does not fit",
            )  # fmt: skip
        looks.append(_look(packets, span.first_frame, end, encoding))
    return looks


def _look(packets: list[tuple[int, bool, int]], first: int, end: int, encoding: str) -> SpanLook:
    places = [place for place, (number, _, _) in enumerate(packets) if first <= number < end]
    problem = None
    if packets[places[0]][0] != first or not packets[places[0]][1]:
        problem = f"frame {first} is not a key frame"
    elif places[-1] - places[0] + 1 != len(places):
        problem = f"frames {first} to {end - 1} are stored among others"
    return SpanLook(problem, encoding, sum(packets[place][2] for place in places), len(packets))


def copy_spans(path: Path, spans: Sequence[Span], fps: Fraction) -> int:
    """Copy the packets of some spans into one mp4, whole or absent.

    Args:
        path: The file to write.
        spans: At least one, of one encoding, none with a problem; neighbours in one file are read in one go.
        fps: Frames a second.

    Returns:
        Frames in the file.
    """
    delay = max(_delay(span, fps) for span in spans)
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    num_written, stream = 0, None
    with atomic_file(path) as temporary, av.open(str(temporary), "w", format="mp4", options=options) as out:
        for span in spans:
            with av.open(str(span.path)) as source:
                template = source.streams.video[0]
                if stream is None:
                    # Opaque: parameters are copied as they are, without asking for an encoder.
                    stream = out.add_stream_from_template(template, opaque=True)
                    stream.time_base = 1 / fps
                order = -1
                for order, packet in enumerate(_packets_of(source, span, fps)):
                    number = frame_index_at(packet.pts * packet.time_base, fps) - span.first_frame
                    packet.stream, packet.time_base = stream, 1 / fps
                    packet.pts, packet.dts, packet.duration = num_written + number, num_written + order - delay, 1
                    out.mux_one(packet)
                assert order + 1 == span.num_frames, f"{span} has {order + 1} packets"
            num_written += span.num_frames
    return num_written


def _packets_of(source: av.container.InputContainer, span: Span, fps: Fraction):
    stream = source.streams.video[0]
    if span.first_frame:
        # To the key frame that the span begins with, or to one before it.
        source.seek(int(Fraction(span.first_frame) / fps / stream.time_base), stream=stream, backward=True)
    in_span = (
        packet for packet in source.demux(stream)
        if packet.size and 0 <= frame_index_at(packet.pts * packet.time_base, fps) - span.first_frame < span.num_frames
    )  # fmt: skip
    return islice(in_span, span.num_frames)


def _delay(span: Span, fps: Fraction) -> int:
    """Return by how many places a packet of a span stands behind its frame's turn: 0 without B-frames."""
    with av.open(str(span.path)) as source:
        return max(
            order - (frame_index_at(packet.pts * packet.time_base, fps) - span.first_frame)
            for order, packet in enumerate(_packets_of(source, span, fps))
        )


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
    return look_at_spans(path, [Span(path, 0, span.num_frames)], fps)[0]


def ready_clips(
    dataset: SourceDataset, folder: Path, reencode: bool, workers: Workers
) -> tuple[dict[str, list[Clip]], list[str]]:
    """Return, for each camera, where each episode's packets lie, ready to be copied, and what the user should know.

    Args:
        dataset: The source.
        folder: Where videos go that have to be encoded again.
        reencode: Whether that is wanted.
        workers: Who looks and encodes.

    Raises:
        UserError: if videos cannot be copied and encoding them again is not wanted.
    """
    clips, notes = {}, []
    for camera in dataset.cameras:
        clips[camera], own = _ready_clips(dataset, camera, folder, reencode, workers)
        notes += own
    return clips, notes


def _ready_clips(
    dataset: SourceDataset, camera: str, folder: Path, reencode: bool, workers: Workers
) -> tuple[list[Clip], list[str]]:
    spans = [Span(episode.videos[camera], dataset.first_frame(episode, camera), episode.length)
             for episode in dataset.episodes]  # fmt: skip
    by_file: dict[Path, list[int]] = {}
    for index, span in enumerate(spans):
        by_file.setdefault(span.path, []).append(index)
    looks: list[SpanLook] = [None] * len(spans)
    tasks = [partial(look_at_spans, path, [spans[i] for i in own], dataset.fps) for path, own in by_file.items()]
    for own, found in zip(by_file.values(), workers.run(tasks), strict=True):
        for index, look in zip(own, found, strict=True):
            looks[index] = look
    notes = [
        f"episode {index}, {camera}: the video has {look.num_in_file} frames, the table {span.num_frames} rows: the "
        "frames beyond them are left out"
        for index, (span, look) in enumerate(zip(spans, looks, strict=True))
        if len(by_file[span.path]) == 1 and span.first_frame == 0 and look.num_in_file != span.num_frames
    ]
    uncopyable = [(index, look.problem) for index, look in enumerate(looks) if look.problem]
    if uncopyable and not reencode:
        raise _cannot_copy(camera, uncopyable)
    encoded = {index: folder / f"{camera}-{index:06d}.mp4" for index, _ in uncopyable}
    folder.mkdir(exist_ok=True)
    again = [partial(encode_span, path, spans[index], dataset.fps) for index, path in encoded.items()]
    for (index, reason), look in zip(uncopyable, workers.run(again), strict=True):
        spans[index], looks[index] = Span(encoded[index], 0, spans[index].num_frames), look
        notes.append(f"episode {index}, {camera}: encoded again, because {reason}")
    return [Clip(span, look) for span, look in zip(spans, looks, strict=True)], notes


def _cannot_copy(camera: str, problems: Sequence[tuple[int, str]]) -> UserError:
    shown = [f"episode {index}: {reason}" for index, reason in problems[:10]]
    more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
    return UserError(
        f"{len(problems)} videos of {camera} cannot be copied without encoding them again",
        actual="; ".join([*shown, *more]), allowed="an episode begins with a key frame and frame i is at i / fps",
        next_step="--reencode encodes these, and only these, again",
    )  # fmt: skip
