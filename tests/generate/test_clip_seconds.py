"""Estimates of a run's clips from the table of measured ones."""

import numpy as np
import pytest

from dreamgen.generate.clip_seconds import known_seconds
from dreamgen.run.jobs import JobRows
from tests.generate.clips import replan, write_generated_run

MEASURED = {"model": "nvidia/Cosmos-Predict2.5-2B@main", "num_frames": 93, "height": 432, "width": 768,
            "num_inference_steps": 36, "guidance_scale": 7.0}  # fmt: skip


def test_known_clips_are_added_up_by_level_and_size(tmp_path):
    jobs = write_generated_run(tmp_path, [np.zeros((2, 64, 64, 3), np.uint8)] * 4)
    replan(tmp_path, jobs, 0, **MEASURED)
    rows = JobRows(tmp_path / "jobs.parquet", np.arange(4))
    assert known_seconds(rows) is None  # the others are of a model that was not measured
    first = JobRows(rows.path, np.arange(1))
    seconds, basis = known_seconds(first)
    assert seconds == 42.7 and "H200" in basis and "36 denoising steps" in basis

    jobs = [type(job)(**{**vars(job), **MEASURED}) for job in jobs]
    replan(tmp_path, jobs, 1, level="turbo")
    assert known_seconds(rows)[0] == pytest.approx(3 * 42.7 + 18.3)
    replan(tmp_path, jobs, 1, num_inference_steps=18, guidance_scale=1.0)
    assert known_seconds(rows)[0] == pytest.approx(3 * 42.7 + 42.7 / 4)
