"""robomimic HDF5: one `data.hdf5` with decoded images and actions in [-1, 1].

Axes: T frames, H height, W width, C channels (RGB), A action, S state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from dreamgen.config.settings import ExportSettings
from dreamgen.data.lerobot.statistics import Range
from dreamgen.extensions.export_format import DatasetSize, ExportFormat, FormatReader
from dreamgen.progress import Progress
from dreamgen.run.files import atomic_file
from export.check.hdf5.robomimic import check_robomimic, num_demos, robomimic_file
from export.check.repair.robomimic import repair_robomimic
from export.episode_store import EpisodeStore
from export.episodes import ExportEpisode
from export.formats.hdf5_parts import join_parts, size_with_images, write_images, write_next
from export.spec import DatasetSpec
from export.workers import Workers

FILE_NAME = "data.hdf5"

# robomimic's EnvType: 1 robosuite, 2 gym, 3 iGibson. A generated episode has no simulator. Isaac Lab writes 2 too, and
# unlike 1 it makes readers import no simulator.
ENV_TYPE = 2
VALID_EVERY = 10
EPISODES_PER_PART = 4  # decoded before they are copied into the file, so a few parts need disk space at a time


@dataclass(frozen=True)
class ActionScaling:
    """action = scaled * scale + offset. A constant dimension has scale 1, scaled value 0 and itself as offset."""

    scale_A: np.ndarray
    offset_A: np.ndarray

    def scaled(self, action_TA: np.ndarray) -> np.ndarray:
        """Return float32 actions in [-1, 1]."""
        scaled_TA = (action_TA.astype(np.float64) - self.offset_A) / self.scale_A
        return np.clip(scaled_TA, -1, 1).astype(np.float32)


def action_scaling(actions: Range) -> ActionScaling:
    """Map each dimension's minimum to -1 and its maximum to 1 (float64)."""
    low_A, high_A = actions.low_D.astype(np.float64), actions.high_D.astype(np.float64)
    return ActionScaling(np.where(high_A > low_A, (high_A - low_A) / 2, 1.0), (high_A + low_A) / 2)


def write_robomimic(
    root: Path, done_markers: Path, episodes: EpisodeStore, spec: DatasetSpec, workers: Workers
) -> None:
    """Write `data.hdf5`. Workers decode into parts, which are copied into it without decompressing them.

    Args:
        root: An empty folder.
        done_markers: Not used: the file is written from the start.
        episodes: Numbered from 0.
        spec: What the episodes share.
        workers: Decode the videos; their number changes no value.
    """
    scaling = action_scaling(episodes.ranges["action"])
    tasks = [
        partial(write_part, root / f"part-{start:06d}.hdf5", episodes[start : start + EPISODES_PER_PART], spec, scaling)
        for start in range(0, len(episodes), EPISODES_PER_PART)
    ]
    with h5py.File(root / FILE_NAME, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = episodes.num_frames
        env_args = {"env_name": spec.robot_type, "type": ENV_TYPE, "env_kwargs": {"fps": spec.fps}}
        data.attrs["env_args"] = json.dumps(env_args)
        data.attrs["action_scale"], data.attrs["action_offset"] = scaling.scale_A, scaling.offset_A
        data.attrs["action_names"] = json.dumps(spec.action_names)
        data.attrs["state_names"] = json.dumps(spec.state_names)
        with Progress("export: robomimic", len(tasks), "parts") as progress:

            def finished_parts() -> Iterator[Path]:
                for path in workers.run(tasks):
                    yield path
                    progress.add()

            join_parts(data, finished_parts())
        valid = valid_episodes(len(episodes))
        for name, is_valid in (("train", False), ("valid", True)):
            names = [_demo_name(index) for index in range(len(episodes)) if (index in valid) == is_valid]
            file.create_dataset(f"mask/{name}", data=np.array(names, dtype=np.bytes_))


def write_part(path: Path, episodes: EpisodeStore, spec: DatasetSpec, scaling: ActionScaling) -> Path:
    """Write a few demos to a file of their own, which is complete or absent, holding one frame in memory.

    Returns:
        The file.
    """
    with atomic_file(path) as temporary, h5py.File(temporary, "w") as file:
        for episode in episodes:
            _write_demo(file.create_group(_demo_name(episode.index)), episode, spec, scaling)
    return path


def _write_demo(demo: h5py.Group, episode: ExportEpisode, spec: DatasetSpec, scaling: ActionScaling) -> None:
    num_frames = episode.num_frames
    demo.attrs["num_samples"] = num_frames
    demo.attrs["task"] = episode.instruction
    demo.attrs["clip_id"] = episode.clip_id
    demo.create_dataset("actions", data=scaling.scaled(episode.action_TA))
    demo.create_dataset("rewards", data=np.zeros(num_frames, np.float32))
    demo.create_dataset("dones", data=(np.arange(num_frames) == num_frames - 1).astype(np.int64))
    # `states` is the simulator's state. The robot's own comes closest; readers only use its length.
    state_TS = np.empty((num_frames, 0), np.float32) if episode.state_TS is None else episode.state_TS
    demo.create_dataset("states", data=state_TS)
    observations = demo.create_group("obs")
    if episode.state_TS is not None:
        observations.create_dataset("state", data=state_TS)
    size = (spec.height, spec.width)
    for camera, video in zip(spec.cameras, episode.videos, strict=True):
        write_images(observations, camera.short, video.path, num_frames, size, spec.hdf5.compression)
    if spec.hdf5.next_obs:
        following = demo.create_group("next_obs")
        for name, rows in observations.items():
            write_next(following, name, rows)


def valid_episodes(num_episodes: int) -> set[int]:
    """Choose the validation episodes: every tenth, or the last of two to nine; a single one is for training."""
    every = set(range(VALID_EVERY - 1, num_episodes, VALID_EVERY))
    return every or ({num_episodes - 1} if num_episodes > 1 else set())


def _demo_name(index: int) -> str:
    return f"demo_{index}"


def _estimate_bytes(size: DatasetSize, settings: ExportSettings) -> int:
    return size_with_images(size, settings.hdf5.compression, num_copies=2 if settings.hdf5.next_obs else 1)


def _load_example(spec: DatasetSpec) -> str:
    return f'h5py.File("path/to/this/folder/{FILE_NAME}")["data"]'


ROBOMIMIC = ExportFormat(
    name="robomimic",
    summary="one HDF5 file with decoded images and actions in [-1, 1], for robomimic",
    write=write_robomimic,
    reader=FormatReader(
        layout="robomimic: an .hdf5 file, or a folder with a single one",
        recognizes=lambda path: robomimic_file(path) is not None,
        check=check_robomimic,
        num_episodes=num_demos,
        repair=repair_robomimic,
    ),
    load_example=_load_example,
    estimate_bytes=_estimate_bytes,
)
