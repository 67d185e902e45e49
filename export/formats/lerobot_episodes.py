"""Clips as the LeRobot writer takes them: the rows, videos and features of v3.0 and v2.1.

Axes: N episodes, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dreamgen.data.lerobot.episode_source import EpisodeRecord, EpisodeSource, VideoSource
from dreamgen.data.lerobot.statistics import Columns, Range, Statistics, as_lists
from dreamgen.data.lerobot.video import VideoSpan
from dreamgen.data.lerobot.writer import (
    INDEX_FEATURE,
    INDEX_FEATURES,
    vector_array,
)
from dreamgen.data.timeline import frame_time_s, frame_times_s
from export.episode_store import EpisodeStore
from export.episodes import ExportEpisode
from export.spec import DatasetSpec

BYTES_OF_INDEX = 4 + 4 * 8  # timestamp and four indices of a row
FEATURES = {"state": "observation.state", "action": "action"}
TASK_ANNOTATION = "human.action.task_description"  # of GR00T's modality.json
TASK_COLUMN = f"annotation.{TASK_ANNOTATION}"


@dataclass(frozen=True)
class ClipVideos(VideoSource):
    """The mp4s of one camera, each a file of its own without B-frames."""

    episodes: EpisodeStore
    camera: int

    def __iter__(self) -> Iterator[VideoSpan]:
        return (VideoSpan(clip.videos[self.camera], num_frames) for _, num_frames, clip in self.episodes.clips())


@dataclass(frozen=True)
class StoredEpisodes(EpisodeSource):
    """Clips as episodes of one version of LeRobot; v2.1 has the task as an annotation, too, as GR00T reads it."""

    episodes: EpisodeStore
    version: str

    @classmethod
    def of(cls, episodes: EpisodeStore, spec: DatasetSpec, version: str, video_info: dict[str, Any]) -> StoredEpisodes:
        """Describe the dataset that clips make.

        Args:
            episodes: Numbered from 0.
            spec: What they share.
            version: v3.0 or v2.1.
            video_info: The `info` of each video feature.
        """
        features, columns = _features(spec, video_info), _columns(episodes, spec.fps)
        if version == "v2.1":
            features[TASK_COLUMN] = INDEX_FEATURE
            columns[TASK_COLUMN] = columns["task_index"]
        num_dims = len(spec.state_names) + len(spec.action_names)
        return cls(
            cameras=spec.camera_names, fps=spec.fps, tasks=episodes.tasks, columns=Columns.of(columns),
            features=features, info={"robot_type": spec.robot_type}, extras_schema=pa.schema([]),
            num_frames_N=episodes.num_frames_E,
            data_bytes_N=episodes.num_frames_E * (4 * num_dims + BYTES_OF_INDEX), episodes=episodes, version=version,
        )  # fmt: skip

    def __iter__(self) -> Iterator[EpisodeRecord]:
        for episode in self.episodes:
            columns = _rows(episode)
            if self.version == "v2.1":
                columns[TASK_COLUMN] = columns["task_index"]
            arrays = {name: self._array(name, values) for name, values in columns.items()}
            images = zip(self.cameras, episode.images, strict=True)
            yield EpisodeRecord(
                episode.index, episode.first_index, episode.num_frames, (episode.task,), pa.table(arrays),
                np.concatenate([values.reshape(episode.num_frames, -1) for values in columns.values()], axis=1),
                as_lists({camera: image.metrics() for camera, image in images}),
                tuple(VideoSpan(video.path, video.num_frames) for video in episode.videos),
            )  # fmt: skip

    def videos(self, camera: str) -> ClipVideos:
        """Return the mp4s of a camera."""
        number, episodes = self.cameras.index(camera), self.episodes
        no_delay_N = np.zeros(len(episodes), np.int64)
        return ClipVideos(
            episodes.num_bytes_EV[:, number], episodes.encoding_EV[:, number], no_delay_N, episodes, number
        )

    def known_statistics(self, computed: Mapping[str, Statistics]) -> dict[str, Statistics]:
        """Return the statistics of all clips by camera."""
        images = self.episodes.image_histograms()
        return {camera: image.metrics() for camera, image in zip(self.cameras, images, strict=True)}

    def _array(self, name: str, values: np.ndarray) -> pa.Array:
        flat = pa.array(np.ascontiguousarray(values).ravel())
        return flat if values.ndim == 1 else vector_array(flat, values.shape[1], self.version, name)


def _features(spec: DatasetSpec, video_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    # With "info", the third axis is "channels"; GR00T's first release pairs "channel" with "video_info".
    size, axes = [spec.height, spec.width, 3], ["height", "width", "channels"]
    features: dict[str, dict[str, Any]] = {
        camera: {"dtype": "video", "shape": size, "names": axes, "info": video_info} for camera in spec.camera_names
    }
    for name, names in (("observation.state", spec.state_names), ("action", spec.action_names)):
        if names:
            features[name] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
    return features | INDEX_FEATURES


def _columns(episodes: EpisodeStore, fps: int) -> dict[str, Range]:
    """Return the range of each column; those of the indices follow from the counts."""
    longest = int(episodes.num_frames_E.max())
    last = {
        "timestamp": frame_time_s(longest - 1, fps), "frame_index": longest - 1, "episode_index": len(episodes) - 1,
        "index": episodes.num_frames - 1, "task_index": len(episodes.tasks) - 1,
    }  # fmt: skip
    ranges = {name: episodes.ranges[vector] for vector, name in FEATURES.items() if vector in episodes.ranges}
    return ranges | {name: Range(np.zeros(1), np.array([value], np.float64)) for name, value in last.items()}


def _rows(episode: ExportEpisode) -> dict[str, np.ndarray]:
    """Return an episode's rows by column, in the order of the features."""
    num_frames = episode.num_frames
    vectors = {} if episode.state_TS is None else {"observation.state": episode.state_TS}
    frames_T = np.arange(num_frames, dtype=np.int64)
    return {
        **vectors,
        "action": episode.action_TA,
        "timestamp": frame_times_s(num_frames, episode.fps).astype(np.float32),
        "frame_index": frames_T,
        "episode_index": np.full(num_frames, episode.index, np.int64),
        "index": episode.first_index + frames_T,
        "task_index": np.full(num_frames, episode.task_index, np.int64),
    }
