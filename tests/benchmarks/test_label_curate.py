"""Which GPUs, cores and workers benchmarks/label_curate.py measures, and that it measures them."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import label_curate
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def cases(monkeypatch, **given):
    monkeypatch.setattr(label_curate, "gpus_here", lambda: 2)
    monkeypatch.setattr(label_curate, "whole_cores", lambda: tuple(range(32)))
    options = {"gpus": None, "workers": None, "gpus_per_worker": None, "against": None, **given}
    found = label_curate.cases_of(argparse.Namespace(**options))
    return [(case.num_gpus, len(case.cores), case.num_workers, case.gpus_per_worker) for case in found]


def test_each_number_of_gpus_has_its_share_of_the_cores(monkeypatch):
    assert cases(monkeypatch) == [(None, 32, 1, 0), (None, 32, 2, 0)]
    assert cases(monkeypatch, gpus=[1, 2]) == [(1, 16, 16, 0.0625), (2, 32, 32, 0.0625)]
    assert cases(monkeypatch, gpus=[1], workers=[3, 12]) == [(1, 16, 3, 0.3333), (1, 16, 12, 0.0833)]
    assert cases(monkeypatch, gpus=[2], gpus_per_worker=0.0) == [(2, 32, 32, 0)]  # labels on the CPU


def test_cores_are_those_of_this_process():
    assert sorted(label_curate.whole_cores()) == sorted(os.sched_getaffinity(0))


@pytest.mark.slow
def test_one_gpu_and_two_in_one_table(tmp_path):
    command = ["benchmarks/label_curate.py", "--clips", "12", "--gpus", "1", "2", "--workers", "1"]
    size = ["--height", "64", "--width", "96", "--num_frames", "17", "--dims", "4"]
    done = subprocess.run(
        [sys.executable, *command, *size, "--folder", str(tmp_path), "--out", str(tmp_path / "report.json")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [(row["gpus"], row["workers"]) for row in rows] == [(1, 1), (2, 2)]
    assert all(row["clips_per_s"] > 0 and row["started_clips_per_s"] > 0 for row in rows)
    assert done.stdout.count("\n|") == 3
