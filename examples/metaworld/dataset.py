"""Recorded episodes as the project's LeRobot writer takes them.

Axes: T frames, N episodes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dreamgen.data.lerobot.episode_source import EpisodeRecord, EpisodeSource, VideoSource
from dreamgen.data.lerobot.file_layout import FileLimits
from dreamgen.data.lerobot.image_statistics import ImageHistogram, few_frames
from dreamgen.data.lerobot.statistics import Columns, Range, Statistics, as_lists
from dreamgen.data.lerobot.video import VideoSpan, inspect_spans
from dreamgen.data.lerobot.writer import INDEX_FEATURES, vector_array, write_v30
from dreamgen.data.timeline import frame_time_s, frame_times_s
from dreamgen.data.video import write_video

CAMERA_FEATURE = "observation.images.corner2"
ROBOT_TYPE = "sawyer"
CRF = 12  # nearly without loss: small objects stay sharp
EXTRAS = pa.schema(
    {"source_task": pa.string(), "scene": pa.string(), "behavior": pa.string(), "seed": pa.int64(),
     "success": pa.bool_(), "frames_to_success": pa.int64(),
     "done_at_end": pa.bool_()}
)  # fmt: skip


@dataclass(frozen=True)
class StoredEpisode:
    """One episode whose frames are encoded.

    Args:
        video: Its mp4.
        num_bytes: Size of the mp4's packets.
        encoding: Equal for mp4s that may share a file.
        image: Histogram of some frames.
        instruction: The task in words.
        vectors: Feature -> values_TD, float32.
        extras: As `EXTRAS` lists them.
    """

    video: Path
    num_bytes: int
    encoding: int
    image: ImageHistogram
    instruction: str
    vectors: dict[str, np.ndarray]
    extras: dict[str, Any]

    @property
    def num_frames(self) -> int:
        """Frames, which are the rows."""
        return len(next(iter(self.vectors.values())))


def store_episode(
    video: Path, frames: Sequence[np.ndarray], fps: int, instruction: str, vectors: dict[str, np.ndarray],
    extras: dict[str, Any],
) -> StoredEpisode:  # fmt: skip
    """Encode an episode's frames, with one key frame, and describe it.

    Args:
        video: The mp4 to write.
        frames: frame_HWC each, uint8, RGB.
        fps: Frames a second.
        instruction, vectors, extras: As in `StoredEpisode`.
    """
    write_video(video, frames, fps, crf=CRF, gop=len(frames))
    info = inspect_spans(video, [(len(frames), None)], Fraction(fps))[0]
    assert info.problem is None, info.problem
    image = ImageHistogram.empty()
    for number in few_frames(len(frames)):
        image = image.with_frame(frames[number])
    encoding = int(info.encoding, 16) % 2**62
    return StoredEpisode(
        video, info.num_bytes, encoding, image.scaled_to(len(frames)), instruction, vectors, extras
    )  # fmt: skip


@dataclass(frozen=True)
class RecordedVideos(VideoSource):
    """The mp4s of the episodes."""

    episodes: tuple[StoredEpisode, ...]

    @classmethod
    def of(cls, episodes: tuple[StoredEpisode, ...]) -> RecordedVideos:
        """Describe the mp4s of some episodes."""
        num_bytes_N = np.array([episode.num_bytes for episode in episodes], np.int64)
        encoding_N = np.array([episode.encoding for episode in episodes], np.int64)
        return cls(num_bytes_N, encoding_N, np.zeros(len(episodes), np.int64), episodes)

    def __getitem__(self, which: slice) -> RecordedVideos:
        return RecordedVideos.of(self.episodes[which])

    def __iter__(self) -> Iterator[VideoSpan]:
        return (VideoSpan(episode.video, episode.num_frames) for episode in self.episodes)


@dataclass(frozen=True)
class RecordedEpisodes(EpisodeSource):
    """Episodes of one camera; `first` and `first_index` number the first episode and its first frame."""

    episodes: tuple[StoredEpisode, ...]
    first: int = 0
    first_index: int = 0

    @classmethod
    def of(cls, episodes: Sequence[StoredEpisode], fps: int, names: dict[str, tuple[str, ...]],
           info: dict[str, Any], video_info: dict[str, Any]) -> RecordedEpisodes:  # fmt: skip
        """Describe the dataset that episodes make.

        Args:
            episodes: At least one, in order.
            fps: Frames a second.
            names: Feature -> names of its dimensions.
            info: Other entries of info.json.
            video_info: Height and width of the video, as `info` of the feature has them.
        """
        tasks = tuple(dict.fromkeys(episode.instruction for episode in episodes))
        lengths_N = np.array([episode.num_frames for episode in episodes], np.int64)
        size = [video_info["video.height"], video_info["video.width"], 3]
        features: dict[str, dict[str, Any]] = {
            CAMERA_FEATURE: {
                "dtype": "video", "shape": size, "names": ["height", "width", "channels"], "info": video_info
            }
        }  # fmt: skip
        ranges = {}
        for feature, own in names.items():
            features[feature] = {"dtype": "float32", "shape": [len(own)], "names": list(own)}
            values_ND = np.concatenate([episode.vectors[feature] for episode in episodes]).astype(np.float64)
            ranges[feature] = Range(values_ND.min(axis=0), values_ND.max(axis=0))
        longest = int(lengths_N.max())
        last = {
            "timestamp": frame_time_s(longest - 1, fps), "frame_index": longest - 1, "episode_index": len(episodes) - 1,
            "index": int(lengths_N.sum()) - 1, "task_index": len(tasks) - 1,
        }  # fmt: skip
        ranges |= {name: Range(np.zeros(1), np.array([value], np.float64)) for name, value in last.items()}
        bytes_of_row = 4 * sum(len(own) for own in names.values()) + 36
        return cls(
            (CAMERA_FEATURE,), fps, tasks, Columns.of(ranges), features | INDEX_FEATURES, info, EXTRAS, lengths_N,
            lengths_N * bytes_of_row, tuple(episodes),
        )  # fmt: skip

    def __getitem__(self, which: slice) -> RecordedEpisodes:
        start = which.indices(len(self))[0]
        return replace(
            self, num_frames_N=self.num_frames_N[which], data_bytes_N=self.data_bytes_N[which],
            episodes=self.episodes[which], first=self.first + start,
            first_index=self.first_index + int(self.num_frames_N[:start].sum()),
        )  # fmt: skip

    def __iter__(self) -> Iterator[EpisodeRecord]:
        index_of = {task: index for index, task in enumerate(self.tasks)}
        first_index = self.first_index
        for number, episode in enumerate(self.episodes, self.first):
            num_frames = episode.num_frames
            frames_T = np.arange(num_frames, dtype=np.int64)
            columns = episode.vectors | {
                "timestamp": frame_times_s(num_frames, self.fps).astype(np.float32),
                "frame_index": frames_T,
                "episode_index": np.full(num_frames, number, np.int64),
                "index": first_index + frames_T,
                "task_index": np.full(num_frames, index_of[episode.instruction], np.int64),
            }
            yield EpisodeRecord(
                number, first_index, num_frames, (episode.instruction,),
                pa.table({name: _array(name, values) for name, values in columns.items()}),
                np.concatenate([values.reshape(num_frames, -1) for values in columns.values()], axis=1),
                as_lists({CAMERA_FEATURE: episode.image.metrics()}),
                (VideoSpan(episode.video, num_frames),), episode.extras,
            )  # fmt: skip
            first_index += num_frames

    def videos(self, camera: str) -> RecordedVideos:
        """Return the mp4s."""
        return RecordedVideos.of(self.episodes)

    def known_statistics(self, computed: Mapping[str, Statistics]) -> dict[str, Statistics]:
        """Return the statistics of all episodes' frames; those of the rows are computed."""
        total = ImageHistogram.empty()
        for episode in self.episodes:
            total += episode.image
        return {CAMERA_FEATURE: total.metrics()}


