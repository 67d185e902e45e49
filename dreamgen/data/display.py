"""How a video says its frames are to be shown: orientation, colors and the shape of its pixels.

Frames are decoded as they are stored: a phone's lie on their side, YUV needs the matrix and range that the file
names, and pixels need not be square. FFmpeg's command and torchcodec, LeRobot's decoder, follow these tags; so does
everything here.

Axes: H height, W width, C channels (RGB). Frames are uint8, 0-255, unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import av
import cv2
import numpy as np

from dreamgen.errors import UserError

# Numbers of ISO/IEC 23091-2, as FFmpeg has them.
UNSPECIFIED = 2
BT601 = 6  # SMPTE 170M, the same matrix as 5
LIMITED, FULL = 1, 2  # color ranges
MATRIX_NAMES = {1: "BT.709", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M", 9: "BT.2020", 10: "BT.2020"}
NO_MATRIX = (0, UNSPECIFIED)  # RGB, or none stated: FFmpeg takes BT.601 then, whatever the size
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
# FFmpeg takes formats with these names as full range, whatever their tags say.
FULL_RANGE_FORMATS = ("yuvj", "gray", "ya")
SQUARE_ENOUGH = Fraction(1, 100)  # pixels this near to square are left alone
WIDEST_PIXEL = 8  # times its height, or the other way around
DEGENERATE = 0.02  # of the largest entry: what counts as 0 in an orientation


@dataclass(frozen=True)
class ColorTags:
    """What a file says of its colors, in FFmpeg's numbers; the default says nothing.

    Args:
        matrix: From YUV to RGB.
        primaries: Which colors R, G and B are.
        transfer: From values to light.
        color_range: 1 for limited (16-235), 2 for full (0-255), 0 where it is not stated.
    """

    matrix: int = UNSPECIFIED
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    color_range: int = 0

    @classmethod
    def of(cls, codec: av.VideoCodecContext) -> ColorTags:
        """Return the tags of a stream.

        Raises:
            UserError: if its matrix is not known, which no reader can guess.
        """
        _check_matrix(int(codec.colorspace))
        return cls(int(codec.colorspace), int(codec.color_primaries), int(codec.color_trc), int(codec.color_range))

    def write_to(self, codec: av.VideoCodecContext) -> None:
        """Tag what an encoder writes."""
        codec.colorspace, codec.color_primaries = self.matrix, self.primaries
        codec.color_trc, codec.color_range = self.transfer, self.color_range

    @property
    def hdr(self) -> str | None:
        """The transfer function's name if it is one of HDR, whose values look pale where it is not undone."""
        return HDR_TRANSFERS.get(self.transfer)


@dataclass(frozen=True)
class Orientation:
    """How stored frames are turned to be shown: transposed first, then mirrored."""

    transpose: bool = False
    mirror_columns: bool = False
    mirror_rows: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """Read a decoded frame's display matrix.

        Raises:
            UserError: if it turns frames by something else than a multiple of 90 degrees.
        """
        if not len(frame.side_data):  # nearly always, and at no cost
            return UPRIGHT
        matrix = frame.side_data.get("DISPLAYMATRIX")
        return UPRIGHT if matrix is None else cls.of_matrix(np.frombuffer(matrix, np.int32))

    @classmethod
    def of_matrix(cls, matrix_9: np.ndarray) -> Orientation:
        """Read the nine numbers a b u c d v x y w: stored (x, y) is shown at (ax + cy, bx + dy).

        Raises:
            UserError: as `of` does.
        """
        a, b, c, d = (float(matrix_9[place]) for place in (0, 1, 3, 4))
        small = DEGENERATE * max(map(abs, (a, b, c, d)))
        if small and abs(b) <= small and abs(c) <= small and min(abs(a), abs(d)) > small:
            return cls(False, a < 0, d < 0)
        if small and abs(a) <= small and abs(d) <= small and min(abs(b), abs(c)) > small:
            return cls(True, c < 0, b < 0)
        raise UserError(
            "its frames are to be shown at an angle",
            actual=f"display matrix {[round(entry / 65536, 3) for entry in (a, b, c, d)]}",
            allowed="turned by 0, 90, 180 or 270 degrees, or mirrored",
            next_step="ffmpeg -i IN.mp4 OUT.mp4 turns the frames themselves",
        )  # fmt: skip

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width as shown."""
        return (width, height) if self.transpose else (height, width)

    def turned(self, frame_HWC: np.ndarray) -> np.ndarray:
        """Return the frame as it is to be shown."""
        if self == UPRIGHT:
            return frame_HWC
        if self.transpose:
            frame_HWC = frame_HWC.swapaxes(0, 1)
        rows, columns = -1 if self.mirror_rows else 1, -1 if self.mirror_columns else 1
        return np.ascontiguousarray(frame_HWC[::rows, ::columns])

    def filters(self) -> list[str]:
        """Return FFmpeg's filters that turn frames in the same way, in any pixel format."""
        mirrors = ["hflip"] * self.mirror_columns + ["vflip"] * self.mirror_rows
        return ["transpose=cclock_flip", *mirrors] if self.transpose else mirrors  # this one only transposes


