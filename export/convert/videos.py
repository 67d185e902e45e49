"""Where the packets of each episode of one camera are, ready to be copied: columns of numbers, however many there are.

Axes: N episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from dreamgen.data.lerobot.episode_source import VideoSource
from dreamgen.data.lerobot.episodes import Episodes
from dreamgen.data.lerobot.reencode import encoding_for, reencode_span
from dreamgen.data.lerobot.schema import is_depth
from dreamgen.data.lerobot.video import SpanInfo, StoredAs, VideoSpan, inspect_spans
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
        begin_s_N: When each one's first frame is shown in its file, float64.
    """

    episodes: Episodes
    camera: str
    fps: Fraction
    folder: Path
    is_reencoded_N: np.ndarray
    begin_s_N: np.ndarray

    def __iter__(self) -> Iterator[VideoSpan]:
        return map(self.span, range(len(self.episodes)))

    def span(self, place: int) -> VideoSpan:
        """Return where the episode at this place is."""
        path = self.reencoded_file(place) if self.is_reencoded_N[place] else self.source_file(place)
        return VideoSpan(path, int(self.episodes.length_N[place]), float(self.begin_s_N[place]))

    def source_file(self, place: int) -> Path:
        """Return the video of the source that shows an episode."""
        return self.episodes.root / self.episodes.file_name(place, self.camera)

    def source_span_s(self, place: int) -> tuple[float, float] | None:
        """Return where an episode begins and ends in that video, or None if the video is its own."""
        places = self.episodes.cameras[self.camera]
        if places.from_s_N is None or places.to_s_N is None:
            return None
        return float(places.from_s_N[place]), float(places.to_s_N[place])

    def reencoded_file(self, place: int) -> Path:
        """Return the path for an episode's video that is encoded again."""
        return self.folder / f"{self.camera}-{int(self.episodes.index_N[place]):06d}.mp4"


def locate_videos(
    dataset: SourceDataset, camera: str, folder: Path, reencode: bool, workers: Workers
) -> tuple[SourceVideos, list[str], StoredAs | None]:
    """Find the packets of each episode and, where wanted, encode again what cannot be copied.

    Args:
        dataset: The source.
        camera: A video feature.
        folder: For videos that are encoded again.
        reencode: Whether to encode again.
        workers: Inspect and encode.

    Returns:
        The videos; notes for the user; how those that were encoded again are stored, which is how all are.

    Raises:
        UserError: if videos cannot be copied and `reencode` is False.
    """
    episodes, notes = dataset.episodes, []
    num_bytes_N, encoding_N, delay_N = np.zeros((3, len(episodes)), np.int64)
    is_reencoded_N, begin_s_N = np.zeros(len(episodes), bool), np.zeros(len(episodes))
    videos = SourceVideos(
        num_bytes_N, encoding_N, delay_N, episodes, camera, dataset.fps, folder, is_reencoded_N, begin_s_N
    )
    encodings: dict[str, int] = {}
    problems: dict[int, str] = {}
    stored: dict[int, StoredAs] = {}

    def take(place: int, info: SpanInfo) -> None:
        num_bytes_N[place], delay_N[place], begin_s_N[place] = info.num_bytes, info.delay, info.begin_s
        encoding_N[place] = encodings.setdefault(info.encoding, len(encodings))

    batches = list(_batches(episodes, camera))
    results = workers.run(partial(inspect_videos, videos[place_N]) for place_N in batches)
    for place_N, found in zip(batches, results, strict=True):
        for place, (info, is_alone) in zip(place_N.tolist(), found, strict=True):
            take(place, info)
            stored[place] = info.stored
            length = int(episodes.length_N[place])
            if is_alone and info.num_frames_in_file != length:
                notes.append(f"episode {episodes.index_N[place]}, {camera}: the video has {info.num_frames_in_file} "
                             f"frames, the table {length} rows: the frames beyond them are left out")  # fmt: skip
            if info.problem:
                problems[place] = info.problem
    problems = dict(sorted(problems.items()))
    if problems and not reencode:
        raise _cannot_copy(videos, problems)
    exact = is_depth(dataset.features[camera])
    if problems:
        problems |= _others_of_another_encoding(stored, problems, exact)
    tasks = (partial(reencode_span, videos.reencoded_file(n), videos.source_file(n), int(episodes.length_N[n]),
                     videos.source_span_s(n), dataset.fps, exact) for n in problems)  # fmt: skip
    made = None
    for (place, problem), info in zip(problems.items(), workers.run(tasks), strict=True):
        take(place, info)
        is_reencoded_N[place], made = True, info.stored
        notes.append(f"episode {episodes.index_N[place]}, {camera}: encoded again, because {problem}")
    return videos, notes, made


def _others_of_another_encoding(stored: dict[int, StoredAs], problems: dict[int, str], exact: bool) -> dict[int, str]:
    """Return the episodes that must be encoded again only to be like those that are: info.json has one encoding."""
    made = [(stored[place], encoding_for(stored[place], exact)) for place in problems]
    kept = {(own.codec, own.pix_fmt, own.is_plain) for place, own in stored.items() if place not in problems}
    if all((new.codec, new.pix_fmt, True) == (old.codec, old.pix_fmt, old.is_plain) for old, new in made):
        return {}
    encodings = {(new.codec, new.pix_fmt) for _, new in made}
    reason = f"others are stored as {', '.join(' '.join(pair) for pair in sorted(encodings))} now"
    return {place: reason for place in sorted(stored) if place not in problems} if kept else {}


def inspect_videos(videos: SourceVideos) -> list[tuple[SpanInfo, bool]]:
    """Inspect the packets of some episodes; those of one mp4 are neighbors.

    Returns:
        What was found of each, and whether it has an mp4 to itself.
    """
    found = []
    for path, own in groupby(range(len(videos.episodes)), key=videos.source_file):
        rows = [(int(videos.episodes.length_N[place]), videos.source_span_s(place)) for place in own]
        is_alone = len(rows) == 1 and (rows[0][1] is None or rows[0][1][0] == 0)
        found += [(info, is_alone) for info in inspect_spans(path, rows, videos.fps)]
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
        next_step="--reencode encodes these, and only these, again; a row without a frame then shows the nearest",
    )  # fmt: skip