def _array(name: str, values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).ravel())
    return flat if values.ndim == 1 else vector_array(flat, values.shape[1], "v3.0", name)


@dataclass(frozen=True)
class PoolRunner:
    """Runs the writer's tasks in the processes that recorded."""

    pool: Executor

    def run[Result](self, tasks: Iterable[Callable[[], Result]]) -> Iterator[Result]:
        """Run functions and yield their results in order."""
        for future in [self.pool.submit(task) for task in tasks]:
            yield future.result()


def write_dataset(root: Path, done_markers: Path, episodes: Sequence[StoredEpisode], fps: int, size_px: int,
                  names: dict[str, tuple[str, ...]], pool: Executor) -> None:  # fmt: skip
    """Write a LeRobot v3.0 dataset of recorded episodes.

    Args:
        root: An empty folder.
        done_markers: An empty folder outside of it.
        episodes: At least one, in order.
        fps, names: As in `RecordedEpisodes.of`.
        size_px: Height and width of the frames.
        pool: Processes that write.
    """
    video_info = {
        "video.height": size_px, "video.width": size_px, "video.codec": "h264", "video.pix_fmt": "yuv420p",
        "video.fps": fps, "video.channels": 3, "has_audio": False, "video.g": episodes[0].num_frames,
        "video.crf": CRF, "is_depth_map": False,
    }  # fmt: skip
    source = RecordedEpisodes.of(episodes, fps, names, {"robot_type": ROBOT_TYPE}, video_info)
    write_v30(root, done_markers, source, PoolRunner(pool), "write", FileLimits(video_mb=50, max_episodes=500))
