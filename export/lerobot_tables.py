"""What LeRobot v3.0 and v2.1 have in common: the features of info.json and the rows of an episode.

Axes: T frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from dreamgen.data.timeline import frame_times_s
from export.episodes import Episode
from export.spec import DatasetSpec

INDEX_COLUMNS = ("frame_index", "episode_index", "index", "task_index")


def info_features(spec: DatasetSpec, video_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the `features` of info.json.

    Args:
        video_info: The `info` of each video feature, which goes with the axis name "channels".
    """
    size = [spec.height, spec.width, 3]
    features: dict[str, dict[str, Any]] = {
        camera: {"dtype": "video", "shape": size, "names": ["height", "width", "channels"], "info": video_info}
        for camera in spec.camera_names
    }
    for name, names in (("observation.state", spec.state_names), ("action", spec.action_names)):
        if names:
            features[name] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    return features | {name: {"dtype": "int64", "shape": [1], "names": None} for name in INDEX_COLUMNS}


def episode_columns(episode: Episode) -> dict[str, np.ndarray]:
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


def fixed_size_vectors(matrix_TD: np.ndarray) -> pa.Array:
    """Return rows as fixed-size lists; one dimension as plain numbers, which is how LeRobot v3.0 reads shape [1]."""
    flat = pa.array(np.ascontiguousarray(matrix_TD).ravel())
    return flat if matrix_TD.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, matrix_TD.shape[1])


def list_vectors(matrix_TD: np.ndarray) -> pa.Array:
    """Return rows as lists, also those of one dimension: GR00T stacks the cells and wants two axes."""
    num_rows, num_dims = matrix_TD.shape
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * num_dims)
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(matrix_TD).ravel()))
