"""The states that are known where clips begin: a clip from a demonstration's first frame begins in its first state.

Axes: S state, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from dreamgen.data.conditioning_frames import NUM_STORED_FRAMES
from dreamgen.data.images import frame_sha256, read_image
from dreamgen.data.trajectory import read_trajectory
from dreamgen.run.files import visible_files
from dreamgen.run.run_folder import RunFolder


def known_first_states(run: RunFolder, wanted: Collection[str], state_dim: int) -> dict[str, np.ndarray]:
    """Find first frames among those of the run's demonstrations.

    Args:
        run: With the training set that prepare wrote; without its first frames nothing is known.
        wanted: `first_frame_sha256` of jobs.
        state_dim: Dimensions of the state.

    Returns:
        state_S by `first_frame_sha256`, for those that are a demonstration's.
    """
    found: dict[str, np.ndarray] = {}
    for path in visible_files(run.train / "first_frames", "*.png"):
        table = run.train / "trajectories" / f"{path.stem}.parquet"
        if len(found) == len(wanted) or not table.is_file():
            continue
        stacked_HWC = read_image(path)
        height = len(stacked_HWC) // NUM_STORED_FRAMES
        hashes = {frame_sha256(stacked_HWC[:height]), frame_sha256(stacked_HWC)} & set(wanted)
        if hashes:
            state_TS = read_trajectory(table).state_TS
            if state_TS is not None and state_TS.shape[1] == state_dim and len(state_TS):
                found.update((sha256, state_TS[0]) for sha256 in hashes)
    return found
