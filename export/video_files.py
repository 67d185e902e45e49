"""Many clips in few mp4 files by copying their packets: nothing is decoded, and every frame's time is a whole number.

A frame's pts is its number within the file, in units of 1/fps, so offsets never drift however long the file gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from export.numbered_files import FileNumber


@dataclass(frozen=True)
class VideoPlace:
    """Where an episode's frames lie: `first_frame` is a frame number within the file."""

    number: FileNumber
    first_frame: int


class VideoFiles:
    """Appends clips to a row of mp4 files; a new one begins at the size limit or where the encoding differs.

    Args:
        root: Folder of the dataset.
        template: Path of a file below `root`, with `chunk_index` and `file_index` to be filled in.
        fps: Frames a second of every clip.
        limit_bytes: Size that a file does not exceed, unless a single clip does.
        chunks_size: Files in a chunk's folder.
    """

    def __init__(self, root: Path, template: str, fps: int, limit_bytes: int, chunks_size: int) -> None:
        self._root, self._template, self._fps = root, template, fps
        self._limit_bytes, self._chunks_size = limit_bytes, chunks_size
        self._number = FileNumber(0, -1)
        self._out: av.container.OutputContainer | None = None
        self._encoding: tuple | None = None

    def append(self, clip: Path) -> VideoPlace:
        """Copy all packets of a clip.

        Returns:
            The file and the number of the clip's first frame in it.
        """
        size_bytes = clip.stat().st_size
        with av.open(str(clip)) as source:
            stream = source.streams.video[0]
            # Files of one codec may still differ in the parameter sets that stand once at a file's head.
            encoding = (stream.codec_context.codec.canonical_name, stream.codec_context.extradata)
            if self._out is None or encoding != self._encoding or self._size_bytes + size_bytes > self._limit_bytes:
                self._begin(stream, encoding)
            place = VideoPlace(self._number, self._num_frames)
            for packet in source.demux(stream):
                if packet.size:
                    self._copy(packet)
        self._size_bytes += size_bytes
        return place

    def _begin(self, stream: av.VideoStream, encoding: tuple) -> None:
        self.close()
        self._number = self._number.next(self._chunks_size)
        path = self._root / self._template.format(**self._number.indices())
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"fflags": "+bitexact", "movflags": "+faststart"}
        self._out = av.open(str(path), "w", format="mp4", options=options)
        # Opaque: parameters are copied as they are, without asking for an encoder, which decoders such as dav1d lack.
        self._stream = self._out.add_stream_from_template(stream, opaque=True)
        self._stream.time_base = Fraction(1, self._fps)
        self._encoding, self._size_bytes, self._num_frames = encoding, 0, 0

    def _copy(self, packet: av.Packet) -> None:
        packet.stream = self._stream
        packet.time_base = Fraction(1, self._fps)
        packet.pts = packet.dts = self._num_frames
        packet.duration = 1
        self._out.mux_one(packet)
        self._num_frames += 1

    def close(self) -> None:
        """Finish the last file."""
        if self._out is not None:
            self._out.close()
            self._out = None

    def __enter__(self) -> VideoFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def uncopyable(clip: Path, fps: int) -> str | None:
    """Say why a clip's packets cannot simply be copied, or None.

    Args:
        clip: An mp4.
        fps: The rate that it should have.

    Returns:
        What is wrong: the first frame is no key frame, frames are stored out of order, or a frame is not at i / fps.
    """
    with av.open(str(clip)) as source:
        packets = [packet for packet in source.demux(source.streams.video[0]) if packet.size]
        if not packets[0].is_keyframe:
            return "the first frame is not a key frame"
        for index, packet in enumerate(packets):
            if packet.pts is None or packet.pts * packet.time_base != Fraction(index, fps):
                time = "no time" if packet.pts is None else f"{float(packet.pts * packet.time_base):.6f} s"
                return f"packet {index} has {time}, not {index}/{fps} s"
    return None
