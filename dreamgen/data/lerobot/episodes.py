"""The episodes of a LeRobot dataset as columns of numbers: about a hundred bytes each, however many there are.

Axes: N episodes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import numpy as np

from dreamgen.data.lerobot.schema import fill_template
from dreamgen.run.files import inside

NO_FILE = -1
COLUMNS = ("index", "length", "first_row", "chunk", "file", "source", "source_row", "task_list")


@dataclass(frozen=True)
class Episode:
    """Where one episode's rows and pictures are.

    Args:
        index: Its number in the dataset.
        length: Frames, as the metadata gives them.
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
        from_s_N, to_s_N = (None if own is None else own[which] for own in (self.from_s_N, self.to_s_N))
        return FilePlaces(self.chunk_N[which], self.file_N[which], from_s_N, to_s_N)

    def files(self) -> np.ndarray:
        """Return chunk and file of each file once, in order, int64 of shape (files, 2)."""
        pairs_N2 = np.stack([self.chunk_N, self.file_N], axis=1)
        return np.unique(pairs_N2[self.file_N != NO_FILE], axis=0)

    def by_file(self, order_by_N: np.ndarray) -> list[np.ndarray]:
        """Group the places of episodes by file, in the order of the files; within one, ascending in `order_by_N`."""
        order = np.lexsort((order_by_N, self.file_N, self.chunk_N))
        order = order[self.file_N[order] != NO_FILE]
        changes = (np.diff(self.file_N[order]) != 0) | (np.diff(self.chunk_N[order]) != 0)
        return np.split(order, np.flatnonzero(changes) + 1) if len(order) else []


@dataclass(frozen=True)
class Episodes(Sequence[Episode]):
    """Episodes by number, each made when it is indexed; a slice holds only its own columns.

    Args:
        root: The dataset's folder, resolved.
        data_path: Template of the tables' paths.
        video_path: Template of the videos' paths.
        is_shared: v3.0: a file holds several episodes.
        index_N: Their numbers, int64, ascending, each once.
        length_N: Their frames, int64.
        first_row_N: Number of each one's first row in the dataset, int64.
        task_lists: Every list of tasks that occurs, once.
        task_list_N: Which of these is an episode's.
        data: Where their rows are.
        cameras: Video feature -> where their pictures are.
        sources: The metadata files that list episodes, relative to the dataset.
        source_N: Which of these lists the episode.
        source_row_N: v3.0: its row there.
    """

    root: Path
    data_path: str
    video_path: str
    is_shared: bool
    index_N: np.ndarray
    length_N: np.ndarray
    first_row_N: np.ndarray
    task_lists: tuple[tuple[str, ...], ...]
    task_list_N: np.ndarray
    data: FilePlaces
    cameras: dict[str, FilePlaces]
    sources: tuple[str, ...]
    source_N: np.ndarray
    source_row_N: np.ndarray

    def __len__(self) -> int:
        return len(self.index_N)

    @overload
    def __getitem__(self, which: int) -> Episode: ...
    @overload
    def __getitem__(self, which: slice | np.ndarray) -> Episodes: ...
    def __getitem__(self, which: int | slice | np.ndarray) -> Episode | Episodes:
        if isinstance(which, slice | np.ndarray):
            columns = {name: values[which] for name, values in vars(self).items() if name.endswith("_N")}
            cameras = {camera: places[which] for camera, places in self.cameras.items()}
            return replace(self, data=self.data[which], cameras=cameras, **columns)
        place = range(len(self))[which]
        with_file = {camera: own for camera, own in self.cameras.items() if own.file_N[place] != NO_FILE}
        return Episode(
            int(self.index_N[place]), int(self.length_N[place]), self.tasks(place),
            self.root / self.file_name(place), self.is_shared,
            {camera: self.root / self.file_name(place, camera) for camera in with_file},
            {camera: (float(own.from_s_N[place]), float(own.to_s_N[place])) for camera, own in with_file.items()
             if own.from_s_N is not None and own.to_s_N is not None},
        )  # fmt: skip

    def __iter__(self) -> Iterator[Episode]:
        return map(self.__getitem__, range(len(self)))

    def tasks(self, place: int) -> tuple[str, ...]:
        """Return the tasks that the metadata lists for the episode at this place."""
        return self.task_lists[self.task_list_N[place]]

    def source(self, place: int) -> str:
        """Return the metadata file that lists the episode at this place, relative to the dataset."""
        return self.sources[self.source_N[place]]

    def file_name(self, place: int, camera: str | None = None) -> str:
        """Return the path of an episode's table, or of a camera's video of it, relative to the dataset."""
        places = self.cameras[camera] if camera else self.data
        return self._fill(int(places.chunk_N[place]), int(places.file_N[place]), camera)

    def file_names(self, camera: str | None = None) -> Iterator[str]:
        """Yield each table, or each video of a camera, once, relative to the dataset."""
        places = self.cameras[camera] if camera else self.data
        return (self._fill(chunk, file, camera) for chunk, file in places.files().tolist())

    def existing_videos(self, cameras: Sequence[str]) -> list[str]:
        """Return those of the cameras of which at least one file exists."""
        return [camera for camera in cameras
                if any((self.root / name).is_file() for name in self.file_names(camera))]  # fmt: skip

    def check_paths(self, named_by: str) -> None:
        """Make sure that no file lies outside of the dataset.

        Args:
            named_by: Where the templates are, for the error.

        Raises:
            UserError: naming the template and the path.
        """
        for camera in (None, *self.cameras):
            for name in self.file_names(camera):
                inside(self.root, name, f"{named_by}: {'video_path' if camera else 'data_path'}")

    def _fill(self, chunk: int, file: int, camera: str | None) -> str:
        names = ("chunk_index", "file_index") if self.is_shared else ("episode_chunk", "episode_index")
        values = {names[0]: chunk, names[1]: file, "video_key": camera}
        filled = fill_template(self.video_path if camera else self.data_path, values)
        assert filled is not None, "the template was checked when the schema was read"
        return filled


