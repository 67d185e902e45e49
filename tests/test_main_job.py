"""The main job through the command line, as a user types it: all stages, resume, and what wrong input gets."""

import contextlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from dreamgen.cli.main import main
from tests.fixtures.demos import CAMERA, add_camera, write_lerobot_v20, write_lerobot_v21, write_plain
from tests.fixtures.runs import lenient

# The mini preset cut down to what proves that the stages fit together.
SMALL = [
    "--config_path=mini", "--model.path=mini-random", "--video.height=64", "--video.width=64", "--video.num_frames=9",
    "--finetune.num_steps=2", "--finetune.tracker=none", "--idm.num_steps=20", "--idm.image_px=32", "--idm.horizon=4",
    "--plan.num_inference_steps=2", "--plan.num_first_frames=2", "--generate.num_workers=1",
    *(f"--curate.{name}={limit}" for name, limit in lenient().items()),
]  # fmt: skip


@dataclass(frozen=True)
class Output:
    """What a command printed."""

    stdout: str
    stderr: str


def dreamgen(*words: object, status: int = 0) -> Output:
    """Run a command in this process: importing the libraries takes a new process ten seconds."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        found = main([str(word) for word in words])
    done = Output(stdout.getvalue(), stderr.getvalue())
    assert found == status, f"exit status {found}\n{done.stdout}\n{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("main_job")
    demos = write_lerobot_v20(folder / "demos", num_episodes=3, num_frames=24)
    dreamgen("run", *SMALL, "--demos", demos, "--out", folder / "run")
    return folder / "run"


def test_a_run_leaves_all_its_outputs(finished_run):
    for name in ("train/metadata.csv", "adapter/pytorch_lora_weights.safetensors", "idm/config.json", "jobs.parquet",
                 "scores/scores.parquet", "report.html", "run.yaml"):  # fmt: skip
        assert (finished_run / name).is_file(), name
    assert len(list(finished_run.glob("clips/*/*.mp4"))) == 2
    assert len(list(finished_run.glob("labels/*/*.parquet"))) == 2
    recorded = yaml.safe_load((finished_run / "run.yaml").read_text())
    assert recorded["model"]["safety_checker"] is False
    assert recorded["plan"]["num_inference_steps"] == 2


def test_the_datasets_open_in_the_libraries_that_users_read_with(finished_run):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from torch.utils.data import DataLoader

    dataset = LeRobotDataset("local/run", root=finished_run / "datasets" / "lerobot-v3.0", video_backend="pyav")
    assert (dataset.meta.total_episodes, len(dataset)) == (2, 18)
    batch = next(iter(DataLoader(dataset, batch_size=18)))
    assert batch["observation.images.ego_view"].shape == (18, 3, 64, 64)
    assert batch["action"].shape[0] == 18
    with h5py.File(next((finished_run / "datasets" / "robomimic").glob("*.hdf5"))) as file:
        actions_TA = file["data/demo_0/actions"][:]
        assert len(actions_TA) == 9
        assert np.abs(actions_TA).max() <= 1
    for name in ("lerobot-v3.0", "lerobot-v2.1", "robomimic"):
        results = json.loads(dreamgen("check", finished_run / "datasets" / name, "--json").stdout)
        assert results[0]["figures"]["num_errors"] == 0


@pytest.mark.slow
def test_two_cameras_are_generated_together_and_exported_apart(tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    wrist = "observation.images.wrist"
    write_lerobot_v21(tmp_path / "demos", num_episodes=3, num_frames=24)
    add_camera(tmp_path / "demos", wrist, 40, 40)
    chosen = ["--prepare.cameras=[ego_view, wrist]", "--export.formats=[lerobot-v3.0]"]
    dreamgen("run", *SMALL, "--demos", tmp_path / "demos", "--out", tmp_path / "run", *chosen)
    dataset = LeRobotDataset("local/run", root=tmp_path / "run/datasets/lerobot-v3.0", video_backend="pyav")
    assert (dataset.meta.total_episodes, sorted(dataset.meta.video_keys)) == (2, sorted([CAMERA, wrist]))
    assert dataset[17][CAMERA].shape == dataset[17][wrist].shape == (3, 64, 32)
    dreamgen("check", tmp_path / "run/datasets/lerobot-v3.0")


@pytest.mark.slow
def test_a_finished_run_is_not_touched_without_resume_and_does_nothing_with_it(finished_run):
    before = {p: p.stat().st_mtime_ns for p in finished_run.glob("clips/*/*.mp4")}
    refused = dreamgen("run", *SMALL, "--out", finished_run, "--demos", finished_run / "x", status=2)
    assert "in use" in refused.stderr
    assert "--resume" in refused.stderr
    dreamgen("run", "--out", finished_run, "--resume")
    assert {p: p.stat().st_mtime_ns for p in finished_run.glob("clips/*/*.mp4")} == before
    changed = dreamgen("run", "--out", finished_run, "--resume", "--video.height=96", status=2)
    assert "video.height: 64 -> 96" in changed.stderr


@pytest.mark.slow
def test_findings_of_check_are_shown_and_end_the_run_with_status_1(finished_run):
    stray = finished_run / "datasets" / "lerobot-v3.0" / "data" / "chunk-000" / "file-000.parquet"
    whole = stray.read_bytes()
    try:
        stray.write_bytes(whole[:-10])
        done = dreamgen("run", "--out", finished_run, "--resume", status=1)
        assert "lerobot-v3.0" in done.stdout
        assert "Traceback" not in done.stderr
    finally:
        stray.write_bytes(whole)


def test_a_later_stage_cannot_change_what_the_clips_were_made_with(finished_run):
    import pyarrow.parquet as pq

    dreamgen("curate", "--out", finished_run, "--model.safety_checker=true", "--demos=elsewhere")
    recorded = yaml.safe_load((finished_run / "run.yaml").read_text())
    assert recorded["model"]["safety_checker"] is False
    assert recorded["demos"] != "elsewhere"
    rows = pq.read_table(finished_run / "datasets" / "lerobot-v3.0.provenance.parquet").to_pylist()
    assert [row["safety_checker"] for row in rows] == [False, False]


@pytest.mark.slow
def test_demonstrations_without_actions_end_in_clips_and_a_page(tmp_path):
    demos = write_plain(tmp_path / "plain", num_episodes=2, num_frames=12)
    done = dreamgen("run", *SMALL, "--curate.max_cut_score=0", "--demos", demos, "--out", tmp_path / "run")
    assert "no actions" in done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    assert len(list((tmp_path / "run").glob("clips/*/*.mp4"))) == 2


@pytest.mark.slow
def test_a_run_in_which_nothing_is_accepted_still_gets_its_page(finished_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    shutil.rmtree(out / "datasets")
    done = dreamgen("run", "--out", out, "--resume", "--curate.min_motion=1000", status=3)
    assert "min_motion=1000 rejected" in done.stdout
    assert not (out / "datasets").exists()
    assert "1000" in (out / "report.html").read_text()


def test_more_seeds_add_clips_to_a_run(finished_run):
    metrics = json.loads(dreamgen("plan", "--out", finished_run, "--num_seeds=2", "--json").stdout)[0]["figures"]
    assert metrics["num_new"] == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "--config_path=mini", "--demos", "{tmp}/nowhere", "--out", "{tmp}/run"], "does not exist"),
        (["run", "--config_path=mini", "--demos", "{tmp}/empty", "--out", "{tmp}/run"], "empty"),
        (["run", "--config_path=mini", "--demos", "{tmp}/plain", "--out", "{tmp}/run"], "shorter than a window"),
        (["run", "--demos", "{tmp}/plain", "--out", "{tmp}/run"], "cosmos_guardrail"),
        (["run", "--config_path=mini", "--demos", "{tmp}/plain", "--out", "{tmp}/plain/demo_0.txt"], "demo_0.txt"),
        (["demo", "--video.height=64"], "does not take"),
        (["run", "--demos", "{tmp}/plain", "--out", "{tmp}/run", "--video.height=100"], "--video.height=96"),
        (["run", "--demos", "{tmp}/plain", "--out", "{tmp}/run", "--video.hieght=96"], "video.height"),
        (["run", "--demos", "{tmp}/plain"], "--out"),
        (["generate", "--out", "{tmp}/run"], "dreamgen plan"),
        (["export", "--out", "{tmp}/run"], "dreamgen"),
        (["check", "{tmp}/nowhere"], "nowhere"),
        (["check", "{tmp}/empty"], "empty"),
        (["run", "--config_path=nothing.yaml"], "mini"),
        (["dream"], "unknown command"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_wrong_input_gets_a_clear_error_and_leaves_nothing(tmp_path, words, says):
    (tmp_path / "empty").mkdir()
    write_plain(tmp_path / "plain", num_episodes=1, num_frames=9)
    before = sorted(tmp_path.rglob("*"))
    done = dreamgen(*(word.format(tmp=tmp_path) for word in words), status=2)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_the_real_demonstrations_are_prepared_with_their_quirks_reported(real_demos, tmp_path):
    out = dreamgen("prepare", "--config_path=mini", "--demos", real_demos, "--out", tmp_path / "real", "--json").stdout
    result = json.loads(out)[0]
    assert result["figures"]["changed"] + result["figures"]["used"] == 5
    notes = " ".join(result["notes"])
    assert "observation.images.egoview" in notes
    assert "valid" in notes
    metadata = (tmp_path / "real" / "train" / "metadata.csv").read_text()
    assert "pick the pear from the counter and place it in the plate" in metadata
