"""README can be followed from top to bottom: its commands run, in order, where `path/to/...` is real data.

`configs/mini.yaml` is cut down, so that this takes a minute; the whole preset runs in tests/demo.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from dreamgen.cli.main import main
from tests.fixtures.demos import write_lerobot_v21
from tests.fixtures.local_ray import own_ray
from tests.fixtures.runs import lenient

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = {
    "make demo": "tests/demo runs it",
    "make test": "it is this",
    "source .venv/bin/activate": "the tests run in an environment",
    "pip install cosmos_guardrail": "it is for the real model",
    "hf auth login": "it needs the hub",
    "dreamgen run --config_path configs/cosmos2.5-2b.yaml": "it needs a GPU and the hub",
}
SMALL = {
    "model": {"path": "mini-random", "safety_checker": False, "dtype": "float32"},
    "video": {"height": 64, "width": 64, "num_frames": 9, "fps": 16},
    "finetune": {"num_steps": 1, "tracker": "none", "windows_per_clip": 1},
    "idm": {"num_steps": 5, "image_px": 32, "horizon": 4, "width": 32},
    "plan": {"num_inference_steps": 1, "num_first_frames": 1},
    "generate": {"num_workers": 1, "gpus_per_worker": 0},
    "curate": lenient(),
    "export": {"allow_weak_labels": True, "num_workers": 1},
}


def commands() -> list[str]:
    """Return the commands of README's code blocks, in order, without comments."""
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    lines = (line.partition(" #")[0].strip() for block in blocks for line in block.splitlines())
    return [" ".join(line.split()) for line in lines if line]


def test_every_command_is_run_or_has_a_reason_not_to_be():
    others = [command for command in commands() if not command.startswith("dreamgen ")]
    assert set(others) <= NOT_RUN.keys(), others
    assert all(any(command.startswith(name) for command in commands()) for name in NOT_RUN), (
        "a reason without its command"
    )


@pytest.fixture
def two_cpus():
    with own_ray(2):
        yield


@pytest.mark.slow
def test_its_commands_run_in_order(two_cpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demos = write_lerobot_v21(Path("path/to/dataset"), num_episodes=3, num_frames=16)
    shutil.copytree(demos, "path/to/lerobot_v21")
    Path("configs").mkdir()
    Path("configs/mini.yaml").write_text(yaml.safe_dump(SMALL))
    num_run = 0
    for command in commands():
        if any(command.startswith(name) for name in NOT_RUN):
            continue
        status = main(shlex.split(command)[1:])
        assert status == 0, f"{command}\nends with {status}\n{capsys.readouterr().err[-3000:]}"
        num_run += 1
    assert num_run >= 12
    for path in ("runs/mine/report.html", "runs/stages/report.html", "path/to/lerobot_v30/meta/info.json"):
        assert Path(path).is_file(), path
