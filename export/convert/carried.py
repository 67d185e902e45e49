"""What a conversion takes over as it is: modality.json, the card, and whatever else no version of LeRobot writes."""

from __future__ import annotations

import shutil
from pathlib import Path

from dreamgen.core.files import inside
from export.convert.source import SourceDataset

OF_A_VERSION = {"meta/info.json", "meta/stats.json", "meta/tasks.jsonl", "meta/tasks.parquet", "meta/episodes.jsonl",
                "meta/episodes_stats.jsonl"}  # fmt: skip
FOLDERS_OF_A_VERSION = {"data", "videos", "images", "meta/episodes", ".git", ".cache"}


def carry_other_files(root: Path, dataset: SourceDataset) -> list[str]:
    """Copy files that belong to no version.

    Returns:
        Their names.

    Raises:
        UserError: if one is a link that leads outside the dataset.
    """
    carried = []
    for path in sorted(dataset.root.rglob("*")):
        name = path.relative_to(dataset.root).as_posix()
        folders = {parent.as_posix() for parent in Path(name).parents} | {name}
        if path.is_dir() or name in OF_A_VERSION or folders & FOLDERS_OF_A_VERSION:
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(inside(dataset.root, name, str(path)), root / name)
        carried.append(name)
    return carried
