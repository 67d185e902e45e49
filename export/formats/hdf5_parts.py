"""What the HDF5 formats share: how images are stored, their size, and joining files that several processes wrote.

Axes: T frames, H height, W width, C channels (RGB).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from dreamgen.data.video import iter_frames
from dreamgen.extensions.export_format import BYTES_PER_ROW, DatasetSize

GZIP_LEVEL = 1
# Keyword arguments of h5py by the setting's value. Higher levels of gzip take ten times as long for a few percent.
COMPRESSION = {
    "none": {},
    "lzf": {"compression": "lzf", "shuffle": True},
    "gzip": {"compression": "gzip", "compression_opts": GZIP_LEVEL},
}
# Stored size relative to raw pixels, measured on noisy images; simulated and generated ones are smoother.
SIZE_RATIO = {"gzip": 0.6, "lzf": 0.8, "none": 1.0, "jpeg": 0.15}


def size_with_images(size: DatasetSize, encoding: str, num_copies: int = 1) -> int:
    """Estimate the bytes of a dataset that stores frames one by one.

    Args:
        size: Frames of the dataset.
        encoding: A key of `SIZE_RATIO`.
        num_copies: How often each frame is stored.
    """
    return int(size.num_frames * (num_copies * size.frame_bytes * SIZE_RATIO[encoding] + BYTES_PER_ROW))


def write_images(
    group: h5py.Group, name: str, video: Path, num_rows: int, size: tuple[int, int], compression: str
) -> h5py.Dataset:
    """Decode a video into a dataset with one frame per chunk, holding one frame in memory.

    Readers load random frames; from a chunk of several frames they would have to decompress all for each.

    Args:
        group: Parent of the dataset.
        name: Name of the dataset.
        video: The mp4 file.
        num_rows: Rows of the dataset; the last frame fills the rows beyond the video's end.
        size: Height and width in pixels.
        compression: A key of `COMPRESSION`.

    Returns:
        The dataset: uint8 (T, H, W, 3), 0-255, RGB.
    """
    shape = (*size, 3)
    images_THWC = group.create_dataset(
        name, (num_rows, *shape), np.uint8, chunks=(1, *shape), **COMPRESSION[compression]
    )
    last = -1
    for last, frame_HWC in enumerate(iter_frames(video)):
        images_THWC[last] = frame_HWC
    assert last >= 0, f"{video} has frames, which were counted"
    for row in range(last + 1, num_rows):
        copy_chunk(images_THWC, last, images_THWC, row)
    return images_THWC


def write_next(group: h5py.Group, name: str, rows: h5py.Dataset) -> None:
    """Write a dataset whose row t is row t + 1 of another, and whose last row is the other's last.

    Compressed frames are copied as they are.
    """
    last = len(rows) - 1
    if not rows.chunks:
        group.create_dataset(name, data=np.concatenate([rows[1:], rows[last:]]))
        return
    following = group.create_dataset_like(name, rows)
    for index in range(len(rows)):
        copy_chunk(rows, min(index + 1, last), following, index)


def copy_chunk(source: h5py.Dataset, from_row: int, target: h5py.Dataset, to_row: int) -> None:
    """Copy one row, which is one chunk, without decompressing it."""
    rest = (0,) * (source.ndim - 1)
    filters, data = source.id.read_direct_chunk((from_row, *rest))
    target.id.write_direct_chunk((to_row, *rest), data, filters)


def join_parts(group: h5py.Group, parts: Iterable[Path]) -> None:
    """Copy every group of each part without decompressing it, and remove the part.

    Args:
        group: Parent of the copies.
        parts: HDF5 files in order. The next one is taken when the one before it is copied.
    """
    for path in parts:
        with h5py.File(path, "r") as part:
            for name in part:
                part.copy(part[name], group, name=name)
        path.unlink()
