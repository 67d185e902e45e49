"""Read HDF5 files that may be damaged or link elsewhere; nothing outside the dataset is opened.

Axes: N rows, D values, H height, W width, C channels.
"""

from __future__ import annotations

import math
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import h5py
import numpy as np

from dreamgen.data.images import decode_image
from export.check.findings import Findings
from export.check.other_episodes import OtherEpisodes, Thumbnail

SUFFIXES = (".hdf5", ".h5")
MAX_DEPTH = 8  # hard links can form a cycle

# What h5py raises for damaged bytes, broken links and filters that fail.
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError)

READ_AT_ONCE_BYTES = 2**26
IMAGES_AT_ONCE_BYTES = 2**20  # fewer calls, and still in the processor's cache
MAX_ROW_BYTES = 2**28  # more than any image takes
MAX_RATIO = 2000  # of bytes and stored bytes: HDF5's filters reach half of it
CHANNELS = (1, 3, 4)

type Shape = tuple[int, ...] | None


@dataclass(frozen=True)
class Hdf5Check:
    """Context of the worker processes: a file or the folder of files, and whether only some images are decoded."""

    path: Path
    fast: bool


def single_hdf5_file(path: Path) -> Path | None:
    """Return the HDF5 file that a path names: itself, `data.hdf5` in a folder, or a folder's only one."""
    if path.is_file():
        return path if path.suffix in SUFFIXES else None
    if (path / "data.hdf5").is_file():
        return path / "data.hdf5"
    found = [file for suffix in SUFFIXES for file in path.glob(f"*{suffix}")]
    return found[0] if len(found) == 1 else None


def open_hdf5(path: Path, name: str, findings: Findings) -> h5py.File | None:
    """Open a file for reading, or add a finding and return None. The caller closes it."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("not a regular file")  # opening a FIFO would wait for its writer
        return h5py.File(path, "r")
    except (OSError, ValueError) as error:
        findings.add("unreadable-file", name, "", str(error), "an HDF5 file")
        return None


def keys_of(group: h5py.Group) -> list[str]:
    """Return the names of what a group holds."""
    return [str(key) for key in group]


def group_at(parent: h5py.Group, key: str) -> h5py.Group | None:
    """Return the group of a key, or None."""
    item = _item(parent, key)
    return item if isinstance(item, h5py.Group) else None


def array_at(parent: h5py.Group, path: str) -> h5py.Dataset | None:
    """Return an array whose values are stored in the dataset, or None."""
    *groups, key = path.split("/")
    group: h5py.Group | None = parent
    for name in groups:
        group = None if group is None else group_at(group, name)
    item = None if group is None else _item(group, key)
    return item if isinstance(item, h5py.Dataset) and _is_within(item) else None


def arrays(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield the path and array of every array below a group."""
    for key in keys_of(group):
        item = _item(group, key)
        if isinstance(item, h5py.Group):
            if prefix.count("/") < MAX_DEPTH:
                yield from arrays(item, f"{prefix}{key}/")
        elif isinstance(item, h5py.Dataset) and _is_within(item):
            yield f"{prefix}{key}", item


def _is_within(array: h5py.Dataset) -> bool:
    """Return whether the values are stored in the file itself."""
    return not array.external and not array.is_virtual


def _item(parent: h5py.Group, key: str) -> object | None:
    link = parent.get(key, getlink=True)  # None where there is none
    if not isinstance(link, h5py.HardLink) and not (isinstance(link, h5py.ExternalLink) and _target(parent, link)):
        return None
    try:
        return parent[key]
    except DAMAGE:
        return None


def _target(parent: h5py.Group, link: h5py.ExternalLink) -> Path | None:
    """Return the file that a link points to, or None if it is outside the folder of the linking file."""
    folder = Path(parent.file.filename).parent.resolve()
    target = (folder / link.filename).resolve()
    return target if target.is_relative_to(folder) else None


