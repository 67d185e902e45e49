"""Finding out what kind of demonstrations a path holds, and opening them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from dreamgen.config.settings import PrepareSettings
from dreamgen.errors import UserError
from dreamgen.prepare.sources.folders import mp4s_in, open_gr1, open_plain
from dreamgen.prepare.sources.lerobot import open_lerobot
from dreamgen.prepare.sources.source import Source, with_bare_instruction
from dreamgen.run.files import existing_folder

LAYOUTS = (
    "a LeRobot dataset (meta/info.json); a GR1 layout (videos/*.mp4 with metadata.csv, metas/ or captions/); "
    "a folder of NAME.mp4 + NAME.txt"
)


def open_source(demos: str, settings: PrepareSettings, prompt_prefix: str = "", may_download: bool = True) -> Source:
    """Open demonstrations, whichever of the three layouts they have.

    Args:
        demos: A folder, or the hub id `owner/name` of a LeRobot v3.0 dataset.
        settings: Which camera, how many episodes, which caption.
        prompt_prefix: Taken off prompts that have it already.
        may_download: Whether a hub id may be fetched.

    Raises:
        UserError: if there is no such folder, it is empty, has no known layout, or has no clips.
    """
    if settings.max_episodes is not None and settings.max_episodes < 1:
        raise UserError("prepare.max_episodes is too small", actual=settings.max_episodes, allowed="at least 1")
    if settings.cameras is not None and (settings.camera is not None or not settings.cameras):
        raise UserError(
            "prepare.camera and prepare.cameras do not go together" if settings.camera else "prepare.cameras is empty",
            allowed="one of the two; cameras is a list of names",
        )
    root = Path(demos)
    if not root.exists() and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", demos) and not root.parent.exists():
        root = _hub_dataset(demos, may_download)
    root = existing_folder(root, "demos")
    if (root / "meta" / "info.json").is_file():
        source = open_lerobot(root, settings)
    elif settings.cameras is not None:
        raise UserError(
            "prepare.cameras needs a dataset with several video features", actual=str(root),
            allowed="a LeRobot dataset (meta/info.json)",
        )  # fmt: skip
    elif (root / "metadata.csv").is_file() or mp4s_in(root / "videos"):
        source = open_gr1(root, settings)
    elif mp4s_in(root):
        source = open_plain(root, settings)
    else:
        names = sorted(path.name for path in root.iterdir())
        raise UserError(
            f"{root} has none of the layouts that can be read",
            actual=", ".join(names[:6]) + (", ..." if len(names) > 6 else ""),
            allowed=LAYOUTS,
        )
    if not source.clips:
        raise UserError(f"{root} ({source.layout}) has no clips", allowed="at least one")
    clips = tuple(with_bare_instruction(clip, prompt_prefix) for clip in source.clips)
    features = replace(source.features, source={"path": demos, "layout": source.layout})
    return replace(source, clips=clips, features=features)


def _hub_dataset(repo_id: str, may_download: bool) -> Path:
    """Return the folder of a hub dataset; lerobot fetches what is missing of it, after an interrupted download too."""
    import httpx
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.datasets.utils import CompatibilityError
    from lerobot.utils.constants import HF_LEROBOT_HOME

    # A folder of its own and not the hub's cache, whose links would lead out of the dataset.
    root = HF_LEROBOT_HOME / repo_id
    if not may_download:
        if (root / "meta" / "info.json").is_file():
            return root
        raise UserError(
            f"{repo_id} is no folder here, and a dry run downloads nothing", allowed="a folder",
            next_step="leave out --dry_run to fetch it from the hub, or check the path",
        )  # fmt: skip
    try:
        return LeRobotDataset(repo_id, root=root).root
    except (OSError, httpx.HTTPError, CompatibilityError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{repo_id} is no folder here, and lerobot cannot fetch it, or what is missing of {root}, from the hub",
            actual=f"{type(error).__name__}: {error}",
            allowed="a folder, or a public LeRobot v3.0 dataset",
            next_step="check the path and the network, or download the dataset and give its folder",
        ) from None
