"""Which files are videos and pictures by their names, where they lie in a folder, and what else is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

# What FFmpeg reads in one file; each is opened by its content, whatever its name.
VIDEO_SUFFIXES = (
    ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".ogv", ".wmv", ".flv",
    ".3gp", ".mxf",
)  # fmt: skip
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
NUM_NAMES_SHOWN = 5


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders, relative to it, sorted.

    Hidden files and folders are left out, links to folders are not followed, and sub-folders that are LeRobot datasets
    of their own are not entered.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield Path(path.name)
        elif not path.is_symlink() and not is_dataset(path):
            yield from (Path(path.name) / file for file in files_below(path))


def is_dataset(folder: Path) -> bool:
    """Return whether a folder is a LeRobot dataset."""
    return (folder / "meta" / "info.json").is_file()


def is_video(path: Path) -> bool:
    """Return whether a file has the name of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def named(paths: Iterable[Path | str]) -> str:
    """Return the first few names as text, and how many more there are."""
    names = [Path(path).as_posix() for path in paths]
    rest = f" and {len(names) - NUM_NAMES_SHOWN} more" if len(names) > NUM_NAMES_SHOWN else ""
    return ", ".join(names[:NUM_NAMES_SHOWN]) + rest


def not_used(paths: Iterable[Path], reason: str) -> list[str]:
    """Return a note that names files which are not used and why; none for no files."""
    paths = list(paths)
    return [f"{len(paths)} files are not used, {reason}: {named(paths)}"] if paths else []
