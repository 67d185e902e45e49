"""Many clips in one mp4 file by copying their packets: nothing is decoded, and every frame's time is a whole number.

A frame's pts is its number within the file, in units of 1/fps, so offsets never drift however long the file gets.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av

from dreamgen.run.files import atomic_file

OPTIONS = {"fflags": "+bitexact", "movflags": "+faststart"}


def join_clips(path: Path, clips: Iterable[Path], fps: int) -> int:
    """Copy all packets of some clips into one mp4, whole or absent.

    Args:
        path: The file to write.
        clips: At least one mp4, all of one codec with the same parameter sets; none has B-frames.
        fps: Frames a second of every clip.

    Returns:
        Frames in the file.
    """
    num_frames, stream = 0, None
    with atomic_file(path) as temporary, av.open(str(temporary), "w", format="mp4", options=OPTIONS) as out:
        for clip in clips:
            with av.open(str(clip)) as source:
                if stream is None:
                    # Opaque: parameters are copied as they are, without asking for an encoder, which decoders such as
                    # dav1d lack.
                    stream = out.add_stream_from_template(source.streams.video[0], opaque=True)
                    stream.time_base = Fraction(1, fps)
                for packet in source.demux(source.streams.video[0]):
                    if packet.size:
                        _place(packet, stream, num_frames, fps)
                        out.mux_one(packet)
                        num_frames += 1
    return num_frames


def copy_packets(path: Path, stream: av.VideoStream, packets: Iterable[av.Packet], fps: int) -> None:
    """Write some packets of a video as an mp4 of their own, whole or absent; the first is a key frame.

    Args:
        path: The file to write.
        stream: Where they are from.
        packets: In the order in which they are shown.
        fps: Frames a second.
    """
    with atomic_file(path) as temporary, av.open(str(temporary), "w", format="mp4", options=OPTIONS) as out:
        copy = out.add_stream_from_template(stream, opaque=True)
        copy.time_base = Fraction(1, fps)
        for number, packet in enumerate(packets):
            _place(packet, copy, number, fps)
            out.mux_one(packet)


def _place(packet: av.Packet, stream: av.VideoStream, frame_index: int, fps: int) -> None:
    packet.stream = stream
    packet.time_base = Fraction(1, fps)
    packet.pts = packet.dts = frame_index
    packet.duration = 1
