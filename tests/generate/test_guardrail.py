"""What the guardrail refuses is rejected, by a class with the real one's shape, through the whole stage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray
import torch

from dreamgen.data.video import read_video
from dreamgen.generate.clip_status import STAGE
from dreamgen.generate.stage import generate
from dreamgen.run.jobs import read_jobs
from dreamgen.run.journal import read_journal
from tests.fixtures.world import make_world, planned_run, tiny_settings, write_pairs

# As NVIDIA's package: a module whose `to` takes a device and a dtype and returns nothing, whose device is that of
# models that it does not register, and which gives a safe video back changed, as the real one blurs faces.
PACKAGE = """
import numpy as np
import torch


class CosmosSafetyChecker(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.models = [torch.nn.Linear(1, 1)]

    def check_text_safety(self, prompt: str) -> bool:
        return "drawer" not in prompt

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray | None:
        assert frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3
        self.models[0](torch.zeros(1, 1, device=self.device))
        return np.array([np.zeros_like(frame) for frame in frames])

    def to(self, device=None, dtype=None) -> None:
        self.models[0].to(device=device, dtype=dtype)

    @property
    def device(self) -> torch.device:
        return self.models[0].weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.models[0].weight.dtype
"""


@pytest.fixture
def settings(tmp_path: Path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    world, pairs = make_world(tmp_path / "world"), write_pairs(tmp_path / "pairs")
    yield tiny_settings(tmp_path / "run", world, pairs, model={"safety_checker": True})
    torch.set_num_threads(before)
    ray.shutdown()


@pytest.mark.slow
def test_refused_prompts_are_rejected_once_and_not_failed(settings, tmp_path, monkeypatch):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "cosmos_guardrail.py").write_text(PACKAGE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"), prepend=os.pathsep)  # for the workers
    run = planned_run(settings)
    result = generate(settings)
    records = read_journal(run.journal, STAGE)
    record_of = {job.instruction: records[job.clip_id] for job in read_jobs(run.jobs)}
    refused = record_of.pop("open the drawer")
    assert (refused.status, refused.reason, refused.attempt) == ("rejected", "the guardrail found the prompt unsafe", 1)
    assert not result.partial and result.metrics["num_failed"] == result.metrics["num_left"] == 0
    assert (result.metrics["num_rejected"], result.metrics["num_done"]) == (1, 2)
    for record in record_of.values():  # what the guardrail gave back is what was written
        assert record.status == "ok" and record.metrics["safety_checker"] is True
        assert read_video(run.root / record.file).max() < 8
    assert generate(settings).notes[0] == "nothing was left to do"