def check_links(name: str, group: h5py.Group, findings: Findings, prefix: str = "") -> None:
    """Report soft links, and links and values that leave the dataset's folder."""
    for key in keys_of(group):
        link, where = group.get(key, getlink=True), f"{prefix}{key}"
        if isinstance(link, h5py.ExternalLink):
            target = _target(group, link)
            if target is None:
                findings.add("path-outside", name, where, f"{link.filename}:{link.path}", "data within the dataset")
            elif _item(group, key) is None:
                findings.add("missing-file", name, where, f"{link.filename}:{link.path} does not open", "the data")
        elif not isinstance(link, h5py.HardLink):
            findings.add("soft-link", name, where, "a soft link", "the data itself")
        elif isinstance(item := _item(group, key), h5py.Group):
            if where.count("/") < MAX_DEPTH:
                check_links(name, item, findings, f"{where}/")
        elif isinstance(item, h5py.Dataset) and not _is_within(item):
            findings.add("path-outside", name, where, "values stored in another file", "data within the file")


def is_stored(name: str, where: str, array: h5py.Dataset, findings: Findings) -> bool:
    """Return whether an array can be read, judged before memory is asked for; report one that cannot.

    A few bytes can declare an array of any size, whose values are then made up as they are read.
    """
    row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
    stored = array.id.get_storage_size()
    if row_bytes <= MAX_ROW_BYTES and array.nbytes <= max(READ_AT_ONCE_BYTES, MAX_RATIO * stored):
        return True
    findings.add("unreadable-file", name, where, f"shape {array.shape}, of which {stored} bytes are stored",
                 "an array with values")  # fmt: skip
    return False


