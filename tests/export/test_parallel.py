"""Workers change no byte, frames stay with their actions across files, and nothing is lost in a kill."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from dreamgen.data.video import read_video
from dreamgen.errors import UserError
from dreamgen.run.files import read_json
from dreamgen.run.jobs import accepted_clips
from dreamgen.run.records import RobotFeatures
from export import export_datasets
from export.check import check
from export.clips import generated_clips
from export.episodes import read_label
from export.formats.lerobot import FileLimits, write_lerobot_v21, write_lerobot_v30
from export.spec import dataset_spec
from export.staging import STAGING_FOLDER
from export.validation import validate_clips
from export.workers import Workers
from tests.fixtures.local_ray import start_ray
from tests.fixtures.runs import CAMERA, make_run, random_vectors, run_settings, write_label

LENGTHS = (5, 9, 13, 17)
V30 = ["lerobot-v3.0"]
FORMATS = [*V30, "lerobot-v2.1"]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A run of 200 accepted clips of four lengths, at 15 frames a second."""
    folder = tmp_path_factory.mktemp("many") / "run"
    return make_run(folder, num_clips=200, num_frames=LENGTHS, rejected=0, height=32, width=32, fps=15)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_all(run, folder: Path, num_workers: int) -> Path:
    """Write both LeRobot formats with files so small that there are many."""
    features = RobotFeatures.from_dict(read_json(run.train / "features.json"))
    for name in ("episodes", "v30", "v30.done", "v21", "v21.done"):
        (folder / name).mkdir(parents=True)
    clips = generated_clips(accepted_clips(run))
    with Workers(num_workers) as workers:
        episodes, refused = validate_clips(clips, features, True, folder / "episodes", workers)
        assert not refused
        spec = dataset_spec(run_settings(run.root).export, features, episodes[0])
        limits = FileLimits(data_mb=0.03, video_mb=0.03, chunks_size=7)
        write_lerobot_v30(folder / "v30", folder / "v30.done", episodes, spec, workers, limits)
        write_lerobot_v21(folder / "v21", folder / "v21.done", episodes, spec, workers)
    return folder


@pytest.fixture(scope="module")
def written(many, tmp_path_factory) -> Path:
    return write_all(many, tmp_path_factory.mktemp("one") / "worker", num_workers=1)


def test_every_number_of_workers_writes_the_same_bytes(many, written, tmp_path):
    again = write_all(many, tmp_path / "three", num_workers=3)
    for name in ("v30", "v21"):
        assert files_of(written / name) == files_of(again / name)


def test_frames_equal_the_clips_at_random_indices_across_files(many, written):
    root, clips = written / "v30", accepted_clips(many)
    assert len(list(root.glob(f"videos/{CAMERA}/*/*.mp4"))) > 10 and len(list(root.glob("data/*/*.parquet"))) > 10
    dataset = LeRobotDataset("dreamgen/test", root=root, video_backend="pyav", return_uint8=True)
    starts = np.cumsum([0, *(clip.num_frames for clip in clips)])
    assert len(dataset) == starts[-1] and dataset.num_episodes == 200
    edges = [int(start) for start in starts[1:-1:7]] + [int(start) - 1 for start in starts[1:-1:7]]
    random = np.random.default_rng(0).integers(0, starts[-1], 150).tolist()
    for index in edges + random:
        number = int(np.searchsorted(starts, index, side="right")) - 1
        frame, clip = index - int(starts[number]), clips[number]
        item = dataset[index]
        np.testing.assert_array_equal(item[CAMERA].permute(1, 2, 0).numpy(), read_video(clip.video)[frame])
        action_TA, state_TS = read_label(clip.label, include_state=True)
        np.testing.assert_array_equal(item["action"].numpy(), action_TA[frame])
        np.testing.assert_array_equal(item["observation.state"].numpy(), state_TS[frame])
        assert (int(item["episode_index"]), int(item["frame_index"])) == (number, frame)


def test_the_checker_finds_nothing(written):
    assert check(written / "v30") == [] and check(written / "v21") == []


def test_a_clip_refused_in_the_middle_leaves_no_hole(tmp_path):
    run = make_run(tmp_path / "run", num_clips=40, num_frames=5, rejected=0)
    clips = accepted_clips(run)
    for number in (0, 17, 39):
        write_label(clips[number].label, *random_vectors(1, 4, 5, 4))
    result = export_datasets(run_settings(run.root, export={"formats": FORMATS, "num_workers": 2}))
    assert result.metrics["episodes"] == 37 and result.metrics["left_out"] == 3
    for name in FORMATS:
        assert check(run.datasets / name) == []
    dataset = LeRobotDataset("dreamgen/test", root=run.datasets / "lerobot-v3.0", video_backend="pyav")
    kept = [clip for number, clip in enumerate(clips) if number not in (0, 17, 39)]
    for number in (0, 15, 16, 36):
        action_TA, _ = read_label(kept[number].label, include_state=False)
        np.testing.assert_array_equal(dataset[number * 5 + 2]["action"].numpy(), action_TA[2])


