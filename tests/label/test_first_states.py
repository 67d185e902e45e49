"""A clip that begins with a demonstration's first frame begins in that demonstration's first state."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dreamgen.data.conditioning_frames import NUM_STORED_FRAMES
from dreamgen.data.images import frame_sha256, write_png
from dreamgen.label.first_states import known_first_states
from dreamgen.run.run_folder import RunFolder

SIDE = 16


def stored_frames(number: int) -> np.ndarray:
    random = np.random.default_rng(number)
    return random.integers(0, 256, (NUM_STORED_FRAMES * SIDE, SIDE, 3), dtype=np.uint8)


def test_first_frames_are_found_by_their_pixels(tmp_path):
    train = tmp_path / "train"
    (train / "trajectories").mkdir(parents=True)
    (train / "first_frames").mkdir()
    for number in range(3):
        write_png(train / "first_frames" / f"demo_{number}.png", stored_frames(number))
        states = pa.array([[number, 0.5], [9.0, 9.0]], pa.list_(pa.float32()))
        if number != 1:  # the second one has no trajectory
            table = pa.table({"action": states, "observation.state": states})
            pq.write_table(table, train / "trajectories" / f"demo_{number}.parquet")
    one_frame, five_frames = frame_sha256(stored_frames(2)[:SIDE]), frame_sha256(stored_frames(0))
    wanted = {one_frame, five_frames, frame_sha256(stored_frames(1)[:SIDE]), frame_sha256(stored_frames(7)[:SIDE])}
    found = known_first_states(RunFolder(tmp_path), wanted, 2)
    assert {sha256: state_S.tolist() for sha256, state_S in found.items()} == {
        one_frame: [2, 0.5],
        five_frames: [0, 0.5],
    }
    assert known_first_states(RunFolder(tmp_path), wanted, 3) == {}  # of another robot
    assert known_first_states(RunFolder(tmp_path / "none"), wanted, 2) == {}
