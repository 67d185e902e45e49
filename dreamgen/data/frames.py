"""Frames of many clips in one pass: episodes that share an mp4 are read in order, without seeking."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import av
import numpy as np

from dreamgen.data.video import decode_frames
from dreamgen.errors import UserError


class FrameReader:
    """Reads ranges of frames by index, counted from the start of the file.

    A packed mp4 is decoded once as long as runs are requested in order; going back starts it again. Frames are
    numbered by counting and not by their times, which drift in files that were joined from many episodes.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._decoder: Generator[av.VideoFrame] | None = None
        self._position = 0

    def frames(self, path: Path, from_frame: int, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """Decode the wanted frames of one clip; the frames between them are not converted to RGB.

        Args:
            path: The video.
            from_frame: Index of the clip's first frame in the file.
            wanted: Indices within the clip, non-decreasing; a repeated index is yielded again.

        Yields:
            frame_HWC, uint8, 0-255, RGB; fewer than wanted when the video ends early.

        Raises:
            UserError: if the video is damaged, or ends before the first wanted frame.
        """
        if path != self._path or from_frame < self._position:
            self.close()
            self._path, self._decoder = path, decode_frames(path)
        pixels_HWC: np.ndarray | None = None
        for target in from_frame + wanted:
            while self._position <= target:
                frame = self._decode()
                if frame is not None and self._position - 1 == target:
                    pixels_HWC = frame.to_ndarray(format="rgb24")
                if frame is None and pixels_HWC is None:
                    raise UserError(
                        f"{path} ends before the clip", actual=f"{self._position} frames", allowed=target + 1
                    )
                if frame is None:
                    return
            assert pixels_HWC is not None, "indices must not decrease"
            yield pixels_HWC

    def count_to(self, frame_index: int) -> int:
        """Decode the open file up to a frame (exclusive) and return the number of frames decoded so far.

        Raises:
            UserError: if the video is damaged.
        """
        while self._position < frame_index and self._decode() is not None:
            pass
        return self._position

    def close(self) -> None:
        """Close the open file."""
        if self._decoder is not None:
            self._decoder.close()
        self._path, self._decoder, self._position = None, None, 0

    def _decode(self) -> av.VideoFrame | None:
        assert self._decoder is not None, "no file is open"
        frame = next(self._decoder, None)
        self._position += frame is not None
        return frame
