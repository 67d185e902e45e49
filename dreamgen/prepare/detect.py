"""Open demonstrations: find the source that recognizes a path, after fetching it where it names a hub dataset."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from dreamgen.config.settings import PrepareSettings
from dreamgen.errors import UserError
from dreamgen.extensions.demo_source import DEMO_SOURCES, DemoSource, recognize
from dreamgen.prepare.hub_dataset import hub_dataset
from dreamgen.prepare.sources.source import Source, with_bare_instruction
from dreamgen.run.files import existing_folder

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
NUM_NAMES_SHOWN = 6


def open_source(demos: str, settings: PrepareSettings, prompt_prefix: str = "", may_download: bool = True) -> Source:
    """Open demonstrations in any of the registered layouts.

    Args:
        demos: A file or folder, or the hub id `owner/name` of a LeRobot dataset.
        settings: Which camera, how many episodes, which caption.
        prompt_prefix: Removed from prompts that begin with it.
        may_download: Whether a hub dataset may be downloaded.

    Raises:
        UserError: if the path does not exist, is empty, has no known layout, or has no clips.
    """
    _check_settings(settings)
    root = Path(demos)
    if not root.exists() and HUB_ID.fullmatch(demos) and not root.parent.exists():
        root = hub_dataset(demos, may_download)
    kind = _kind_of(root)
    if settings.cameras is not None and not kind.has_cameras:
        raise UserError(
            "prepare.cameras needs a dataset with several video features", actual=str(root),
            allowed="a LeRobot dataset (meta/info.json)",
        )  # fmt: skip
    source = kind.open(root, settings)
    if not source.clips:
        raise UserError(f"{root} ({source.layout}) has no clips", allowed="at least one")
    clips = tuple(with_bare_instruction(clip, prompt_prefix) for clip in source.clips)
    features = replace(source.features, source={"path": demos, "layout": source.layout})
    return replace(source, clips=clips, features=features)


def _check_settings(settings: PrepareSettings) -> None:
    if settings.max_episodes is not None and settings.max_episodes < 1:
        raise UserError("prepare.max_episodes is too small", actual=settings.max_episodes, allowed="at least 1")
    if settings.cameras is not None and (settings.camera is not None or not settings.cameras):
        raise UserError(
            "prepare.camera and prepare.cameras do not go together" if settings.camera else "prepare.cameras is empty",
            allowed="one of the two; cameras is a list of names",
        )


def _kind_of(root: Path) -> DemoSource:
    if root.exists() and (kind := recognize(root)):
        return kind
    names = sorted(path.name for path in existing_folder(root, "demos").iterdir())
    raise UserError(
        f"{root} has none of the layouts that can be read",
        actual=", ".join(names[:NUM_NAMES_SHOWN]) + (", ..." if len(names) > NUM_NAMES_SHOWN else ""),
        allowed="; ".join(source.summary for _, source in DEMO_SOURCES.items()),
    )
