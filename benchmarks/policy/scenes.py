"""Meta-World scenes as the recorder places them, for closed-loop evaluation and for replaying actions.

Axes: T frames, H height, W width, C channels, A action.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
RECORDER = ROOT / "examples" / "metaworld"
sys.path[:0] = [str(RECORDER), str(ROOT / "benchmarks"), str(ROOT)]

if TYPE_CHECKING:
    from scene import Scene  # pyright: ignore[reportMissingImports]

FRAME_SKIP = 5  # control steps of 1/80 s a frame, as the recorder's default
SIZE_PX = 128


@contextmanager
def open_scene(task: str, size_px: int = SIZE_PX) -> Iterator[Scene]:
    """Build a task's environment, and close it at the end.

    Args:
        task: Name of the Meta-World task.
        size_px: Height and width of pictures; 0 for none.

    Raises:
        UserError: if the simulator is not installed.
    """
    from record import check_simulator  # pyright: ignore[reportMissingImports]

    check_simulator()
    from scene import Scene  # pyright: ignore[reportMissingImports]

    scene = Scene(task, FRAME_SKIP, None, size_px)
    try:
        yield scene
    finally:
        scene.close()


def recorded_seeds(dataset: Path) -> dict[int, int]:
    """Return the seed of each episode of a recorded dataset, by its index."""
    files = sorted((dataset / "meta" / "episodes").glob("*/*.parquet"))
    tables = [pq.read_table(file, columns=["episode_index", "seed"]) for file in files]
    return {row["episode_index"]: row["seed"] for table in tables for row in table.to_pylist()}


def recorded_actions(dataset: Path) -> dict[int, np.ndarray]:
    """Return action_TA of each episode of a LeRobot v3.0 dataset, by its index."""
    files = sorted((dataset / "data").glob("*/*.parquet"))
    table = pa.concat_tables(
        [pq.read_table(file, columns=["episode_index", "frame_index", "action"]) for file in files]
    )
    table = table.sort_by([("episode_index", "ascending"), ("frame_index", "ascending")])
    of_row, actions = table["episode_index"].to_numpy(), np.stack(table["action"].to_pylist())
    return {int(index): actions[of_row == index] for index in np.unique(of_row)}


def replay(scene: Scene, seed: int, region: str, action_TA: np.ndarray) -> bool:
    """Execute actions from a start, each held for a frame, and tell whether the task was done at any time.

    Args:
        scene: Of the task.
        seed: Of the start.
        region: Of its positions, as in the recorder.
        action_TA: From -1 to 1; larger ones are clipped, as the recorder clips those of experts.
    """
    observed = scene.reset(seed, region)
    begins_done, done = observed.success, False
    for action in np.clip(action_TA, -1, 1).astype(np.float32):
        observed = scene.step(action)
        done = done or observed.success
    return bool(done and not begins_done)


def observation(scene: Scene, observed: Any, camera: str) -> dict[str, Any]:
    """Return what a LeRobot policy observes: image_CHW from 0 to 1, and the state, each with a batch of one."""
    import torch

    frame_HWC = scene.render()
    image = torch.from_numpy(np.ascontiguousarray(frame_HWC)).permute(2, 0, 1).float() / 255
    return {camera: image[None], "observation.state": torch.from_numpy(observed.state)[None]}
