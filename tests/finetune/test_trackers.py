"""wandb (offline) and trackio take a training's curves, and a resumed training goes on in the same run of theirs."""

import importlib.util
import json
import shutil

import pytest

from finetune import finetune
from tests.finetune.conftest import training_settings, write_training_set


@pytest.fixture
def trained_twice(world, tmp_path, monkeypatch):
    """Return a function that trains, then goes on from the checkpoint in the middle, and returns the run's id."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported

    def train(tracker: str) -> str:
        if importlib.util.find_spec(tracker) is None:
            pytest.skip(f"{tracker} is not installed: pip install {tracker}")
        write_training_set(tmp_path)
        settings = training_settings(tmp_path, world, finetune={"tracker": tracker, "checkpoint_every": 2})
        finetune(settings)
        shutil.rmtree(tmp_path / "adapter")
        finetune(settings, resume=True)
        return json.loads((tmp_path / "finetune/checkpoints/last/state.json").read_text())["tracker_run"]

    return train


def test_wandb_keeps_its_files_in_the_run_and_its_id(trained_twice, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run_id = trained_twice("wandb")
    parts = sorted((tmp_path / "finetune/wandb").glob("offline-run-*"))
    assert parts and all(part.name.endswith(f"-{run_id}") for part in parts)
    assert not list(elsewhere.iterdir())
    logged = b"".join(path.read_bytes() for part in parts for path in part.glob("*.wandb"))
    assert b"samples_per_s" in logged and b"grad_norm" in logged


def test_trackio_goes_on_in_the_same_run(trained_twice, capfd):
    run_id = trained_twice("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs("dreamgen") == [run_id]
    logs = SQLiteStorage.get_logs("dreamgen", run_id)
    assert {row["step"] for row in logs} == {1, 2, 3, 4} and all("loss" in row for row in logs)
    assert "trackio" not in capfd.readouterr().out.lower()  # results alone go there
