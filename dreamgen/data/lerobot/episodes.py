"""The episodes of a LeRobot dataset as columns of numbers: a hundred thousand of them take a few megabytes.

Axes: N episodes.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import numpy as np

from dreamgen.errors import UserError
from dreamgen.run.files import inside

NO_FILE = -1


@dataclass(frozen=True)
class Episode:
    """Where one episode's rows and pictures are.

    Args:
        index: Its number in the dataset.
        length: Frames, as the metadata says.
        tasks: Task strings, as the metadata lists them.
        data_file: Parquet with its rows.
        shares_file: True when `data_file` holds rows of other episodes too.
        videos: Camera -> mp4; it need not exist.
        spans_s: Camera -> from and to in its mp4, in seconds; empty when each episode has its own mp4.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    data_file: Path
    shares_file: bool
    videos: dict[str, Path]
    spans_s: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class FilePlaces:
    """Which file each episode lies in, and where.

    Args:
        chunk_N: Chunk, int64; `NO_FILE` for an episode without one.
        file_N: File of the chunk in v3.0; in v2.x the episode's number.
        from_s_N: v3.0 videos: where it begins, in seconds.
        to_s_N: And where it ends.
    """

    chunk_N: np.ndarray
    file_N: np.ndarray
    from_s_N: np.ndarray | None = None
    to_s_N: np.ndarray | None = None

    def __getitem__(self, which: slice | np.ndarray) -> FilePlaces:
        return FilePlaces(*(None if column_N is None else column_N[which] for column_N in vars(self).values()))

    def files(self) -> np.ndarray:
        """Return chunk and file of each file once, in order, int64 of shape (files, 2)."""
        pairs_N2 = np.stack([self.chunk_N, self.file_N], axis=1)
        return np.unique(pairs_N2[self.file_N != NO_FILE], axis=0)


@dataclass(frozen=True)
class Episodes(Sequence[Episode]):
    """Episodes, each made when it is asked for; a slice holds only its own columns.

    Args:
        root: The dataset's folder, resolved.
        data_path: Template of the tables' paths.
        video_path: Template of the videos' paths.
        is_shared: v3.0: a file holds several episodes.
        index_N: Their numbers, int64.
        length_N: Their frames, int64.
        task_lists: Every list of tasks that occurs, once.
        task_list_N: Which of these is an episode's.
        data: Where their rows are.
        cameras: Video feature -> where their pictures are.
    """

    root: Path
    data_path: str
    video_path: str
    is_shared: bool
    index_N: np.ndarray
    length_N: np.ndarray
    task_lists: tuple[tuple[str, ...], ...]
    task_list_N: np.ndarray
    data: FilePlaces
    cameras: dict[str, FilePlaces]

    def __len__(self) -> int:
        return len(self.index_N)

    @overload
    def __getitem__(self, which: int) -> Episode: ...
    @overload
    def __getitem__(self, which: slice | np.ndarray) -> Episodes: ...
    def __getitem__(self, which):
        if isinstance(which, slice | np.ndarray):
            return replace(
                self, index_N=self.index_N[which], length_N=self.length_N[which], data=self.data[which],
                task_list_N=self.task_list_N[which],
                cameras={camera: places[which] for camera, places in self.cameras.items()},
            )  # fmt: skip
        place = range(len(self))[which]
        with_file = {camera: own for camera, own in self.cameras.items() if own.file_N[place] != NO_FILE}
        return Episode(
            int(self.index_N[place]), int(self.length_N[place]), self.task_lists[self.task_list_N[place]],
            self._path(self.data_path, self.data, place), self.is_shared,
            {camera: self._path(self.video_path, own, place, camera) for camera, own in with_file.items()},
            {camera: (float(own.from_s_N[place]), float(own.to_s_N[place])) for camera, own in with_file.items()
             if own.from_s_N is not None},
        )  # fmt: skip

    def __iter__(self) -> Iterator[Episode]:
        return map(self.__getitem__, range(len(self)))

    def video_file(self, camera: str, place: int) -> Path:
        """Return the mp4 of a camera that the episode at this place lies in."""
        return self._path(self.video_path, self.cameras[camera], place, camera)

    def data_files(self) -> Iterator[Path]:
        """Yield each table once."""
        for chunk, file in self.data.files().tolist():
            yield self.root / self._filled(self.data_path, chunk, file)

    def video_files(self, camera: str) -> Iterator[Path]:
        """Yield each mp4 of a camera once."""
        for chunk, file in self.cameras[camera].files().tolist():
            yield self.root / self._filled(self.video_path, chunk, file, camera)

    def check_paths(self, named_by: str) -> None:
        """Make sure that no file lies outside of the dataset.

        Args:
            named_by: Where the templates stand, for the error.

        Raises:
            UserError: naming the template and the path.
        """
        sources = [("data_path", self.data_path, self.data, None)]
        sources += [("video_path", self.video_path, places, camera) for camera, places in self.cameras.items()]
        for key, template, places, camera in sources:
            known = ("chunk_index", "file_index") if self.is_shared else ("episode_chunk", "episode_index")
            check_template(template, f"{named_by}: {key}", (*known, *(["video_key"] if camera else [])))
            for chunk, file in places.files().tolist():
                inside(self.root, self._filled(template, chunk, file, camera), f"{named_by}: {key}")

    def _path(self, template: str, places: FilePlaces, place: int, camera: str | None = None) -> Path:
        return self.root / self._filled(template, int(places.chunk_N[place]), int(places.file_N[place]), camera)

    def _filled(self, template: str, chunk: int, file: int, camera: str | None = None) -> str:
        if self.is_shared:
            return template.format(chunk_index=chunk, file_index=file, video_key=camera)
        return template.format(episode_chunk=chunk, episode_index=file, video_key=camera)


def check_template(template: str, named_by: str, known: Sequence[str]) -> None:
    """Make sure that a path template that came from data has only known fields, with a plain width each.

    Raises:
        UserError: if it has any other field, conversion or format.
    """
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{named_by} is not a path template", actual=template, allowed=str(error)) from None
    for _, name, spec, conversion in fields:
        plain_width = not spec or (len(spec) <= 4 and spec.rstrip("d").isdigit())
        if name is not None and (name not in known or conversion or not plain_width):
            raise UserError(
                f"{named_by} is not a path template",
                actual=template,
                allowed=f"fields {', '.join(sorted(known))}, with a width such as :03d",
            )
    try:
        template.format(**{name: "" if name == "video_key" else 0 for name in known})
    except (ValueError, TypeError) as error:
        raise UserError(f"{named_by} cannot be filled in", actual=template, allowed=str(error)) from None