def portions(array: h5py.Dataset, size_bytes: int = READ_AT_ONCE_BYTES) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first row and the values of parts of an array that fit into memory."""
    row_bytes = max(1, math.prod(array.shape[1:]) * array.dtype.itemsize)
    num_rows = max(1, size_bytes // row_bytes)
    for begin in range(0, len(array), num_rows):
        yield begin, array[begin : begin + num_rows]


def check_finite(name: str, where: str, array: h5py.Dataset, findings: Findings) -> bool:
    """Read an array of numbers in parts, and report the first value that is not finite."""
    if not array.ndim or array.dtype.kind not in "fiub":
        return True
    if not is_stored(name, where, array, findings):
        return False
    for begin, values in portions(array):  # also of whole numbers: only reading reveals damaged chunks
        if array.dtype.kind == "f" and not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            findings.add("not-finite", name, f"{where}, row {begin + row}", str(values[row]), "finite numbers")
            return False
    return True


def check_pictures(name: str, where: str, array: h5py.Dataset, fast: bool, findings: Findings) -> np.ndarray | None:
    """Check images stored as uint8 (N, H, W, C). Read all of them, or the first and the last if `fast`.

    Returns:
        thumbnail_HWC of the episode; None with `fast`, or where there is none.
    """
    thumbnail = Thumbnail(len(array) if array.ndim else 0)
    is_map = array.ndim == 4 and array.shape[-1] == 1 and array.dtype.kind in "iuf"  # depth or segmentation
    if not is_map and (array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in CHANNELS):
        findings.add("picture-type", name, where, f"{array.dtype} {array.shape}", "uint8 (N, H, W, 3)")
    if not is_stored(name, where, array, findings):
        return None
    read = 0
    try:
        for _, images in portions(array, IMAGES_AT_ONCE_BYTES) if not fast else ():
            for image in images:
                thumbnail.add(image)
            read += len(images)
    except DAMAGE:
        pass  # one of the rows that follow, which are read one by one to name it
    for row in _ends(len(array)) if fast else range(read, len(array)):
        try:
            thumbnail.add(array[row])
        except DAMAGE as error:
            value = f"{type(error).__name__}: {error}"
            findings.add("damaged-picture", name, f"{where}, row {row}", value, "bytes that can be read")
            return None
    return None if fast else thumbnail.mean_HWC()


def check_jpegs(
    name: str, where: str, array: h5py.Dataset, fast: bool, findings: Findings
) -> tuple[tuple[int, int] | None, np.ndarray | None]:
    """Decode images stored as padded JPEGs, (N, bytes) or N arrays of bytes: all, or the first and the last if `fast`.

    Returns:
        Height and width, or None if no image could be decoded; thumbnail_HWC, as `check_pictures` returns it.
    """
    size, thumbnail = None, Thumbnail(len(array) if array.ndim else 0)
    if not is_stored(name, where, array, findings):
        return size, None
    for row in range(len(array)) if not fast else _ends(len(array)):
        image = None
        try:
            encoded = np.asarray(array[row], np.uint8).ravel()
            image = decode_image(encoded, cv2.IMREAD_COLOR) if _whole_jpeg(encoded) else None
        except DAMAGE as error:
            findings.add("damaged-picture", name, f"{where}, row {row}", f"{type(error).__name__}: {error}", "a JPEG")
            return size, None
        if image is None:
            value = f"bytes {encoded[:4].tolist()} ..."
            findings.add("damaged-picture", name, f"{where}, row {row}", value, "a complete JPEG")
            return size, None
        if size is not None and image.shape[:2] != size:
            findings.add("picture-size", name, f"{where}, row {row}", str(image.shape[:2]), f"{size} as before")
        size = image.shape[:2]
        thumbnail.add(image)
    return size, None if fast else thumbnail.mean_HWC()


def compare_pictures(thumbnails: Mapping[tuple[str, str], Mapping[str, np.ndarray]], findings: Findings) -> None:
    """Compare the pictures of each camera between the episodes.

    Args:
        thumbnails: File and group of each episode -> path of a camera -> thumbnail_HWC.
        findings: Findings are added here.
    """
    cameras: dict[str, OtherEpisodes] = {}
    for (file, group), held in thumbnails.items():
        for camera, thumbnail_HWC in held.items():
            where = f"{group}/{camera}".lstrip("/")
            cameras.setdefault(camera, OtherEpisodes()).add(file, where, thumbnail_HWC)
    for others in cameras.values():
        others.check(findings)


def _whole_jpeg(encoded: np.ndarray) -> bool:
    """Return whether bytes begin and end as a JPEG does: decoders fill what is missing with gray. Zeros are padding."""
    content = encoded.tobytes().rstrip(b"\0")
    return len(content) > 4 and content.startswith(b"\xff\xd8") and content.endswith(b"\xff\xd9")


def compare_with_majority(
    episodes: Mapping[tuple[str, str], Mapping[str, Shape]], reported: Collection[str], findings: Findings
) -> None:
    """Report episodes whose arrays or shapes differ from those of most episodes.

    Args:
        episodes: File and group of each episode -> path -> shape of one row, None if unknown.
        reported: Paths whose absence has been reported already.
        findings: Findings are added here.
    """
    if not episodes:
        return
    keys = Counter(map(frozenset, episodes.values())).most_common(1)[0][0]
    shapes = {key: Counter(held.get(key) for held in episodes.values()).most_common(1)[0][0] for key in keys}
    for (file, group), held in episodes.items():
        missing, extra = keys - set(held) - set(reported), set(held) - keys - set(reported)
        if (missing or extra) and any("/" in key for key in held):  # without any observation, that was reported
            value = f"without {sorted(missing)}, with {sorted(extra)}"
            findings.add("keys-differ", file, group, value, "the arrays that most episodes have")
        for key, shape in held.items():
            if shape is not None and shapes.get(key) not in (None, shape):
                code, where = "picture-size" if len(shape) > 1 else "vector-length", f"{group}/{key}".lstrip("/")
                findings.add(code, file, where, shape, f"{shapes[key]}, as most episodes have")


def _ends(count: int) -> list[int]:
    return sorted({0, count - 1}) if count else []


def whole(value: object) -> int | None:
    """Return an integer of NumPy or Python as int; None for anything else, including booleans."""
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_) else None
