"""Where the packets of each episode of one camera lie, ready to be copied: columns of numbers, whatever their count.

Axes: N episodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import overload

import numpy as np

from dreamgen.data.lerobot.episodes import Episodes
from dreamgen.data.timeline import frame_index_at
from dreamgen.errors import UserError
from export.convert.source import SourceDataset
from export.convert.videos import Span, SpanLook, encode_span, inspect_spans
from export.workers import Workers

LOOKS_PER_TASK = 50


@dataclass(frozen=True)
class Clips(Sequence[Span]):
    """One camera's episodes.

    Args:
        episodes: Of the source.
        camera: The video feature.
        fps: Frames a second.
        folder: Where videos lie that were encoded again.
        again_N: Which were, bool.
        num_bytes_N: Size of each episode's packets, int64.
        delay_N: By how many places a packet stands behind its frame's turn: 0 without B-frames.
        encoding_N: Equal where packets may share a file, int64.
    """

    episodes: Episodes
    camera: str
    fps: Fraction
    folder: Path
    again_N: np.ndarray
    num_bytes_N: np.ndarray
    delay_N: np.ndarray
    encoding_N: np.ndarray

    @classmethod
    def of(cls, dataset: SourceDataset, camera: str, folder: Path) -> Clips:
        """Return a camera's episodes before they are looked at."""
        nothing_3N = np.zeros((3, len(dataset.episodes)), np.int64)
        again_N = np.zeros(len(dataset.episodes), bool)
        return cls(dataset.episodes, camera, dataset.fps, folder, again_N, *nothing_3N)

    def __len__(self) -> int:
        return len(self.episodes)

    @overload
    def __getitem__(self, which: int) -> Span: ...
    @overload
    def __getitem__(self, which: slice | np.ndarray) -> Clips: ...
    def __getitem__(self, which):
        if isinstance(which, slice | np.ndarray):
            columns = {name: values[which] for name, values in vars(self).items() if name.endswith("_N")}
            return replace(self, episodes=self.episodes[which], **columns)
        place = range(len(self))[which]
        num_frames = int(self.episodes.length_N[place])
        if self.again_N[place]:
            return Span(self.again_file(place), 0, num_frames)
        from_s_N = self.episodes.cameras[self.camera].from_s_N
        first = 0 if from_s_N is None else frame_index_at(float(from_s_N[place]), self.fps)
        return Span(self.episodes.video_file(self.camera, place), first, num_frames)

    def __iter__(self) -> Iterator[Span]:
        return map(self.__getitem__, range(len(self)))

    def again_file(self, place: int) -> Path:
        """Return where an episode's video lies once it is encoded again."""
        return self.folder / f"{self.camera}-{int(self.episodes.index_N[place]):06d}.mp4"

    def set(self, place: int, look: SpanLook, encodings: dict[str, int]) -> None:
        """Take in what was seen of one, while the columns are being filled."""
        self.num_bytes_N[place], self.delay_N[place] = look.num_bytes, look.delay
        self.encoding_N[place] = encodings.setdefault(look.encoding, len(encodings))


def ready_clips(
    dataset: SourceDataset, folder: Path, reencode: bool, workers: Workers
) -> tuple[dict[str, Clips], list[str]]:
    """Return, for each camera, where each episode's packets lie, ready to be copied, and what the user should know.

    Args:
        dataset: The source.
        folder: Where videos go that have to be encoded again.
        reencode: Whether that is wanted.
        workers: Who looks and encodes.

    Raises:
        UserError: if videos cannot be copied and encoding them again is not wanted.
    """
    clips, notes = {}, []
    for camera in dataset.cameras:
        clips[camera], own = _ready_clips(Clips.of(dataset, camera, folder), reencode, workers)
        notes += own
    return clips, notes


def _ready_clips(clips: Clips, reencode: bool, workers: Workers) -> tuple[Clips, list[str]]:
    notes: list[str] = []
    uncopyable: dict[int, str] = {}
    encodings: dict[str, int] = {}
    batches = list(_by_file(clips))
    tasks = (partial(inspect_clips, clips[place_N]) for place_N in batches)
    for place_N, found in zip(batches, workers.run(tasks), strict=True):
        for place, (look, is_alone) in zip(place_N.tolist(), found, strict=True):
            clips.set(place, look, encodings)
            index, length = int(clips.episodes.index_N[place]), int(clips.episodes.length_N[place])
            if is_alone and look.num_in_file != length:
                notes.append(f"episode {index}, {clips.camera}: the video has {look.num_in_file} frames, the table "
                             f"{length} rows: the frames beyond them are left out")  # fmt: skip
            if look.problem:
                uncopyable[place] = look.problem
    if uncopyable and not reencode:
        raise _cannot_copy(clips, dict(sorted(uncopyable.items())))
    again = (partial(encode_span, clips.again_file(place), clips[place], clips.fps) for place in uncopyable)
    looks = list(zip(uncopyable.items(), workers.run(again), strict=True))
    for (place, reason), look in looks:
        clips.set(place, look, encodings)
        clips.again_N[place] = True
        notes.append(f"episode {clips.episodes.index_N[place]}, {clips.camera}: encoded again, because {reason}")
    return clips, notes


def _by_file(clips: Clips) -> Iterator[np.ndarray]:
    """Share episodes out to tasks: those of one mp4 together, and several short mp4s in one task."""
    places = clips.episodes.cameras[clips.camera]
    order_N = np.lexsort((np.arange(len(clips)), places.file_N, places.chunk_N))
    is_next = (np.diff(places.file_N[order_N]) != 0) | (np.diff(places.chunk_N[order_N]) != 0)
    begin = 0
    for end in [*(np.flatnonzero(is_next) + 1).tolist(), len(clips)]:
        if end - begin >= LOOKS_PER_TASK or end == len(clips):
            yield order_N[begin:end]
            begin = end


def inspect_clips(clips: Clips) -> list[tuple[SpanLook, bool]]:
    """Look at the packets of some episodes; those of one mp4 are neighbours.

    Returns:
        What was seen of each, and whether it has an mp4 to itself.
    """
    found = []
    for path, spans in groupby(clips, key=lambda span: span.path):
        spans = list(spans)
        is_alone = len(spans) == 1 and spans[0].first_frame == 0
        found += [(look, is_alone) for look in inspect_spans(path, spans, clips.fps)]
    return found


def _cannot_copy(clips: Clips, problems: dict[int, str]) -> UserError:
    shown = [f"episode {clips.episodes.index_N[place]}: {reason}" for place, reason in list(problems.items())[:10]]
    more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
    return UserError(
        f"{len(problems)} videos of {clips.camera} cannot be copied without encoding them again",
        actual="; ".join([*shown, *more]), allowed="an episode begins with a key frame and frame i is at i / fps",
        next_step="--reencode encodes these, and only these, again",
    )  # fmt: skip
