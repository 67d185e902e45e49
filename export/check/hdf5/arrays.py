"""Groups and arrays of HDF5 files that may be damaged or link elsewhere; nothing outside the dataset is opened.

Axes: N rows, D values, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np

from export.check.findings import Findings

MAX_DEPTH = 8  # hard links may lead round in a circle

# What h5py raises for damaged bytes, broken links and filters that fail.
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError)

ROWS_AT_ONCE = 65536
CHANNELS = (1, 3, 4)


def open_hdf5(path: Path, name: str, findings: Findings) -> h5py.File | None:
    """Open a file for reading, or return None with a finding; the caller closes it."""
    try:
        return h5py.File(path, "r")
    except OSError as error:
        findings.add("unreadable-file", name, "", str(error), "an HDF5 file")
        return None


def group_at(parent: h5py.Group, key: str) -> h5py.Group | None:
    """Return a group, or None."""
    item = _item(parent, key)
    return item if isinstance(item, h5py.Group) else None


def array_at(parent: h5py.Group, path: str) -> h5py.Dataset | None:
    """Return an array whose values lie in the dataset, or None."""
    *groups, key = path.split("/")
    for name in groups:
        parent = group_at(parent, name) if parent is not None else None
    item = None if parent is None else _item(parent, key)
    return item if isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual else None


def arrays(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield (path, array) of all arrays below a group."""
    for key in group:
        below = group_at(group, key)
        if below is not None and prefix.count("/") < MAX_DEPTH:
            yield from arrays(below, f"{prefix}{key}/")
        elif below is None and (array := array_at(group, key)) is not None:
            yield f"{prefix}{key}", array


def _item(parent: h5py.Group, key: str) -> object | None:
    if key not in parent:
        return None
    link = parent.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink) and not (isinstance(link, h5py.ExternalLink) and _target(parent, link)):
        return None
    try:
        return parent[key]
    except DAMAGE:
        return None


def _target(parent: h5py.Group, link: h5py.ExternalLink) -> Path | None:
    """Return the file that a link leads to if it lies in the folder of the file that holds the link."""
    folder = Path(parent.file.filename).parent.resolve()
    target = (folder / link.filename).resolve()
    return target if target.is_relative_to(folder) else None


def check_links(name: str, group: h5py.Group, findings: Findings, prefix: str = "") -> None:
    """Note links and values that lead out of the dataset's folder, and soft links."""
    for key in group:
        link, where = group.get(key, getlink=True), f"{prefix}{key}"
        if isinstance(link, h5py.ExternalLink):
            target = _target(group, link)
            if target is None:
                findings.add("path-outside", name, where, f"{link.filename}:{link.path}", "data within the dataset")
            elif _item(group, key) is None:
                findings.add("missing-file", name, where, f"{link.filename}:{link.path} does not open", "the data")
        elif not isinstance(link, h5py.HardLink):
            findings.add("soft-link", name, where, "a soft link", "the data itself")
        elif (below := group_at(group, key)) is not None:
            if where.count("/") < MAX_DEPTH:
                check_links(name, below, findings, f"{where}/")
        elif isinstance(array := _item(group, key), h5py.Dataset) and (array.external or array.is_virtual):
            findings.add("path-outside", name, where, "values stored in another file", "data within the file")


def check_finite(name: str, where: str, array: h5py.Dataset, findings: Findings) -> bool:
    """Read an array of numbers, a part at a time, and note the first that is not finite."""
    if array.dtype.kind != "f" or not array.ndim:
        for begin in range(0, len(array) if array.ndim else 0, ROWS_AT_ONCE):
            array[begin : begin + ROWS_AT_ONCE]  # reading finds damage that the header does not show
        return True
    for begin in range(0, len(array), ROWS_AT_ONCE):
        values = array[begin : begin + ROWS_AT_ONCE]
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            findings.add("not-finite", name, f"{where}, row {begin + row}", str(values[row]), "finite numbers")
            return False
    return True


def check_pictures(name: str, where: str, array: h5py.Dataset, fast: bool, findings: Findings) -> None:
    """Look at pictures stored as (N, H, W, C) bytes; each is read unless `fast`."""
    measured = array.ndim == 4 and array.shape[-1] == 1 and array.dtype.kind in "iuf"  # depth, or which body is seen
    if not measured and (array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in CHANNELS):
        findings.add("picture-type", name, where, f"{array.dtype} {array.shape}", "uint8 (N, H, W, 3)")
    for row in range(len(array)) if not fast else _ends(len(array)):
        try:
            array[row]
        except DAMAGE as error:
            findings.add("damaged-picture", name, f"{where}, row {row}", f"{type(error).__name__}: {error}",
                         "bytes that can be read")  # fmt: skip
            return


def check_jpegs(name: str, where: str, array: h5py.Dataset, fast: bool, findings: Findings) -> tuple[int, int] | None:
    """Decode pictures stored as padded JPEG bytes, (N, bytes) or N arrays of bytes; only the ends if `fast`.

    Returns:
        Height and width, or None where none could be decoded.
    """
    size = None
    for row in range(len(array)) if not fast else _ends(len(array)):
        picture = None
        try:
            encoded = np.asarray(array[row], np.uint8).ravel()
            picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if _whole_jpeg(encoded) else None
        except (*DAMAGE, cv2.error) as error:
            findings.add("damaged-picture", name, f"{where}, row {row}", f"{type(error).__name__}: {error}", "a JPEG")
            return size
        if picture is None:
            findings.add("damaged-picture", name, f"{where}, row {row}", f"bytes {encoded[:4].tolist()} ...",
                         "a whole JPEG")  # fmt: skip
            return size
        if size is not None and picture.shape[:2] != size:
            findings.add("picture-size", name, f"{where}, row {row}", str(picture.shape[:2]), f"{size} as before")
        size = picture.shape[:2]
    return size


def _whole_jpeg(encoded: np.ndarray) -> bool:
    """Say whether bytes begin and end as a JPEG does; decoders make grey of what is missing. Zeros are padding."""
    filled = np.flatnonzero(encoded)
    end = int(filled[-1]) + 1 if len(filled) else 0
    return end > 4 and encoded[:2].tolist() == [0xFF, 0xD8] and encoded[end - 2 : end].tolist() == [0xFF, 0xD9]


def _ends(count: int) -> list[int]:
    return sorted({0, count - 1}) if count else []


def whole(value: object) -> int | None:
    """Return a whole number of numpy's or Python's, or None."""
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_) else None
