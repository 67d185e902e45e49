"""What the demo prints: little, and nothing that looks like an error where nothing is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

MAX_LINES = 80
TROUBLE = re.compile(r"traceback|warning|deprecat|error:|torchcodec", re.IGNORECASE)


def run(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_the_whole_demo_prints_few_lines_and_no_trouble(tmp_path):
    done = run("-m", "dreamgen", "demo", "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr[-4000:]
    lines = (done.stdout + done.stderr).splitlines()
    assert [line for line in lines if TROUBLE.search(line)] == []
    assert len(lines) < MAX_LINES
    assert Path(tmp_path / "demo" / "report.html").is_file()
    assert f"report: {tmp_path / 'demo' / 'report.html'}" in done.stdout