KILLED = """
import os, signal, sys
from dreamgen.config.loading import settings_from_dict
from export import export_datasets
from export.workers import Workers

run, done = Workers.run, 0
def run_and_die(self, tasks):
    global done
    for result in run(self, tasks):
        done += 1
        if done == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield result
Workers.run = run_and_die
export_datasets(settings_from_dict({"out": sys.argv[1], "model": {"path": "mini", "dtype": "float32"},
    "video": {"height": 32, "width": 48, "num_frames": 5},
    "export": {"num_workers": 1, "formats": ["lerobot-v3.0", "lerobot-v2.1"]}}))
"""


@pytest.mark.parametrize("after", [2, 4, 6, 7])
def test_killed_at_any_moment_it_goes_on_and_writes_the_same(after, tmp_path):
    # 3 files of inspected clips, then 2 of v3.0 (rows, video), then 1 of v2.1: the kill is in each of them once.
    runs = [make_run(tmp_path / name, num_clips=40, num_frames=5, rejected=0) for name in ("killed", "whole")]
    done = subprocess.run([sys.executable, "-c", KILLED, str(runs[0].root), str(after)], capture_output=True)
    if after < 7:
        assert done.returncode == -signal.SIGKILL
        assert (runs[0].datasets / STAGING_FOLDER).is_dir() and not (runs[0].datasets / "lerobot-v2.1").exists()
    assert (runs[0].datasets / "lerobot-v3.0").exists() == (after >= 6), "whole or absent"
    for run in runs:
        export_datasets(run_settings(run.root, num_frames=5, export={"formats": FORMATS}), resume=True)
        assert not (run.datasets / STAGING_FOLDER).exists()
    assert files_of(runs[0].datasets).keys() == files_of(runs[1].datasets).keys()
    for name, data in files_of(runs[0].datasets).items():
        assert data == files_of(runs[1].datasets)[name], name


def test_leftovers_of_other_clips_are_not_used(tmp_path):
    run = make_run(tmp_path / "run", num_clips=40, num_frames=5, rejected=0)
    subprocess.run([sys.executable, "-c", KILLED, str(run.root), "4"], capture_output=True)
    clip = accepted_clips(run)[3]
    action_TA, state_TS = random_vectors(99, 5, 5, 4)
    write_label(clip.label, action_TA, state_TS)
    export_datasets(run_settings(run.root, num_frames=5, export={"formats": FORMATS}))
    dataset = LeRobotDataset("dreamgen/test", root=run.datasets / "lerobot-v3.0", video_backend="pyav")
    np.testing.assert_array_equal(dataset[3 * 5]["action"].numpy(), action_TA[0])


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import functools, os, time, sys; from export.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    tasks = (functools.partial(os.getpid) if n < 2 else functools.partial(time.sleep, 60) for n in range(9))\n"
        "    for pid in Workers(2).run(tasks): print(pid, flush=True)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=env)
    pids = {int(parent.stdout.readline()) for _ in range(2)}
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return
        time.sleep(0.1)
    raise AssertionError("workers outlive the process that they work for")


def test_what_a_finished_export_could_not_remove_goes_with_the_next_one(tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    settings = run_settings(run.root, export={"formats": V30})
    export_datasets(settings)
    (run.datasets / STAGING_FOLDER / "episodes").mkdir(parents=True)
    (run.datasets / STAGING_FOLDER / "lock").touch()
    export_datasets(settings, resume=True)
    assert not (run.datasets / STAGING_FOLDER).exists() and (run.datasets / V30[0]).exists()


def test_an_export_at_a_time(tmp_path):
    import fcntl

    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    (run.datasets / STAGING_FOLDER).mkdir(parents=True)
    with (run.datasets / STAGING_FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another export"):
            export_datasets(run_settings(run.root))


def test_too_little_space_is_an_error_before_anything_is_written(tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    with pytest.raises(UserError, match="no room for the datasets") as refused:
        export_datasets(run_settings(run.root, export={"keep_free_gib": 1e9}))
    assert "GiB free" in str(refused.value) and "lerobot-v3.0" in str(refused.value)
    assert not run.datasets.exists()


@pytest.fixture(scope="module")
def ray_running():
    """Ray with two cores."""
    import ray

    start_ray(2)
    yield
    ray.shutdown()


@pytest.fixture
def cluster(ray_running, monkeypatch):
    """The same, as a cluster that a user named."""
    monkeypatch.setenv("RAY_ADDRESS", "auto")


def test_tasks_of_a_ray_cluster_write_the_same_bytes(cluster, tmp_path):
    run = make_run(tmp_path / "run", num_clips=40, num_frames=5, rejected=0)
    datasets = {}
    for num_workers in (1, 2):
        export_datasets(run_settings(run.root, export={"formats": FORMATS, "num_workers": num_workers}))
        datasets[num_workers] = files_of(run.datasets)
        shutil.rmtree(run.datasets)
    assert datasets[1] == datasets[2]


def test_a_user_error_in_a_ray_task_stays_one(cluster):
    with pytest.raises(UserError, match="nowhere"), Workers(2) as workers:
        list(workers.run(functools.partial(read_label, Path("a/b/nowhere"), True) for _ in range(3)))
