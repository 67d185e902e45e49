"""The card says what the hub and a reader want to know, robots' presets fit or are refused, and uploads are whole."""

from __future__ import annotations

import re

import cv2
import pytest
import yaml

from dreamgen.config.loading import configs_folder
from dreamgen.data.lerobot.modality import VECTORS
from dreamgen.errors import UserError
from dreamgen.run.files import read_json, write_json
from export import export_datasets
from export.card import SHEET_NAME
from export.check import check
from export.robots import fitting_modality, robot_preset
from tests.fixtures.runs import make_run, run_settings

ROBOTS = sorted(path.stem for path in (configs_folder() / "robots").glob("*.yaml"))
RELEASES = {"N1", "N1.5", "N1.6", "N1.7"}


def test_the_card_has_front_matter_counts_share_and_pictures(exported):
    for name in ("lerobot-v3.0", "lerobot-v2.1", "robomimic"):
        root = exported.datasets / name
        _, front, text = (root / "README.md").read_text().split("---\n", 2)
        front = yaml.safe_load(front)
        assert {"LeRobot", "synthetic"} <= set(front["tags"]) and "license" not in front
        assert "| episodes | 5: 5 generated, 0 real |" in text and "Every episode was generated" in text
        assert f"]({SHEET_NAME})" in text
        assert cv2.imread(str(root / SHEET_NAME)).shape == (4 * 128, 4 * 192, 3)
        assert "<script>" not in text.replace("\\<", ""), "a task's words are no markup"


def test_the_licence_is_in_card_and_provenance(tmp_path):
    import pyarrow.parquet as pq

    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    export_datasets(run_settings(run.root, export={"formats": ["lerobot-v3.0"], "license": "cc-by-4.0"}))
    assert "license: cc-by-4.0" in (run.datasets / "lerobot-v3.0/README.md").read_text()
    assert pq.read_table(run.datasets / "lerobot-v3.0.provenance.parquet")["licence"].to_pylist() == ["cc-by-4.0"]


@pytest.mark.parametrize("name", ROBOTS)
def test_a_robots_parts_fill_its_vectors_without_gaps(name):
    robot = robot_preset(name)
    assert set(robot.embodiment_tags) == RELEASES
    for kind in VECTORS:
        parts = sorted((part["start"], part["end"]) for part in robot.modality.get(kind, {}).values())
        assert [start for start, _ in parts] == [0, *(end for _, end in parts[:-1])][: len(parts)]
    sizes = {k: max((p["end"] for p in robot.modality.get(k, {}).values()), default=7) for k in VECTORS}
    assert fitting_modality(name, robot, sizes["action"], sizes["state"]) == robot.modality
    assert "state" not in fitting_modality(name, robot, sizes["action"], 0)


def test_a_robot_names_the_parts_of_modality_json(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0, action_dim=6, state_dim=6)
    export_datasets(run_settings(run.root, export={"formats": ["lerobot-v2.1"], "robot": "so100"}))
    root = run.datasets / "lerobot-v2.1"
    modality = read_json(root / "meta/modality.json")
    assert modality["action"] == {"single_arm": {"start": 0, "end": 5}, "gripper": {"start": 5, "end": 6}}
    assert modality["video"] == {"front": {"original_key": "observation.images.ego_view"}}
    assert read_json(root / "meta/info.json")["robot_type"] == "so100_follower"
    assert "new_embodiment (N1.7)" in (root / "README.md").read_text()
    assert check(root) == []


def test_a_robot_that_does_not_fit_is_refused(tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    with pytest.raises(UserError, match="does not fit the labels") as refused:
        export_datasets(run_settings(run.root, export={"formats": ["lerobot-v2.1"], "robot": "gr1"}))
    assert "new_embodiment" in str(refused.value)
    with pytest.raises(UserError, match="is not a preset") as refused:
        export_datasets(run_settings(run.root, export={"formats": ["lerobot-v2.1"], "robot": "so10"}))
    assert "so100" in str(refused.value)


def test_datasets_are_uploaded_with_their_versions_tag(hub, tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    result = export_datasets(run_settings(run.root, export={"formats": ["lerobot-v3.0"], "push_to_hub": "me/robot"}))
    assert not result.partial and any("uploaded to" in note for note in result.notes)
    root = run.datasets / "lerobot-v3.0"
    provenance = run.datasets / "lerobot-v3.0.provenance.parquet"
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert hub.files == files | {provenance.name: provenance.read_bytes()}
    assert any("states no license" in note for note in result.notes)
    assert hub.tags == ["v3.0"] and hub.created[0]["type"] == "dataset"


def test_an_upload_that_fails_leaves_the_dataset_and_says_how_to_go_on(hub, tmp_path):
    hub.is_full = True
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    result = export_datasets(run_settings(run.root, export={"formats": ["lerobot-v3.0"], "push_to_hub": "me/robot"}))
    assert result.partial and check(run.datasets / "lerobot-v3.0") == []
    assert any("hf upload me/robot" in note and "--repo-type dataset" in note for note in result.notes)


def test_resume_uploads_what_is_there(hub, tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    export_datasets(run_settings(run.root, export={"formats": ["lerobot-v3.0"]}))
    settings = run_settings(run.root, export={"formats": ["lerobot-v3.0"], "push_to_hub": "me/robot"})
    result = export_datasets(settings, resume=True)
    assert not result.partial and "README.md" in hub.files


def test_an_upload_that_cannot_work_is_refused_first(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    with pytest.raises(UserError, match="push_to_hub has no owner"):
        export_datasets(run_settings(run.root, export={"push_to_hub": "robot"}))
    assert not run.datasets.exists()


def test_names_from_data_are_no_markup(tmp_path):
    hostile = "# x](https://evil.example) ![y](http://evil.example/p.png) <script>alert(1)</script> | \x1b[2J"
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    features = read_json(run.train / "features.json")
    names = [f"{hostile} {number}" for number in range(len(features["action_names"]))]
    write_json(run.train / "features.json", features | {"robot_type": hostile, "action_names": names})
    export_datasets(run_settings(run.root, export={"formats": ["lerobot-v3.0"]}))
    _, front, text = (run.datasets / "lerobot-v3.0/README.md").read_text().split("---\n", 2)
    assert hostile.split(" |")[0] in " ".join(yaml.safe_load(front)["tags"])
    for markup in ("<script", "](http", "![y", "\x1b"):
        assert not re.search(r"(?<!\\)" + re.escape(markup), text.replace(f"]({SHEET_NAME})", "")), markup
    assert sum(line.startswith("# ") for line in text.splitlines()) == 1
    (row,) = [line for line in text.splitlines() if line.startswith("| action |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
