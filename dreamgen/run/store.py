"""A folder on a local disk or in an object store, with the operations that both support atomically.

A local write goes to a temporary name, is synced and renamed. An object appears whole when its upload ends, and there
is no renaming and no appending: a growing list is written as one object after another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from dreamgen.errors import CannotWrite, UserError
from dreamgen.run.files import atomic_file

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://.+")
OF_PYARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
NUM_LISTED_AT_ONCE = 16


def is_url(place: str | Path) -> bool:
    """Return whether a place is a URL of an object store (`s3://bucket/folder`) and not a local path."""
    return URL.fullmatch(str(place)) is not None


@dataclass(frozen=True)
class Store:
    """A folder, given by path or URL. File names are relative to it, with slashes.

    Args:
        place: A path, or a URL that pyarrow knows: s3://, gs://, abfs://; others through an installed fsspec library.
    """

    place: str

    def __str__(self) -> str:
        return self.place

    def __truediv__(self, name: str) -> Store:
        if not self.is_remote:  # a path may hold any character
            return Store(f"{self.place.rstrip('/')}/{name}")
        address, mark, options = self.place.partition("?")  # the query holds the store's endpoint and region
        return Store(f"{address.rstrip('/')}/{name}{mark}{options}")

    @property
    def is_remote(self) -> bool:
        """Whether the folder is in an object store."""
        return is_url(self.place)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return _open(self.place)

    def __reduce__(self):
        return Store, (self.place,)  # connections cannot be pickled

    def sizes(self, below: str = "") -> dict[str, int]:
        """List the files directly in the subfolder `below`: name -> bytes."""
        import pyarrow.fs as fs

        filesystem, root = self._opened
        selector = fs.FileSelector(f"{root}/{below}" if below else root, allow_not_found=True)
        with self._errors_for_user():
            found = filesystem.get_file_info(selector)
        return {info.base_name: info.size for info in found if info.type == fs.FileType.File}

    def sizes_in(self, folders: Sequence[str]) -> Iterator[tuple[str, dict[str, int]]]:
        """List several subfolders in parallel. Yields each name with its `sizes`."""
        with ThreadPoolExecutor(NUM_LISTED_AT_ONCE) as pool:
            yield from zip(folders, pool.map(self.sizes, folders), strict=True)

    def has(self, name: str) -> bool:
        """Return whether the file exists."""
        import pyarrow.fs as fs

        filesystem, root = self._opened
        with self._errors_for_user():
            return filesystem.get_file_info(f"{root}/{name}").type == fs.FileType.File

    def open(self, name: str) -> Any:
        """Open a file for reading, with random access.

        Raises:
            FileNotFoundError: if it does not exist.
        """
        filesystem, root = self._opened
        with self._errors_for_user():
            return filesystem.open_input_file(f"{root}/{name}")

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            FileNotFoundError: if it does not exist.
        """
        with self.open(name) as stream:
            return stream.read()

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically; an existing file is replaced."""
        if not self.is_remote:
            with atomic_file(Path(self.place) / name) as temporary:
                temporary.write_bytes(data)
            return
        filesystem, root = self._opened
        with self._errors_for_user(CannotWrite), filesystem.open_output_stream(f"{root}/{name}") as stream:
            stream.write(data)

    def remove(self, name: str) -> None:
        """Remove a file; do nothing if it does not exist."""
        filesystem, root = self._opened
        with suppress(FileNotFoundError):
            filesystem.delete_file(f"{root}/{name}")

    def upload(self, file: Path, name: str) -> None:
        """Copy a local file into this folder, atomically."""
        # Read the whole file first: a stream closed after an error would leave half an object.
        self.write(name, file.read_bytes())

    def download(self, name: str, file: Path) -> None:
        """Copy a file to a local path, atomically.

        Raises:
            FileNotFoundError: if it does not exist.
        """
        with self.open(name) as source, atomic_file(file) as temporary, temporary.open("wb") as target:
            while chunk := source.read(8 * 2**20):
                target.write(chunk)

    @contextmanager
    def _errors_for_user(self, kind: type[UserError] = UserError) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if not self.is_remote:
                raise
            raise kind(
                f"{self.place} cannot be used", actual=str(error)[:300],
                allowed="a bucket that exists and credentials that may list, read and write it",
                next_step="check the URL, the region and the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, ...)",
            ) from None  # fmt: skip


@cache
def _open(place: str) -> tuple[Any, str]:
    import pyarrow.fs as fs

    if not is_url(place):
        return fs.LocalFileSystem(), str(Path(place).absolute())
    import fsspec  # a fifth of a second, which a folder on a disk does not need
    import pyarrow as pa

    address = place
    if place.startswith("s3://") and "allow_delayed_open" not in place:
        address += ("&" if "?" in place else "?") + "allow_delayed_open=true"  # reads a small object in one request
    try:
        if place.partition("://")[0] in OF_PYARROW:
            filesystem, path = fs.FileSystem.from_uri(address)
        else:
            filesystem, path = fsspec.core.url_to_fs(place)
            filesystem = fs.PyFileSystem(fs.FSSpecHandler(filesystem))
    except (pa.ArrowException, ImportError, OSError, ValueError) as error:
        raise UserError(
            f"{place} is not a location that can be opened", actual=str(error)[:300],
            allowed="a path, s3://, gs://, abfs://, or what an installed fsspec library opens",
        ) from None  # fmt: skip
    return filesystem, path.rstrip("/")
