"""Clips that examples/metaworld/record.py recorded, as arrays, and where an object is in the picture.

Axes: N clips, T frames, H height, W width, C channels, S state, E environment state.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dreamgen.data.video import iter_frames

CAMERA = "observation.images.corner2"
# Meta-World's camera corner2 as the recorder places it; its picture is turned by 180 degrees.
CAMERA_POSITION_M = np.array([0.75, 0.075, 0.7])
CAMERA_ROTATION = np.array(
    [
        [-0.54990133, 0.37620774, 0.74570521],
        [-0.83318276, -0.30954914, -0.4582421],
        [0.05843818, -0.87329666, 0.48367129],
    ]
)
FIELD_OF_VIEW_RAD = np.deg2rad(60)


@dataclass(frozen=True)
class Clips:
    """Recorded episodes of equal length.

    Args:
        video_NTHWC: uint8, 0-255, RGB.
        state_NTS: Hand position in meters, and gripper opening.
        environment_NTE: Positions of the object, of a second object or zeros, and of the goal, in meters.
        task_N, scene_N, instruction_N: Task, name of the scene that allows several ("" for none), and its text.
        success_N: Whether the episode did its task.
    """

    video_NTHWC: torch.Tensor
    state_NTS: np.ndarray
    environment_NTE: np.ndarray
    task_N: np.ndarray
    scene_N: np.ndarray
    instruction_N: np.ndarray
    success_N: np.ndarray

    def __len__(self) -> int:
        return len(self.task_N)

    def __getitem__(self, which: np.ndarray) -> Clips:
        return Clips(**{name: values[which] for name, values in vars(self).items()})

    def first_of_each(self, num: int) -> Clips:
        """Return the first `num` clips of each task and scene."""
        keys = pd.Series(self.task_N).str.cat(pd.Series(self.scene_N), sep="|")
        return self[(keys.groupby(keys).cumcount() < num).to_numpy()]


def read_clips(root: Path, max_clips: int | None = None) -> Clips:
    """Read the first episodes of a dataset; they are interleaved, so that any part has all tasks.

    Args:
        root: A LeRobot v3.0 dataset of the recorder.
        max_clips: All episodes when None.
    """
    episodes = pd.concat([pd.read_parquet(file) for file in sorted(root.glob("meta/episodes/*/*.parquet"))])
    episodes = episodes.sort_values("episode_index").iloc[:max_clips]
    rows = pd.concat([pd.read_parquet(file) for file in sorted(root.glob("data/*/*.parquet"))])
    rows = rows.loc[rows["episode_index"].isin(episodes["episode_index"])]
    rows = rows.sort_values(by=["episode_index", "frame_index"])
    num_frames = int(episodes["length"].min())
    assert (episodes["length"] == num_frames).all(), "episodes have one length"
    groups = list(episodes.groupby([f"videos/{CAMERA}/chunk_index", f"videos/{CAMERA}/file_index"]))
    files = [root / f"videos/{CAMERA}/chunk-{chunk:03d}/file-{file:03d}.mp4" for (chunk, file), _ in groups]
    with ThreadPoolExecutor(8) as threads:
        starts = [group[f"videos/{CAMERA}/from_timestamp"].to_numpy() for _, group in groups]
        fps = float(pd.read_json(root / "meta/info.json", typ="series")["fps"])
        videos = list(threads.map(lambda pair: _decode(pair[0], np.rint(pair[1] * fps).astype(int), num_frames),
                                  zip(files, starts, strict=True)))  # fmt: skip
    order = np.argsort(np.concatenate([group["episode_index"].to_numpy() for _, group in groups]))
    vectors = {name: np.stack(rows[name].to_list()).reshape(len(episodes), num_frames, -1)
               for name in ("observation.state", "observation.environment_state")}  # fmt: skip
    return Clips(
        torch.from_numpy(np.concatenate(videos)[order]), vectors["observation.state"],
        vectors["observation.environment_state"], episodes["source_task"].to_numpy(str),
        episodes["scene"].fillna("").to_numpy(str), np.array([str(tasks[0]) for tasks in episodes["tasks"]]),
        episodes["success"].to_numpy(bool),
    )  # fmt: skip


def joined(parts: list[Clips]) -> Clips:
    """Return the clips of several datasets as one."""
    videos = torch.cat([part.video_NTHWC for part in parts])
    others = {name: np.concatenate([getattr(part, name) for part in parts]) for name in list(vars(parts[0]))[1:]}
    return Clips(videos, **others)


def _decode(file: Path, starts: np.ndarray, num_frames: int) -> np.ndarray:
    """Decode the episodes of one file that begin at these frames; it is read up to the end of the last one."""
    wanted = {int(start) + offset for start in starts for offset in range(num_frames)}
    frames, last = {}, max(wanted)
    for number, frame_HWC in enumerate(iter_frames(file)):
        if number in wanted:
            frames[number] = frame_HWC
        if number == last:
            break
    return np.stack([np.stack([frames[int(start) + offset] for offset in range(num_frames)]) for start in starts])


def pixels_of(position_m: np.ndarray, size_px: int) -> np.ndarray:
    """Project positions into the picture.

    Args:
        position_m: (..., 3), in the world's coordinates.
        size_px: Height and width of the picture.

    Returns:
        Column and row, (..., 2), float; they may lie outside.
    """
    x, y, z = np.moveaxis((position_m - CAMERA_POSITION_M) @ CAMERA_ROTATION, -1, 0)
    focal_px = size_px / 2 / np.tan(FIELD_OF_VIEW_RAD / 2)
    return np.stack([size_px / 2 + focal_px * x / z, size_px / 2 - focal_px * y / z], axis=-1)
