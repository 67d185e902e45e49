"""Several cameras in one frame: the world model generates them together, and export separates them again.

Axes: H height, W width, C channels. Frames are uint8, 0-255, RGB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamgen.errors import UserError

if TYPE_CHECKING:  # `--help` imports this module and must stay fast
    import numpy as np


@dataclass(frozen=True)
class View:
    """The part of the frame that shows one camera, in pixels.

    Args:
        camera: Name of the video feature.
        top: First row.
        left: First column.
        height: Number of rows.
        width: Number of columns.
    """

    camera: str
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> View:
        """Create a view from the result of `dataclasses.asdict`, for example after JSON."""
        return cls(**values)

    def cut(self, frame_HWC: np.ndarray) -> np.ndarray:
        """Return this camera's part of a frame of all cameras."""
        return frame_HWC[self.top : self.top + self.height, self.left : self.left + self.width]


def short_name(camera: str) -> str:
    """Return a video feature's name without `observation.images.`."""
    return camera.removeprefix("observation.images.")


def tiled_views(cameras: Sequence[str], height: int, width: int) -> tuple[View, ...]:
    """Divide a frame into equal tiles, one for each camera, in rows; there are as many columns as rows or one more.

    Args:
        cameras: In their order; two stand beside one another, three leave the last of four tiles black.
        height: Of the frame, in pixels.
        width: Of the frame, in pixels.

    Raises:
        UserError: if the tiles would be smaller than 2 x 2 pixels.
    """
    num_columns = math.ceil(math.sqrt(len(cameras)))
    num_rows = math.ceil(len(cameras) / num_columns)
    # Even, as encoders halve the colors' size; what is left over at the edges stays black.
    tile_height, tile_width = height // num_rows // 2 * 2, width // num_columns // 2 * 2
    if min(tile_height, tile_width) < 2:
        raise UserError(
            "the frame is too small for this many cameras", actual=f"{len(cameras)} in {width} x {height}",
            next_step="fewer --prepare.cameras, or a larger video.height and video.width",
        )  # fmt: skip
    positions = (divmod(number, num_columns) for number in range(len(cameras)))
    return tuple(
        View(camera, row * tile_height, column * tile_width, tile_height, tile_width)
        for camera, (row, column) in zip(cameras, positions, strict=True)
    )


def check_views(views: Sequence[View], height: int, width: int) -> None:
    """Check that views are those of a frame of this size; others would cut out wrong parts.

    Args:
        views: As they were recorded; none are of every size.
        height: Of the frame, in pixels.
        width: Of the frame, in pixels.

    Raises:
        UserError: with the recorded and the expected tiles.
    """
    if views and tuple(views) != (expected := tiled_views([view.camera for view in views], height, width)):
        raise UserError(
            f"the tiles in train/features.json do not fit a frame of {width} x {height}",
            actual=describe_views(views), allowed=describe_views(expected),
            next_step="set video.height and video.width as for prepare, or prepare into another --out",
        )  # fmt: skip


def describe_views(views: Sequence[View]) -> str:
    """Describe in words which part of the frame shows which camera."""
    return (
        ", ".join(f"{short_name(v.camera)} {v.width} x {v.height} at {v.left},{v.top}" for v in views) or "one camera"
    )


def tile(frames: Sequence[np.ndarray], views: Sequence[View], height: int, width: int) -> np.ndarray:
    """Copy the cameras' frames, each with the size of its view, into one frame_HWC; the rest is black."""
    import numpy as np

    tiled_HWC = np.zeros((height, width, 3), np.uint8)
    for frame_HWC, view in zip(frames, views, strict=True):
        view.cut(tiled_HWC)[:] = frame_HWC
    return tiled_HWC
