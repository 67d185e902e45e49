"""Frames of many clips in one pass: episodes that share an mp4 are read in order, without seeking."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamgen.data.video import DecodedFrame, VideoInfo, decode_frames, open_packets
from dreamgen.errors import UserError


@dataclass(frozen=True)
class PictureSource(VideoInfo):
    """Frames that are stored as single pictures, and are read like those of a video."""

    @abstractmethod
    def pictures(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        """Yield frame_HWC for each number, uint8, RGB."""


class FrameReader:
    """Reads frames of videos by number: their places in the order in which they are shown, as `FrameTimes` has them.

    A packed mp4 is decoded once as long as runs are requested in order; going back starts it again. A decoded frame is
    recognized by its time, so one that the decoder leaves out does not shift those after it.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._decoder: Generator[DecodedFrame] | None = None
        self._position = 0

    def frames(self, video: VideoInfo, numbers: np.ndarray) -> Iterator[np.ndarray]:
        """Read some frames of a video, or of stored pictures; the arguments are those of `decoded`.

        Yields:
            frame_HWC as shown, uint8, 0-255, RGB; fewer than asked for when the video ends early.
        """
        if isinstance(video, PictureSource):
            yield from video.pictures(numbers)
            return
        last, pixels_HWC = None, np.empty(0)
        for frame in self.decoded(video, numbers):
            if frame is not last:
                last, pixels_HWC = frame, frame.rgb()
            yield pixels_HWC

    def decoded(self, video: VideoInfo, numbers: np.ndarray) -> Iterator[DecodedFrame]:
        """Decode some frames of a video.

        Args:
            video: From `probe`.
            numbers: Which frames, non-decreasing; a repeated number is yielded again.

        Yields:
            The frames as they are stored; fewer than asked for when the video ends early.

        Raises:
            UserError: if the video is damaged, or ends before the first frame.
        """
        if len(numbers) and (video.path != self._path or numbers[0] < self._position):
            self.close()
            self._path, self._decoder = video.path, decode_frames(video.path)
        wanted: DecodedFrame | None = None
        for number in numbers.tolist():
            while self._position <= number:
                frame = self._decode(video)
                if frame is None and wanted is None:
                    raise UserError(
                        f"{video.path} ends before the clip", actual=f"{self._position} frames", allowed=number + 1
                    )
                if frame is None:
                    return
                if self._position == number + 1:
                    wanted = frame
                elif self._position > number:
                    raise UserError(
                        f"{video.path} is damaged", actual=f"no frame at {video.times.at_s(number):.4f} s",
                        allowed="frames that can all be decoded",
                    )  # fmt: skip
            assert wanted is not None, "numbers must not decrease"
            yield wanted

    def count_to(self, video: VideoInfo, number: int) -> int:
        """Decode the open video up to a frame (exclusive) and return the number of the next frame.

        Raises:
            UserError: if the video is damaged.
        """
        if isinstance(video, PictureSource):
            return number
        while self._position < number and self._decode(video) is not None:
            pass
        return self._position

    def close(self) -> None:
        """Close the open file."""
        if self._decoder is not None:
            self._decoder.close()
        self._path, self._decoder, self._position = None, None, 0

    def _decode(self, video: VideoInfo) -> DecodedFrame | None:
        """Return the next frame, with its number in `_position` - 1."""
        assert self._decoder is not None, "no file is open"
        frame = next(self._decoder, None)
        if frame is not None:
            pts, pts_T, place = frame.frame.pts, video.times.pts_T, self._position
            if pts is not None and frame.frame.time_base == video.times.unit_s:
                found = int(np.searchsorted(pts_T, pts)) if place >= len(pts_T) or pts_T[place] != pts else place
                if found > place and found < len(pts_T) and pts_T[found] == pts:
                    place = found
            self._position = place + 1
        return frame


def sparse_frames(path: Path, numbers: Sequence[int]) -> list[DecodedFrame]:
    """Decode a few frames of a short video, each from the key frame before it.

    Args:
        path: The file.
        numbers: Which frames, in any order.

    Raises:
        UserError: if the video is missing or damaged, or lacks a frame.
    """
    found = []
    with open_packets(path) as (info, stream, packets, _):
        starts = [place for place, packet in enumerate(packets) if packet.is_keyframe]
        for number in numbers:
            wanted = info.times.pts_T[number] if number < info.num_frames else None
            before = [place for place in starts if wanted is not None and (packets[place].pts or 0) <= wanted]
            stream.codec_context.flush_buffers()
            rest = [*packets[max(before, default=0) :], None]  # None: what the decoder still holds
            decoded = (frame for packet in rest for frame in stream.codec_context.decode(packet))
            frame = next((frame for frame in decoded if frame.pts == wanted), None)
            if frame is None:
                raise UserError(f"{path} has no frame {number}", allowed=f"0 to {info.num_frames - 1}")
            found.append(DecodedFrame(frame, info.display.pixel_aspect))
    return found
