"""What the Meta-World recorder writes with the project's LeRobot writer; it needs no simulator."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from dreamgen.run.files import read_json
from export.check import check
from tests.fixtures.runs import moving_square, random_vectors

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "metaworld"
NUM_FRAMES, SIZE_PX = 9, 64
NAMES = {"observation.state": ("x", "y"), "action": ("dx", "dy", "grip")}


@pytest.fixture
def dataset_module(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    sys.modules.pop("dataset", None)
    import dataset  # pyright: ignore[reportMissingImports]

    yield dataset
    del sys.modules["dataset"]


def test_recorded_episodes_become_a_dataset_without_findings(dataset_module, tmp_path):
    videos = [moving_square(number, NUM_FRAMES, SIZE_PX, SIZE_PX) for number in range(3)]
    vectors = [random_vectors(number, NUM_FRAMES, 3, 2) for number in range(3)]
    extras = {"source_task": "push", "scene": "", "behavior": "expert", "success": True, "frames_to_success": 4,
              "done_at_end": True}  # fmt: skip
    episodes = [
        dataset_module.store_episode(
            tmp_path / f"{number}.mp4", list(videos[number]), 16, f"push {number % 2}",
            {"observation.state": state_TS, "action": action_TA}, {**extras, "seed": number},
        )
        for number, (action_TA, state_TS) in enumerate(vectors)
    ]  # fmt: skip
    root, markers = tmp_path / "recorded", tmp_path / "markers"
    root.mkdir()
    markers.mkdir()
    with ThreadPoolExecutor(1) as pool:
        dataset_module.write_dataset(root, markers, episodes, 16, SIZE_PX, NAMES, pool)
    assert check(root) == []
    dataset = LeRobotDataset("local/recorded", root=root, video_backend="pyav", return_uint8=True)
    for number in range(3):
        for frame in (0, 4, 8):
            row = dataset[number * NUM_FRAMES + frame]
            np.testing.assert_array_equal(row["action"].numpy(), vectors[number][0][frame])
            shown = row[dataset_module.CAMERA_FEATURE].permute(1, 2, 0).numpy().astype(int)
            assert np.abs(shown - videos[number][frame]).mean() < 4 and row["task"] == f"push {number % 2}"
    stats = read_json(root / "meta/stats.json")[dataset_module.CAMERA_FEATURE]
    expected = np.mean([video_THWC.mean((0, 1, 2)) / 255 for video_THWC in videos], axis=0)
    np.testing.assert_allclose(np.ravel(stats["mean"]), expected, atol=0.02)
