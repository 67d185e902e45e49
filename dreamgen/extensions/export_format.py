"""Export formats: what a format declares, and the registry of all formats.

`docs/extending/export_format.md` shows a complete format. `Any` replaces classes of the `export` package, which this
module must not import: `EpisodeStore` (export/episode_store.py), `DatasetSpec` (export/spec.py), `Workers`
(export/workers.py), `Findings`, `Finding` and `Code` (export/check), `Change` (export/check/repair).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dreamgen.extensions.registry import Registry

if TYPE_CHECKING:
    from dreamgen.config.settings import ExportSettings

BYTES_PER_ROW = 1000  # vectors, index columns and statistics of a frame; 44 values of state and of action take 400


class DatasetWriter(Protocol):
    """Writes a dataset."""

    def __call__(self, root: Path, done_markers: Path, episodes: Any, spec: Any, workers: Any, /) -> None:
        """Write the dataset, or the part of it that an earlier call did not write.

        Args:
            root: Folder of the dataset. It exists, and is empty unless the format is resumable.
            done_markers: A folder outside the dataset in which a resumable format records which files are complete.
            episodes: `EpisodeStore`, numbered from 0.
            spec: `DatasetSpec`: names, sizes and frame rate that all episodes share.
            workers: `Workers`, which call functions in several processes. Their number must not change the output.
        """
        ...


class DatasetChecker(Protocol):
    """Checks a dataset."""

    def __call__(self, path: Path, fast: bool, num_workers: int | None, findings: Any, /) -> None:
        """Add a finding for each defect.

        Args:
            path: The dataset; `FormatReader.recognizes` returned True for it.
            fast: Decode no images.
            num_workers: Number of processes; one per core if None.
            findings: `Findings`, to which `add` reports. Damaged data must never raise.
        """
        ...


@dataclass(frozen=True)
class DatasetSize:
    """What is known about the size of a dataset before it is written.

    Args:
        video_bytes: Total size of the clips' mp4 files.
        num_frames: Total number of frames.
        frame_bytes: Size of one decoded frame.
    """

    video_bytes: int
    num_frames: int
    frame_bytes: int


def size_with_videos(size: DatasetSize, settings: ExportSettings) -> int:
    """Return the size in bytes of a format that copies the mp4 files and stores one row per frame."""
    return size.video_bytes + size.num_frames * BYTES_PER_ROW


@dataclass(frozen=True, kw_only=True)
class FormatReader:
    """What `dreamgen check` and the report need to read datasets of a format, written by DreamGen or not.

    Args:
        layout: What a dataset of the format looks like on disk, for the error about a path that no format recognizes.
        recognizes: Whether a file or folder is a dataset of the format. It must not raise.
        check: Finds defects.
        num_episodes: Number of episodes, or None if the metadata does not say. May raise UserError.
        repair: For `check --fix`: takes the path and the findings; returns the `Change`s that it made, and a sentence
            for each repair that would not have been safe. None if nothing can be repaired.
        codes: Codes of findings that only this format has; `export/check/codes.py` holds those that formats share.
    """

    layout: str
    recognizes: Callable[[Path], bool]
    check: DatasetChecker
    num_episodes: Callable[[Path], int | None]
    repair: Callable[[Path, Sequence[Any]], tuple[list[Any], list[str]]] | None = None
    codes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """A dataset format that `dreamgen export` writes and `dreamgen check` reads.

    Args:
        name: What users write in `export.formats`; also the name of the dataset's folder.
        summary: What it is and who reads it, in a line, for the dataset card and the documentation.
        write: Writes a dataset.
        reader: Reads it for `check` and the report. Formats may share one.
        load_example: Code or command for the dataset card that loads the dataset; takes the `DatasetSpec`.
        is_resumable: Whether `write` can continue in the folder of a stopped call; if not, it starts from scratch.
        needs_states: Whether episodes without `observation.state` cannot be written.
        estimate_bytes: Approximate size of the dataset on disk.
        card_metadata: Entries for the YAML front matter of the dataset card.
        hub_tag: Git tag for uploaded datasets.
    """

    name: str
    summary: str
    write: DatasetWriter
    reader: FormatReader
    load_example: Callable[[Any], str]
    is_resumable: bool = False
    needs_states: bool = False
    estimate_bytes: Callable[[DatasetSize, ExportSettings], int] = size_with_videos
    card_metadata: Mapping[str, Any] = field(default_factory=dict)
    hub_tag: str | None = None


BUILTIN = {
    "lerobot-v3.0": "export.formats.lerobot:LEROBOT_V30",
    "lerobot-v2.1": "export.formats.lerobot:LEROBOT_V21",
    "robomimic": "export.formats.robomimic:ROBOMIMIC",
    "aloha": "export.formats.aloha:ALOHA",
}
EXPORT_FORMATS: Registry[ExportFormat] = Registry("export format", "dreamgen.export_formats", BUILTIN)


def reader_of(path: Path) -> FormatReader | None:
    """Return the reader of the first format that recognizes a dataset, or None.

    Formats of other packages come first, because robomimic's reader accepts any folder with a single HDF5 file.
    """
    for name in sorted(EXPORT_FORMATS.names(), key=BUILTIN.__contains__):
        reader = EXPORT_FORMATS.get(name).reader
        if reader.recognizes(path):
            return reader
    return None
