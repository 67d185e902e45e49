"""robomimic HDF5: one `data.hdf5`, pictures decoded, actions in [-1, 1].

Axes: T frames, H height, W width, C channels (RGB), A action, S state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from dreamgen.core.video import iter_frames
from export.episodes import Episode
from export.spec import DatasetSpec

FILE_NAME = "data.hdf5"

# robomimic's EnvType: 1 robosuite, 2 gym, 3 iGibson. No simulator is behind a dreamed episode; 2 is what Isaac Lab
# writes too, and unlike 1 it makes readers import no simulator.
ENV_TYPE = 2
GZIP_LEVEL = 1
VALID_EVERY = 10


@dataclass(frozen=True)
class ActionScaling:
    """action = scaled * scale + offset; a dimension that never changes has scale 1, scaled 0 and itself as offset."""

    scale_A: np.ndarray
    offset_A: np.ndarray

    def scaled(self, action_TA: np.ndarray) -> np.ndarray:
        """Return float32 actions in [-1, 1]."""
        scaled_TA = (action_TA.astype(np.float64) - self.offset_A) / self.scale_A
        return np.clip(scaled_TA, -1, 1).astype(np.float32)


def action_scaling(episodes: Sequence[Episode]) -> ActionScaling:
    """Map each dimension's smallest value to -1 and its largest to 1 (float64)."""
    low_A = np.min([episode.action_TA.min(axis=0) for episode in episodes], axis=0).astype(np.float64)
    high_A = np.max([episode.action_TA.max(axis=0) for episode in episodes], axis=0).astype(np.float64)
    return ActionScaling(np.where(high_A > low_A, (high_A - low_A) / 2, 1.0), (high_A + low_A) / 2)


def write_robomimic(root: Path, episodes: Sequence[Episode], spec: DatasetSpec) -> None:
    """Write `data.hdf5` as robomimic reads it; one frame is in memory at a time.

    Args:
        root: An empty folder.
        episodes: Numbered from 0.
        spec: What they share.
    """
    scaling = action_scaling(episodes)
    with h5py.File(root / FILE_NAME, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(episode.num_frames for episode in episodes)
        env_args = {"env_name": spec.robot_type, "type": ENV_TYPE, "env_kwargs": {"fps": spec.fps}}
        data.attrs["env_args"] = json.dumps(env_args)
        data.attrs["action_scale"], data.attrs["action_offset"] = scaling.scale_A, scaling.offset_A
        data.attrs["action_names"], data.attrs["state_names"] = (
            json.dumps(spec.action_names),
            json.dumps(spec.state_names),
        )
        for episode in episodes:
            _write_demo(data.create_group(_demo_name(episode)), episode, spec, scaling)
        valid = valid_episodes(len(episodes))
        for name, wanted in (("train", lambda i: i not in valid), ("valid", lambda i: i in valid)):
            names = [_demo_name(episode) for episode in episodes if wanted(episode.index)]
            file.create_dataset(f"mask/{name}", data=np.array(names, dtype=np.bytes_))


def _write_demo(demo: h5py.Group, episode: Episode, spec: DatasetSpec, scaling: ActionScaling) -> None:
    num_frames = episode.num_frames
    demo.attrs["num_samples"] = num_frames
    demo.attrs["task"] = episode.instruction
    demo.attrs["clip_id"] = episode.clip_id
    demo.create_dataset("actions", data=scaling.scaled(episode.action_TA))
    demo.create_dataset("rewards", data=np.zeros(num_frames, np.float32))
    demo.create_dataset("dones", data=(np.arange(num_frames) == num_frames - 1).astype(np.int64))
    # `states` is a simulator's state, for which the robot's own is the nearest thing; readers only ask for its rows.
    state_TS = np.empty((num_frames, 0), np.float32) if episode.state_TS is None else episode.state_TS
    demo.create_dataset("states", data=state_TS)
    if episode.state_TS is not None:
        demo.create_dataset("obs/state", data=state_TS)
    frame_shape = (spec.height, spec.width, 3)
    video_THWC = demo.create_dataset(
        f"obs/{spec.camera_short}", (num_frames, *frame_shape), np.uint8,
        chunks=(1, *frame_shape), compression="gzip", compression_opts=GZIP_LEVEL,
    )  # fmt: skip
    for index, frame_HWC in enumerate(iter_frames(episode.video.path)):
        video_THWC[index] = frame_HWC


def valid_episodes(num_episodes: int) -> set[int]:
    """Choose the episodes for validation: every tenth, or the last of two to nine; a single one is for training."""
    every = set(range(VALID_EVERY - 1, num_episodes, VALID_EVERY))
    return every or ({num_episodes - 1} if num_episodes > 1 else set())


def _demo_name(episode: Episode) -> str:
    return f"demo_{episode.index}"
