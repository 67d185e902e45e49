"""Where the packets of each episode of one camera are, ready to be copied: columns of numbers, however many there are.

Axes: N episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from dreamgen.data.lerobot.episode_source import VideoSource
from dreamgen.data.lerobot.episodes import Episodes
from dreamgen.data.lerobot.video import SpanInfo, VideoSpan, inspect_spans, reencode_span
from dreamgen.data.timeline import frame_index_at
from dreamgen.errors import UserError
from export.convert.source import SourceDataset
from export.workers import Workers

SPANS_PER_TASK = 50


@dataclass(frozen=True)
class SourceVideos(VideoSource):
    """One camera's videos of a source dataset.

    Args:
        episodes: Of the source.
        camera: The video feature.
        fps: Frames a second.
        folder: Holds the videos that were encoded again.
        is_reencoded_N: Which were, bool.
    """

    episodes: Episodes
    camera: str
    fps: Fraction
    folder: Path
    is_reencoded_N: np.ndarray

    def __iter__(self) -> Iterator[VideoSpan]:
        return map(self.span, range(len(self.episodes)))

    def span(self, place: int) -> VideoSpan:
        """Return where the episode at this place is."""
        num_frames = int(self.episodes.length_N[place])
        if self.is_reencoded_N[place]:
            return VideoSpan(self.reencoded_file(place), num_frames, 0)
        from_s_N = self.episodes.cameras[self.camera].from_s_N
        first = 0 if from_s_N is None else frame_index_at(float(from_s_N[place]), self.fps)
        return VideoSpan(self.episodes.root / self.episodes.file_name(place, self.camera), num_frames, first)

    def reencoded_file(self, place: int) -> Path:
        """Return the path for an episode's video that is encoded again."""
        return self.folder / f"{self.camera}-{int(self.episodes.index_N[place]):06d}.mp4"


def locate_videos(
    dataset: SourceDataset, camera: str, folder: Path, reencode: bool, workers: Workers
) -> tuple[SourceVideos, list[str]]:
    """Find the packets of each episode and, where wanted, encode again what cannot be copied.

    Args:
        dataset: The source.
        camera: A video feature.
        folder: For videos that are encoded again.
        reencode: Whether to encode again.
        workers: Inspect and encode.

    Returns:
        The videos, and notes for the user.

    Raises:
        UserError: if videos cannot be copied and `reencode` is False.
    """
    episodes, notes = dataset.episodes, []
    num_bytes_N, encoding_N, delay_N = np.zeros((3, len(episodes)), np.int64)
    videos = SourceVideos(
        num_bytes_N, encoding_N, delay_N, episodes, camera, dataset.fps, folder, np.zeros(len(episodes), bool)
    )
    encodings: dict[str, int] = {}
    problems: dict[int, str] = {}

    def take(place: int, info: SpanInfo) -> None:
        num_bytes_N[place], delay_N[place] = info.num_bytes, info.delay
        encoding_N[place] = encodings.setdefault(info.encoding, len(encodings))

    batches = list(_batches(episodes, camera))
    results = workers.run(partial(inspect_videos, videos[place_N]) for place_N in batches)
    for place_N, found in zip(batches, results, strict=True):
        for place, (info, is_alone) in zip(place_N.tolist(), found, strict=True):
            take(place, info)
            length = int(episodes.length_N[place])
            if is_alone and info.num_frames_in_file != length:
                notes.append(f"episode {episodes.index_N[place]}, {camera}: the video has {info.num_frames_in_file} "
                             f"frames, the table {length} rows: the frames beyond them are left out")  # fmt: skip
            if info.problem:
                problems[place] = info.problem
    problems = dict(sorted(problems.items()))
    if problems and not reencode:
        raise _cannot_copy(videos, problems)
    tasks = (partial(reencode_span, videos.reencoded_file(n), videos.span(n), dataset.fps) for n in problems)
    for (place, problem), info in zip(problems.items(), workers.run(tasks), strict=True):
        take(place, info)
        notes.append(f"episode {episodes.index_N[place]}, {camera}: encoded again, because {problem}")
    is_reencoded_N = np.isin(np.arange(len(episodes)), list(problems))
    return replace(videos, is_reencoded_N=is_reencoded_N), notes


def inspect_videos(videos: SourceVideos) -> list[tuple[SpanInfo, bool]]:
    """Inspect the packets of some episodes; those of one mp4 are neighbors.

    Returns:
        What was found of each, and whether it has an mp4 to itself.
    """
    found = []
    for path, own in groupby(videos, key=lambda span: span.path):
        spans = list(own)
        is_alone = len(spans) == 1 and spans[0].first_frame == 0
        found += [(info, is_alone) for info in inspect_spans(path, spans, videos.fps)]
    return found


def _batches(episodes: Episodes, camera: str) -> Iterator[np.ndarray]:
    """Yield the places of a task's episodes: those of one mp4 together, and several short mp4s in one task."""
    batch: list[np.ndarray] = []
    for place_N in episodes.cameras[camera].by_file(np.arange(len(episodes))):
        batch.append(place_N)
        if sum(map(len, batch)) >= SPANS_PER_TASK:
            yield np.concatenate(batch)
            batch = []
    if batch:
        yield np.concatenate(batch)


def _cannot_copy(videos: SourceVideos, problems: dict[int, str]) -> UserError:
    shown = [f"episode {videos.episodes.index_N[place]}: {reason}" for place, reason in list(problems.items())[:10]]
    more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
    return UserError(
        f"{len(problems)} videos of {videos.camera} cannot be copied without encoding them again",
        actual="; ".join([*shown, *more]), allowed="an episode begins with a key frame and frame i is at i / fps",
        next_step="--reencode encodes these, and only these, again",
    )  # fmt: skip
