"""Whether the disk has room for what is about to be written; asked before the first byte."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from dreamgen.config.settings import Hdf5Settings
from dreamgen.errors import UserError

GIB = 2**30
BYTES_OF_FRAME_ROW = 1000  # vectors, numbers and statistics of a frame: 44 dimensions of state and action take 400
# Of the raw bytes of pictures; those of simulators and dreams are smoother than what these were measured on.
PICTURES_KEPT = {"gzip": 0.6, "lzf": 0.8, "none": 1.0, "jpeg": 0.15}


def estimated_bytes(name: str, num_bytes: int, num_frames: int, frame_bytes: int, hdf5: Hdf5Settings) -> int:
    """Return about how large a dataset will be.

    Args:
        name: Its format.
        num_bytes: Size of the clips' mp4s, which LeRobot formats hold as they are.
        num_frames: Frames of all clips.
        frame_bytes: Raw bytes of a picture, which HDF5 formats hold one by one.
        hdf5: How they hold them.
    """
    if name.startswith("lerobot"):
        pictures = num_bytes
    else:
        is_jpeg = name == "aloha" and hdf5.jpeg_quality is not None
        pictures = int(num_frames * frame_bytes * PICTURES_KEPT["jpeg" if is_jpeg else hdf5.compression])
        pictures *= 2 if name == "robomimic" and hdf5.next_obs else 1
    return pictures + num_frames * BYTES_OF_FRAME_ROW


def check_space(folder: Path, needed: Mapping[str, int], keep_free_gib: float) -> None:
    """Make sure that datasets fit on the disk.

    Args:
        folder: Where they will be; it need not exist.
        needed: Bytes of each.
        keep_free_gib: What must remain free.

    Raises:
        UserError: with what is needed and what is free.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free, wanted = shutil.disk_usage(nearest).free / GIB, sum(needed.values()) / GIB
    if wanted + keep_free_gib > free:
        each = ", ".join(f"{name} {size / GIB:.3g}" for name, size in needed.items())
        raise UserError(
            f"the disk of {nearest} has no room for the datasets",
            actual=f"{free:.3g} GiB free",
            allowed=f"{wanted + keep_free_gib:.3g} GiB: {each}, and {keep_free_gib:g} that must remain free",
            next_step="free some space, write fewer --export.formats, or lower --export.keep_free_gib",
        )
