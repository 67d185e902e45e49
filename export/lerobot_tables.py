"""What LeRobot v3.0 and v2.1 have in common: the features of info.json, the rows of an episode, their statistics.

Axes: T frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from dreamgen.core.timeline import frame_times_s
from export.episodes import Episode
from export.spec import DatasetSpec
from export.statistics import VectorStatistics, vector_figures

INDEX_COLUMNS = ("frame_index", "episode_index", "index", "task_index")


def info_features(spec: DatasetSpec, video_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the `features` of info.json.

    Args:
        video_info: The `info` of the video feature, which goes with the axis name "channels".
    """
    size = [spec.height, spec.width, 3]
    features: dict[str, dict[str, Any]] = {
        spec.camera: {"dtype": "video", "shape": size, "names": ["height", "width", "channels"], "info": video_info}
    }
    for name, names in (("observation.state", spec.state_names), ("action", spec.action_names)):
        if names:
            features[name] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    return features | {name: {"dtype": "int64", "shape": [1], "names": None} for name in INDEX_COLUMNS}


def episode_columns(episode: Episode, first_index: int, task_index: int) -> dict[str, np.ndarray]:
    """Return an episode's rows by column, in the order of the features.

    Args:
        first_index: Number of its first frame in the dataset.
        task_index: Number of its task.
    """
    num_frames = episode.num_frames
    vectors = {} if episode.state_TS is None else {"observation.state": episode.state_TS}
    frames_T = np.arange(num_frames, dtype=np.int64)
    return {
        **vectors,
        "action": episode.action_TA,
        "timestamp": frame_times_s(num_frames, episode.fps).astype(np.float32),
        "frame_index": frames_T,
        "episode_index": np.full(num_frames, episode.index, np.int64),
        "index": first_index + frames_T,
        "task_index": np.full(num_frames, task_index, np.int64),
    }


def fixed_size_vectors(matrix_TD: np.ndarray) -> pa.Array:
    """Return rows as fixed-size lists; one dimension as plain numbers, which is how LeRobot v3.0 reads shape [1]."""
    flat = pa.array(np.ascontiguousarray(matrix_TD).ravel())
    return flat if matrix_TD.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, matrix_TD.shape[1])


def list_vectors(matrix_TD: np.ndarray) -> pa.Array:
    """Return rows as lists, also those of one dimension: GR00T stacks the cells and wants two axes."""
    num_rows, num_dims = matrix_TD.shape
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * num_dims)
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(matrix_TD).ravel()))


class DatasetStatistics:
    """Gathers the statistics of a dataset while its episodes are written."""

    def __init__(self, camera: str) -> None:
        self._camera = camera
        self._columns: dict[str, VectorStatistics] = {}
        self._image = None

    def add(self, episode: Episode, columns: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        """Take in an episode and return its own statistics by feature."""
        for name, values in columns.items():
            self._columns.setdefault(name, VectorStatistics()).add(values.reshape(len(values), -1))
        self._image = episode.image if self._image is None else self._image + episode.image
        own = {name: vector_figures(values) for name, values in columns.items()}
        return {self._camera: episode.image.figures(), **own}

    def figures(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the statistics of all episodes by feature."""
        return {self._camera: self._image.figures(), **{name: s.figures() for name, s in self._columns.items()}}


def as_lists(statistics: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, list]]:
    """Return statistics as JSON holds them."""
    return {name: {stat: v.tolist() for stat, v in figures.items()} for name, figures in statistics.items()}
