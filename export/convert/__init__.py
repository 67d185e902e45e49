"""`dreamgen convert`: LeRobot v2.0, v2.1 or v3.0 -> v2.1 or v3.0; the source is only read, and packets are copied."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dreamgen.config.settings import ConvertSettings
from dreamgen.data.lerobot.file_layout import FileLimits
from dreamgen.data.lerobot.writer import write_v21, write_v30
from dreamgen.errors import UserError
from dreamgen.run.files import atomic_folder, existing_folder, inside
from dreamgen.run.records import StageResult
from export.convert.episodes import converted_episodes
from export.convert.source import SourceDataset, first_ten, open_source
from export.convert.videos import locate_videos
from export.manifest import MANIFEST, write_manifest
from export.space import check_space
from export.workers import Workers

__all__ = ["convert_dataset"]

MAX_EPISODES_PER_FILE = 1000
# Files and folders that the writer makes itself, or that are not copied.
VERSION_FILES = {"meta/info.json", "meta/stats.json", "meta/tasks.jsonl", "meta/tasks.parquet", "meta/episodes.jsonl",
                 "meta/episodes_stats.jsonl", MANIFEST}  # fmt: skip
VERSION_FOLDERS = {"data", "videos", "images", "meta/episodes", ".git", ".cache"}


def convert_dataset(source: str | Path, target: str | Path, settings: ConvertSettings) -> StageResult:
    """Write a LeRobot dataset again in another version.

    Args:
        source: Folder of the dataset; nothing in it is changed.
        target: A folder that does not exist yet; it becomes whole or stays absent.
        settings: The version, and whether episodes that cannot be copied are encoded again.

    Returns:
        The dataset, counts, and a note for whatever differs from the source.

    Raises:
        UserError: if the source cannot be read, the target exists, or something cannot be converted.
    """
    source, target = existing_folder(source, "convert"), Path(target)
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(
            "the target must be outside the source dataset",
            actual=str(target),
            next_step="choose another target folder",
        )
    dataset, notes = open_source(source)
    version = settings.to or ("v2.1" if dataset.version == "v3.0" else "v3.0")
    if version == dataset.version:
        raise UserError(f"{source} is already LeRobot {version}", next_step="choose another version with --to")
    check_space(target.parent, {target.name: dataset.num_bytes}, 0.0)
    # A task opens a file that many episodes share once: with more episodes, more of them to a task.
    per_task = min(max(len(dataset.episodes) // 64, 20), 500)
    with Workers(settings.num_workers, option="--num_workers") as workers, atomic_folder(target) as folder:
        staging = folder / ".staging"
        staging.mkdir()
        videos = {}
        for camera in dataset.cameras:
            videos[camera], camera_notes, made = locate_videos(dataset, camera, staging, settings.reencode, workers)
            notes += camera_notes
            dataset = dataset.stored_as(camera, made) if made else dataset
        episodes, row_notes = converted_episodes(dataset, videos, version, staging, per_task, workers)
        if version == "v3.0":
            limits = FileLimits(max_episodes=MAX_EPISODES_PER_FILE)
            write_v30(folder, staging, episodes, workers, "convert: v3.0", limits)
        else:
            write_v21(folder, staging, episodes, workers, "convert: v2.1", per_task)
        shutil.rmtree(staging)
        copied = copy_other_files(folder, dataset)
        write_manifest(folder, settings.num_workers)
    metrics = {
        "from": dataset.version,
        "to": version,
        "episodes": len(dataset.episodes),
        "frames": int(dataset.episodes.length_N.sum()),
        "cameras": len(dataset.images),
        "files_carried": len(copied),
    }
    return StageResult("convert", {"dataset": target}, metrics, [*notes, *group_notes(row_notes)])


def copy_other_files(root: Path, dataset: SourceDataset) -> list[str]:
    """Copy files that belong to no version, such as modality.json and the card.

    Returns:
        Their names.

    Raises:
        UserError: if one is a link that leads outside the dataset.
    """
    copied = []
    for folder, folders, files in os.walk(dataset.root):
        place = Path(folder).relative_to(dataset.root)
        # Folders with a file an episode are not even listed.
        folders[:] = sorted(name for name in folders if (place / name).as_posix() not in VERSION_FOLDERS)
        for name in sorted((place / file).as_posix() for file in files):
            if name not in VERSION_FILES:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(inside(dataset.root, name, str(dataset.root / name)), root / name)
                copied.append(name)
    return copied


def group_notes(notes: list[tuple[int, str]]) -> list[str]:
    """Merge notes (episode, text) that many episodes have in common."""
    episodes: dict[str, list[int]] = {}
    for index, note in notes:
        episodes.setdefault(note, []).append(index)
    return [f"{'episode' if len(own) == 1 else 'episodes'} {first_ten(own)}: {note}" for note, own in episodes.items()]
