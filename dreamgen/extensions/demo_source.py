"""Demonstration sources: the layouts that `dreamgen prepare` reads, and the registry that holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreamgen.extensions.registry import Registry

if TYPE_CHECKING:
    from dreamgen.config.settings import PrepareSettings
    from dreamgen.prepare.sources.source import Source


@dataclass(frozen=True, kw_only=True)
class DemoSource:
    """A layout of demonstrations on disk.

    Args:
        name: Name in the registry.
        summary: The layout in words, with the files that it is recognized by; listed where no layout is recognized.
        recognizes: Whether an existing file or folder has this layout; looks at names only and decodes nothing.
        open: Lists the demonstrations, with the settings for camera, number of episodes and caption.
            It raises UserError if the source as a whole cannot be read; one bad clip is returned with `refused` set.
        has_cameras: Whether `prepare.cameras` can choose several cameras.
    """

    name: str
    summary: str
    recognizes: Callable[[Path], bool]
    open: Callable[[Path, PrepareSettings], Source]
    has_cameras: bool = False


# `recognize` tries them in reverse: a package may claim folders that a more general built-in would take.
DEMO_SOURCES: Registry[DemoSource] = Registry(
    "demonstration source",
    "dreamgen.demo_sources",
    {
        "plain": "dreamgen.prepare.sources.folders:PLAIN",
        "gr1": "dreamgen.prepare.sources.folders:GR1",
        "lerobot": "dreamgen.prepare.sources.lerobot:LEROBOT",
    },
)


def recognize(path: Path) -> DemoSource | None:
    """Return the source that recognizes a file or folder: those of other packages first, then LeRobot, GR1, plain."""
    sources = [source for _, source in DEMO_SOURCES.items()]
    return next((source for source in reversed(sources) if source.recognizes(path)), None)
