"""What a conversion takes over as it is: modality.json, the card, and whatever else no version of LeRobot writes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dreamgen.run.files import inside
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
    for folder, folders, files in os.walk(dataset.root):
        place = Path(folder).relative_to(dataset.root)
        # What a version keeps for each episode is not even listed.
        folders[:] = sorted(name for name in folders if (place / name).as_posix() not in FOLDERS_OF_A_VERSION)
        for name in sorted((place / file).as_posix() for file in files):
            if name not in OF_A_VERSION:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(inside(dataset.root, name, str(dataset.root / name)), root / name)
                carried.append(name)
    return carried
