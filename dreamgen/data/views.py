"""Several cameras tiled into one image: the world model generates them together, and export splits them again.

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
    """The tile of one camera in the image, in pixels.

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
        """Return this camera's part of the tiled image, as a view of the array."""
        return frame_HWC[self.top : self.top + self.height, self.left : self.left + self.width]


def short_name(camera: str) -> str:
    """Return a video feature's name without `observation.images.`."""
    return camera.removeprefix("observation.images.")


def tiled_views(cameras: Sequence[str], height: int, width: int) -> tuple[View, ...]:
    """Divide an image into equal tiles, row by row, with as many columns as rows or one more.

    Args:
        cameras: In order. Two are placed side by side; three leave the last of four tiles black.
        height: Pixels of the image.
        width: Pixels of the image.

    Raises:
        UserError: if the tiles would be smaller than 2 x 2 pixels.
    """
    num_columns = math.ceil(math.sqrt(len(cameras)))
    num_rows = math.ceil(len(cameras) / num_columns)
    # Even sizes, because encoders subsample color by two. Remaining pixels at the edges stay black.
    tile_height, tile_width = height // num_rows // 2 * 2, width // num_columns // 2 * 2
    if min(tile_height, tile_width) < 2:
        raise UserError(
            "the image is too small for the number of cameras", actual=f"{len(cameras)} in {width} x {height}",
            next_step="fewer --prepare.cameras, or a larger video.height and video.width",
        )  # fmt: skip
    positions = (divmod(number, num_columns) for number in range(len(cameras)))
    return tuple(
        View(camera, row * tile_height, column * tile_width, tile_height, tile_width)
        for camera, (row, column) in zip(cameras, positions, strict=True)
    )


def check_views(views: Sequence[View], height: int, width: int) -> None:
    """Check that recorded views belong to images of a size; other views would cut across cameras.

    Args:
        views: The recorded views; an empty sequence fits every size.
        height: Pixels of the image.
        width: Pixels of the image.

    Raises:
        UserError: with the recorded and the expected tiles.
    """
    if views and tuple(views) != (expected := tiled_views([view.camera for view in views], height, width)):
        raise UserError(
            f"the camera tiles of train/features.json do not fit an image of {width} x {height}",
            actual=describe_views(views), allowed=describe_views(expected),
            next_step="set video.height and video.width as for prepare, or run prepare with another --out",
        )  # fmt: skip


def describe_views(views: Sequence[View]) -> str:
    """Describe the tile of each camera."""
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
