"""`convert`: LeRobot v2.0, v2.1 or v3.0 -> v2.1 or v3.0; the source is only read, and streams are copied."""

from __future__ import annotations

import shutil
from pathlib import Path

from dreamgen.config.settings import ConvertSettings
from dreamgen.errors import UserError
from dreamgen.run.files import atomic_folder, existing_folder
from dreamgen.run.records import StageResult
from export.convert.clips import ready_clips
from export.convert.passthrough import carry_other_files
from export.convert.source import open_source, some, with_episode_lines
from export.convert.statistics import dataset_statistics, with_image_statistics
from export.convert.v21 import write_v21
from export.convert.v30 import write_v30
from export.space import check_space
from export.workers import Workers

__all__ = ["convert_dataset"]

WRITERS = {"v2.1": write_v21, "v3.0": write_v30}


def convert_dataset(source: str | Path, target: str | Path, settings: ConvertSettings) -> StageResult:
    """Write a LeRobot dataset again in another version.

    Args:
        source: Folder of the dataset; nothing in it is changed.
        target: A folder that does not exist yet; it becomes whole or stays absent.
        settings: The version, and whether episodes that cannot be copied are encoded again.

    Returns:
        The dataset, counts, and a note for whatever was odd about the source or had to be changed.

    Raises:
        UserError: if the source cannot be read, the target exists, or something cannot be carried over.
    """
    source, target = existing_folder(source, "convert"), Path(target)
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError("the copy cannot lie within its source", actual=str(target), next_step="choose another target")
    dataset = open_source(source)
    version = settings.to or ("v2.1" if dataset.version == "v3.0" else "v3.0")
    if version == dataset.version:
        raise UserError(f"{source} is LeRobot {version} already", next_step="--to with another version")
    check_space(target.parent, {target.name: dataset.num_bytes}, 0.0)
    with Workers(settings.num_workers) as workers, atomic_folder(target) as folder:
        work = folder / "unfinished"
        work.mkdir()
        dataset = with_episode_lines(dataset, work)
        clips, notes = ready_clips(dataset, work, settings.reencode, workers)
        dataset = with_image_statistics(dataset, clips, work, workers)
        total, of_rows = WRITERS[version](folder, dataset, clips, workers)
        dataset_statistics(folder, dataset, version, total, workers)
        shutil.rmtree(work)
        carried = carry_other_files(folder, dataset)
    metrics = {
        "from": dataset.version,
        "to": version,
        "episodes": len(dataset.episodes),
        "frames": dataset.num_frames,
        "cameras": len(dataset.cameras),
        "files_carried": len(carried),
    }
    return StageResult("convert", {"dataset": target}, metrics, [*dataset.notes, *notes, *grouped(of_rows)])


def grouped(notes: list[tuple[int, str]]) -> list[str]:
    """Say once what is said of many episodes.

    Args:
        notes: Episode and sentence.
    """
    of: dict[str, list[int]] = {}
    for index, note in notes:
        of.setdefault(note, []).append(index)
    return [f"{'episode' if len(own) == 1 else 'episodes'} {some(own)}: {note}" for note, own in of.items()]
