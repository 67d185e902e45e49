"""The world model of docs/extending/world_model.md, installed from the page, goes through train, plan and generate."""

import csv
import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from dreamgen.config.settings import Settings
from dreamgen.data.images import write_png
from dreamgen.data.video import read_video, write_video
from dreamgen.errors import UserError
from dreamgen.generate.stage import generate
from dreamgen.models.world_model import WORLD_MODELS, WorldModel, check_size, model_type_name
from dreamgen.plan.stage import plan
from dreamgen.run.jobs import read_jobs
from dreamgen.run.run_folder import RunFolder
from finetune import finetune
from tests.fixtures.documented import install_documented
from tests.fixtures.world import tiny_settings

HEIGHT, WIDTH, NUM_FRAMES = 34, 46, 6  # sizes that Cosmos Predict 2.5 refuses


@pytest.fixture
def drift(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    install_documented("extending/world_model.md", folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)  # for the workers
    monkeypatch.setattr(WORLD_MODELS, "_entries", dict(WORLD_MODELS._entries))
    monkeypatch.setattr(WORLD_MODELS, "_has_entry_points", False)
    importlib.invalidate_caches()
    yield folder
    for name in ("drift_type", "drift_model"):
        sys.modules.pop(name, None)
    ray.shutdown()


def picture() -> np.ndarray:
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    blob = 200 * np.exp(-((rows - 14) ** 2 + (columns - 16) ** 2) / 60)
    return np.stack([blob, blob / 2, np.full_like(blob, 40)], axis=-1).astype(np.uint8)


def moving_clips(root: Path) -> None:
    """Write a training set in which everything moves right by one pixel a frame."""
    lines = [["file_name", "prompt", "num_frames"]]
    for index in range(2):
        video_THWC = np.stack([np.roll(picture(), t, axis=1) for t in range(NUM_FRAMES)])
        write_video(root / f"train/videos/{index}.mp4", video_THWC, 16, crf=1)
        lines.append([f"videos/{index}.mp4", f"task {index}", str(NUM_FRAMES)])
    with (root / "train/metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(lines)


def drift_settings(out: Path, **sections) -> Settings:
    settings = tiny_settings(out, Path("drift"), **sections)
    return replace(settings, video=replace(settings.video, height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES, gop=2))


def test_a_model_of_another_package_is_trained_planned_and_generates(drift, tmp_path):
    write_png(tmp_path / "frames/kitchen.png", picture())
    (tmp_path / "frames/kitchen.txt").write_text("pick up the cup")
    tune = {"num_steps": 40, "learning_rate": 0.1, "tracker": "none", "validation_clips": 1, "sample_every": 20}
    settings = drift_settings(
        tmp_path / "run", finetune=tune, plan={"first_frames": str(tmp_path / "frames"), "num_seeds": 2}
    )
    assert model_type_name(settings.model) == "drift"
    moving_clips(tmp_path / "run")
    trained = finetune(settings)
    assert trained.metrics["final_loss"] < 1e-3
    assert (tmp_path / "run/finetune/samples/step-000020.mp4").is_file()
    assert "WorldModel.load('drift'" in (tmp_path / "run/adapter/README.md").read_text()

    assert plan(settings).metrics["num_new"] == 2
    run = RunFolder.of(settings)
    result = generate(settings)
    assert result.metrics["num_done"] == 2, result.notes
    first, second = (read_video(run.clip_file(job.clip_id)).astype(int) for job in read_jobs(run.jobs))
    assert first.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3) and (first != second).any()
    peaks = first[..., 0].sum(axis=1).argmax(axis=1)  # the column of the brightest spot in each frame
    assert peaks[-1] - peaks[0] == pytest.approx(NUM_FRAMES - 1, abs=1)  # as in the training set

    model = WorldModel.load("drift", adapter=run.adapter, device="cpu", safety_checker=False)
    video_THWC = model.generate(picture(), "pick up the cup", num_frames=NUM_FRAMES, height=HEIGHT, width=WIDTH)
    assert np.abs(video_THWC.astype(int) - first).mean() < 10
    assert not torch.equal(model.drift.velocity, torch.zeros(2))


def test_its_own_rules_apply(drift, tmp_path):
    settings = drift_settings(tmp_path / "run")
    check_size(settings)
    with pytest.raises(UserError, match="video.width is not divisible by 2"):
        check_size(replace(settings, video=replace(settings.video, width=45)))
    for changes in ({"condition": "text", "instructions": ["wave"]}, {"level": "turbo"}):
        write_png(tmp_path / "frames/kitchen.png", picture())
        (tmp_path / "frames/kitchen.txt").write_text("pick up the cup")
        with pytest.raises(UserError, match="does not take this conditioning|no faster sampling"):
            plan(drift_settings(tmp_path / "run", plan={"first_frames": str(tmp_path / "frames"), **changes}))