class EpisodeColumns:
    """Collects episodes in the order of their files, for `Episodes`.

    Args:
        cameras: v3.0: video features.
    """

    def __init__(self, cameras: Sequence[str] = ()) -> None:
        self._whole = {name: array("q") for name in COLUMNS}
        self._videos = {camera: (array("q"), array("q"), array("d"), array("d")) for camera in cameras}
        self._task_lists: dict[tuple[str, ...], int] = {}

    def add(self, tasks: tuple[str, ...], videos: dict[str, tuple[int, int, float, float]], **values: int) -> None:
        """Take in one episode: `COLUMNS` but for the task list, and chunk, file, from and to of its videos."""
        values["task_list"] = self._task_lists.setdefault(tasks, len(self._task_lists))
        for name, column in self._whole.items():
            column.append(values[name])
        for camera, (chunk, file, from_s, to_s) in self._videos.items():
            place = videos.get(camera, (NO_FILE, NO_FILE, np.nan, np.nan))
            chunk.append(place[0])
            file.append(place[1])
            from_s.append(place[2])
            to_s.append(place[3])

    def duplicates(self) -> Iterator[tuple[int, int]]:
        """Yield (number, how often) of episodes that were added more than once."""
        numbers, counts = np.unique(np.array(self._whole["index"], np.int64), return_counts=True)
        yield from zip(numbers[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True)

    def episodes(
        self, root: Path, templates: tuple[str, str], sources: Sequence[str], v2_cameras: Sequence[str] | None
    ) -> Episodes:
        """Return the episodes sorted by number, each number once.

        Args:
            root: The dataset.
            templates: data_path and video_path.
            sources: The metadata files that list episodes.
            v2_cameras: v2: video features; None in v3.0, whose rows and pictures have places of their own.
        """
        whole = {name: np.array(column, np.int64) for name, column in self._whole.items()}
        _, order = np.unique(whole["index"], return_index=True)
        own = {name: column[order] for name, column in whole.items()}
        data = FilePlaces(own["chunk"], own["file"])
        if v2_cameras is None:
            cameras = {camera: FilePlaces(*(np.array(column)[order] for column in columns))
                       for camera, columns in self._videos.items()}  # fmt: skip
        else:
            cameras = dict.fromkeys(v2_cameras, data)
            own["first_row"] = np.cumsum(own["length"]) - own["length"]
        return Episodes(
            root.resolve(), *templates, v2_cameras is None, own["index"], own["length"], own["first_row"],
            tuple(self._task_lists), own["task_list"], data, cameras, tuple(sources), own["source"], own["source_row"],
        )  # fmt: skip
