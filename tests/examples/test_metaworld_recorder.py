"""The Meta-World recorder, run as a user runs it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dreamgen.data.video import read_video

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "metaworld"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="the extra `sim` is not installed"),
]


def _run(*arguments):
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}
    return subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True)


def _record(out, *options):
    done = _run(FOLDER / "record.py", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    options = ("--set", "base", "--tasks", "door-open", "door-close", "--episodes_per_task", "1")
    counts = [_record(folder / str(workers), *options, "--workers", workers) for workers in (1, 2)]
    return folder, counts


def test_the_same_seed_gives_the_same_dataset_with_any_number_of_workers(recorded):
    folder, counts = recorded
    assert counts[0]["num_episodes"] == counts[1]["num_episodes"] >= 3
    one, two = (
        sorted(file.relative_to(root) for file in root.rglob("*") if file.is_file())
        for root in (folder / "1", folder / "2")
    )
    assert one == two
    assert all((folder / "1" / name).read_bytes() == (folder / "2" / name).read_bytes() for name in one)


def test_the_dataset_has_no_findings_and_the_documented_columns(recorded):
    root = recorded[0] / "1"
    assert _run("-m", "dreamgen", "check", root).returncode == 0
    info = json.loads((root / "meta" / "info.json").read_text())
    assert info["fps"] == 16
    rows = pq.read_table(root / "data")
    assert rows["observation.environment_state"].type.list_size == 9 and rows["action"].type.list_size == 4
    actions = np.stack(rows["action"].to_numpy())
    assert np.abs(actions).max() <= 1
    episodes = pq.read_table(root / "meta" / "episodes").to_pylist()
    assert {row["length"] for row in episodes} == {25} and all(row["success"] for row in episodes)
    assert {row["scene"] for row in episodes} == {"", "ajar-door"}


def test_tasks_of_one_scene_begin_alike_and_actions_can_be_replayed(tmp_path):
    program = tmp_path / "replay.py"
    program.write_text(f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import numpy as np
from record import check_simulator
check_simulator()
from episodes import run_episode
from scene import Scene
from tasks import VARIATIONS

for variation in VARIATIONS.values():  # the instruction alone may tell the tasks apart
    starts = []
    for task in variation.tasks:
        scene = Scene(task, 5, variation, 0)
        starts.append(scene.reset(3, "train").state)
        scene.close()
    assert all(np.array_equal(starts[0], start) for start in starts), variation.name

variation, frames = VARIATIONS["faucet"], []
for task in variation.tasks:
    scene = Scene(task, 5, variation)
    recorded = run_episode(scene, "expert", 3, "train", 25)
    scene.reset(99)  # another episode in between changes nothing
    moments = [scene.reset(3, "train")]
    frames.append(scene.render())
    moments += [scene.step(action) for action in recorded.action_TA[:-1]]
    assert np.allclose([m.state for m in moments], recorded.state_TS, atol=1e-4)
    assert recorded.success
    scene.close()
assert np.array_equal(*frames) and frames[0].std() > 20
""")
    done = _run(program)
    assert done.returncode == 0, done.stderr


def test_wrong_options_are_refused_in_a_sentence(tmp_path):
    done = _run(FOLDER / "record.py", "--set", "heldout", "--tasks", "door-open", "--out", tmp_path / "x")
    assert done.returncode == 2 and "--tasks" in done.stderr and "Traceback" not in done.stderr


def test_frames_show_the_scene_upright(recorded):
    video = next((recorded[0] / "1" / "videos").rglob("*.mp4"))
    frame_HWC = read_video(video)[0].astype(int)
    # The gray wall is above the brown table.
    assert abs(frame_HWC[:20, 100:, 0] - frame_HWC[:20, 100:, 2]).mean() < 12
    assert (frame_HWC[100:, 64:, 0] - frame_HWC[100:, 64:, 2]).mean() > 20
