"""Kills of workers, nodes and drivers while clips are labeled and measured leave no trace."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_labels_scores_and_records_are_those_of_one_process_after_kills(tmp_path):
    command = ["benchmarks/label_faults.py", "--kills", "3", "--clips", "36", "--frames", "33", "--px", "128"]
    done = subprocess.run(
        [sys.executable, *command, "--seed", "8", "--out", str(tmp_path / "faults.json")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((tmp_path / "faults.json").read_text())
    assert {kill["kind"] for kill in report["kills"]} == {"worker", "node", "driver"}
    assert report["num_clips"] == 36 and report["driver_starts"] >= 2
    wrong = ("num_lost", "num_twice", "num_other_labels", "num_other_records", "num_other_rows")
    assert [report[name] for name in wrong] == [0] * 5
