"""What the HDF5 formats share: how pictures are stored, and one file made of parts that several processes write.

Axes: T frames, H height, W width, C channels (RGB).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from dreamgen.data.video import iter_frames

GZIP_LEVEL = 1
# Keywords of h5py by the setting's value. Higher levels of gzip take ten times as long for a few per cent.
COMPRESSION = {
    "none": {},
    "lzf": {"compression": "lzf", "shuffle": True},
    "gzip": {"compression": "gzip", "compression_opts": GZIP_LEVEL},
}


def write_pictures(group: h5py.Group, name: str, video: Path, num_rows: int, size: tuple[int, int],
                   compression: str) -> h5py.Dataset:  # fmt: skip
    """Decode a video into a dataset, one frame a chunk, with one frame in memory.

    A reader asks for frames at random; a chunk of several would be read and unpacked for each of them.

    Args:
        group: Where it goes.
        name: Of the dataset.
        video: The mp4.
        num_rows: Rows of the dataset; the last frame is repeated in those beyond the video's end.
        size: Height and width.
        compression: A key of `COMPRESSION`.

    Returns:
        The dataset: uint8 (T, H, W, 3), 0-255, RGB.
    """
    frame_shape = (*size, 3)
    pictures_THWC = group.create_dataset(
        name, (num_rows, *frame_shape), np.uint8, chunks=(1, *frame_shape), **COMPRESSION[compression]
    )
    index = -1
    for index, frame_HWC in enumerate(iter_frames(video)):
        pictures_THWC[index] = frame_HWC
    assert index >= 0, f"{video} has frames, which were counted"
    for padded in range(index + 1, num_rows):
        copy_chunk(pictures_THWC, index, pictures_THWC, padded)
    return pictures_THWC


def write_next(group: h5py.Group, name: str, rows: h5py.Dataset) -> None:
    """Write a dataset whose row t is row t + 1 of another; its last row is the other's last.

    Packed frames are copied as they are.
    """
    last = len(rows) - 1
    if not rows.chunks:
        group.create_dataset(name, data=np.concatenate([rows[1:], rows[last:]]))
        return
    following = group.create_dataset_like(name, rows)
    for index in range(len(rows)):
        copy_chunk(rows, min(index + 1, last), following, index)


def copy_chunk(source: h5py.Dataset, from_row: int, target: h5py.Dataset, to_row: int) -> None:
    """Copy one row, which is one chunk, without unpacking it."""
    rest = (0,) * (source.ndim - 1)
    filters, packed = source.id.read_direct_chunk((from_row, *rest))
    target.id.write_direct_chunk((to_row, *rest), packed, filters)


def join_parts(group: h5py.Group, parts: Iterable[Path]) -> None:
    """Copy every group of each part into one, packed as it is, and remove the part.

    Args:
        group: Of the whole file.
        parts: Files in their order; each is asked for only when the one before it is copied.
    """
    for path in parts:
        with h5py.File(path, "r") as part:
            for name in part:
                part.copy(part[name], group, name=name)
        path.unlink()
