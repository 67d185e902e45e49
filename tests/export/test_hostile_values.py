"""Values of the wrong type or size in datasets and settings are the user's to see, and take neither memory nor time."""

from __future__ import annotations

import json
import resource
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch  # noqa: F401  mapped before memory is short

from dreamgen.cli.main import main
from dreamgen.run.files import read_json, write_json
from export import export_datasets
from export.check import check
from tests.fixtures.damage import DATA21, INFO, TASKS21
from tests.fixtures.damaging import in_lines, json_edit
from tests.fixtures.demos import write_lerobot_v21
from tests.fixtures.runs import make_run, run_settings

HUGE = 10**12
ROOM = 2**31  # bytes beyond what this process has now


@pytest.fixture
def little_memory():
    """Let this process ask for two more GiB of memory only, and the test take a minute only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:  # noqa: PTH123
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, hard))
    begun_s = time.monotonic()
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.monotonic() - begun_s < 60


def test_a_huge_task_index_takes_no_memory(copy_of, tmp_path, little_memory):
    root = copy_of("lerobot-v2.1")
    table = pq.read_table(root / DATA21)
    place, field = table.column_names.index("task_index"), table.schema.field("task_index")
    pq.write_table(table.set_column(place, field, pa.array([HUGE] * len(table), field.type)), root / DATA21)
    assert any(finding.code == "task-unknown" for finding in check(root))
    in_lines(lambda rows: rows[0].__setitem__("task_index", HUGE))(root / TASKS21)
    assert any(finding.severity == "error" for finding in check(root))
    assert main(["convert", str(root), str(tmp_path / "converted")]) in (1, 2)
    assert main(["prepare", "--demos", str(root), "--out", str(tmp_path / "run"), "--video.num_frames=5"]) in (0, 2)


@pytest.mark.parametrize("robot_type", [["arm", "hand"], {"a": 1}, 7, None, ""])
def test_a_robot_type_that_is_no_text(tmp_path, robot_type):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0)
    features = run.train / "features.json"
    write_json(features, {**read_json(features), "robot_type": robot_type})
    export_datasets(run_settings(run.root, export={"formats": ["lerobot-v2.1"]}))
    info = json.loads((run.datasets / "lerobot-v2.1" / INFO).read_text())
    assert info["robot_type"] == "unknown" and check(run.datasets / "lerobot-v2.1") == []
    demos = write_lerobot_v21(tmp_path / "demos", num_episodes=2, num_frames=9, height=32, width=48)
    json_edit(lambda info: info.__setitem__("robot_type", robot_type))(demos / INFO)
    words = ("--demos", str(demos), "--out", str(tmp_path / "new"), "--video.num_frames=5")
    assert main(["prepare", *words]) == 0
    assert read_json(tmp_path / "new/train/features.json")["robot_type"] == "unknown"


@pytest.mark.parametrize("text", ["1: 2\n", "finetune: {3: 4}\n", "finetune:\n  lora: {1.5: 2}\n", "null: 1\n",
                                  "[1, 2]: 3\n", "? {a: 1}\n: 2\n", "true: 1\n"])  # fmt: skip
def test_keys_of_yaml_that_are_no_text(tmp_path, capsys, text):
    (tmp_path / "a.yaml").write_text(text)
    assert main(["finetune", "--config_path", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert "Traceback" not in (error := capsys.readouterr().err) and error.startswith("error: ")