UPRIGHT = Orientation()


@dataclass(frozen=True)
class Display:
    """Everything a video says of how its frames are to be shown.

    Args:
        orientation: How they are turned.
        pixel_aspect: Width of a pixel by its height.
        color: Its color tags.
    """

    orientation: Orientation = UPRIGHT
    pixel_aspect: Fraction = Fraction(1)
    color: ColorTags = field(default_factory=ColorTags)

    @property
    def is_plain(self) -> bool:
        """Whether frames are shown as they are stored, apart from their colors."""
        return self.orientation == UPRIGHT and self.pixel_aspect == 1

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of frames as shown, in square pixels, of those that are stored."""
        return self.orientation.size(*square_size(height, width, self.pixel_aspect))


def pixel_aspect_of(stream: av.VideoStream) -> Fraction:
    """Return width by height of a stream's pixels; 1 where they are square, nearly square, or not stated.

    Raises:
        UserError: if no camera has such pixels.
    """
    aspect = stream.sample_aspect_ratio
    if not aspect or abs(aspect - 1) <= SQUARE_ENOUGH:
        return Fraction(1)
    if not Fraction(1, WIDEST_PIXEL) <= aspect <= WIDEST_PIXEL:
        raise UserError(
            "its pixels have an impossible shape", actual=f"sample aspect ratio {aspect}",
            allowed=f"1/{WIDEST_PIXEL} to {WIDEST_PIXEL}",
        )  # fmt: skip
    return aspect


def square_size(height: int, width: int, pixel_aspect: Fraction) -> tuple[int, int]:
    """Return the size in square pixels; the longer side of a pixel decides, so that nothing is lost."""
    if pixel_aspect > 1:
        return height, round(width * pixel_aspect)
    return round(height / pixel_aspect), width


def to_rgb(frame: av.VideoFrame, pixel_aspect: Fraction = Fraction(1)) -> np.ndarray:
    """Convert a decoded frame to what is to be seen: by its own color tags, in square pixels, upright.

    Args:
        frame: As the decoder gives it.
        pixel_aspect: From `pixel_aspect_of`; a frame does not know it.

    Returns:
        frame_HWC, uint8, 0-255, RGB. HDR values are not tone mapped.

    Raises:
        UserError: if its colors or its orientation cannot be followed.
    """
    frame_HWC = _converted(frame)
    if pixel_aspect != 1:
        height, width = square_size(frame_HWC.shape[0], frame_HWC.shape[1], pixel_aspect)
        frame_HWC = cv2.resize(frame_HWC, (width, height), interpolation=cv2.INTER_CUBIC)
    return Orientation.of(frame).turned(frame_HWC)


def _converted(frame: av.VideoFrame) -> np.ndarray:
    matrix, color_range, name = int(frame.colorspace), int(frame.color_range), frame.format.name
    is_full = color_range == FULL or name.startswith(FULL_RANGE_FORMATS)
    if matrix in (*NO_MATRIX, 5, BT601) and is_full == name.startswith(FULL_RANGE_FORMATS):
        return frame.to_ndarray(format="rgb24")  # what swscale assumes
    _check_matrix(matrix)
    # PyAV sets matrix and range only where source and target differ; what the target is does not matter for RGB.
    source, source_range = (5 if matrix in NO_MATRIX else matrix), FULL if is_full else LIMITED
    return frame.to_ndarray(
        format="rgb24", src_colorspace=source, dst_colorspace=1 if source != 1 else 5, src_color_range=source_range,
        dst_color_range=LIMITED,
    )  # fmt: skip


def _check_matrix(matrix: int) -> None:
    if matrix not in MATRIX_NAMES and matrix not in NO_MATRIX:
        raise UserError(
            "its colors have a matrix that is not known", actual=f"matrix coefficients {matrix}",
            allowed=", ".join(dict.fromkeys(MATRIX_NAMES.values())), next_step="encode it again, with BT.709",
        )  # fmt: skip
