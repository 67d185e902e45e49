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


def test_writing_the_demonstrations_prints_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from dreamgen.demo.dataset import write_demo_dataset;"
        "write_demo_dataset(Path(sys.argv[1]), num_episodes=1)"
    )
    done = run("-c", code, tmp_path / "demos")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_the_whole_demo_prints_few_lines_and_no_trouble(tmp_path):
    done = run("-m", "dreamgen", "demo", "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr[-4000:]
    lines = (done.stdout + done.stderr).splitlines()
    assert [line for line in lines if TROUBLE.search(line)] == []
    assert len(lines) < MAX_LINES
    assert Path(tmp_path / "demo" / "report.html").is_file()
    assert f"report: {tmp_path / 'demo' / 'report.html'}" in done.stdout
