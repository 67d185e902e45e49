"""The v2.1 dataset: lerobot's own converter takes it, and GR00T's rules hold."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

from dreamgen.data.video import probe
from dreamgen.run.files import read_json, write_json
from dreamgen.run.jobs import accepted_clips
from dreamgen.run.records import RobotFeatures
from export import export_datasets
from export.check import check
from export.clips import generated_clips
from export.formats.lerobot import modality_json
from export.spec import dataset_spec
from export.validation import validate_clips
from tests.export.test_lerobot_v30 import assert_same_as_clips
from tests.fixtures.runs import CAMERA, make_run, run_settings


def test_lerobots_converter_makes_it_v30(exported, tmp_path):
    root = tmp_path / "converted"
    shutil.copytree(exported.datasets / "lerobot-v2.1", root)
    convert_dataset("dreamgen/test", root=root, push_to_hub=False)
    assert read_json(root / "meta/info.json")["codebase_version"] == "v3.0"
    assert_same_as_clips(exported, root)


def test_clips_are_copied_byte_for_byte(exported):
    for number, clip in enumerate(accepted_clips(exported)):
        copy = exported.datasets / f"lerobot-v2.1/videos/chunk-000/{CAMERA}/episode_{number:06d}.mp4"
        assert copy.read_bytes() == clip.video.read_bytes()
        rows = pd.read_parquet(exported.datasets / f"lerobot-v2.1/data/chunk-000/episode_{number:06d}.parquet")
        assert len(rows) == probe(copy).num_frames
        assert np.stack(rows["action"]).shape == (len(rows), 5)
        np.testing.assert_array_equal(rows["timestamp"], (np.arange(len(rows)) / 16).astype(np.float32))


def test_groots_statistics_can_be_cut_to_every_part(exported):
    root = exported.datasets / "lerobot-v2.1"
    modality, stats = read_json(root / "meta/modality.json"), read_json(root / "meta/stats.json")
    assert modality["action"] == {"arm": {"start": 0, "end": 4}, "gripper": {"start": 4, "end": 5}}
    for kind, column in (("state", "observation.state"), ("action", "action")):
        for part in modality[kind].values():
            for values in stats[column].values():
                assert np.array(values)[np.arange(part["start"], part["end"])].ndim == 1
    assert set(stats["action"]) == {"mean", "std", "min", "max", "q01", "q99"}


def test_annotation_points_into_tasks(exported):
    root = exported.datasets / "lerobot-v2.1"
    tasks = {row["task_index"]: row["task"] for row in map(json.loads, (root / "meta/tasks.jsonl").open())}
    for number, clip in enumerate(accepted_clips(exported)):
        rows = pd.read_parquet(root / f"data/chunk-000/episode_{number:06d}.parquet")
        cells = rows["annotation.human.action.task_description"]
        assert cells.dtype == np.int64 and {tasks[i] for i in cells} == {clip.job.instruction}


def test_dream_prefix_and_no_state(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0)
    export = {"formats": ["lerobot-v2.1"], "dream_prefix": True, "include_state": False, "robot_type": "other",
              "camera": "observation.images.left"}  # fmt: skip
    export_datasets(run_settings(run.root, export=export))
    root = run.datasets / "lerobot-v2.1"
    info, modality = read_json(root / "meta/info.json"), read_json(root / "meta/modality.json")
    assert "observation.state" not in info["features"] and info["robot_type"] == "other"
    assert modality["state"] == {}
    assert modality["video"] == {"ego_view": {"original_key": "observation.images.left"}}
    tasks = [json.loads(line)["task"] for line in (root / "meta/tasks.jsonl").open()]
    assert tasks and all(task.startswith("<DREAM>") for task in tasks)
    assert check(root) == []


def test_without_a_modality_one_part_is_the_whole_vector(tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    features = read_json(run.train / "features.json")
    write_json(run.train / "features.json", {**features, "modality": None, "action_names": [], "state_names": []})
    export_datasets(run_settings(run.root, export={"formats": ["lerobot-v2.1"]}))
    root = run.datasets / "lerobot-v2.1"
    assert read_json(root / "meta/modality.json")["action"] == {"whole": {"start": 0, "end": 5}}
    assert read_json(root / "meta/info.json")["features"]["action"]["names"][0] == "action_0"


@pytest.mark.parametrize(
    "modality",
    [
        {"action": {"arm": [0, 3]}}, {"action": {"arm": {"start": 0}}}, {"action": {"arm": {"start": "0", "end": "5"}}},
        {"action": {"arm": {"start": 0, "end": 6}}}, {"action": [1], "state": "x", "video": [2]}, [1], "text",
        {"action": {"arm": {"start": 0, "end": 5, "original_key": {}}}, "video": {"ego_view": 3}},
    ],
)  # fmt: skip
def test_a_modality_that_cannot_be_used_becomes_one_part_of_the_whole_vector(modality, exported):
    features = RobotFeatures.from_dict({**read_json(exported.train / "features.json"), "modality": modality})
    episodes, _ = validate_clips(generated_clips(accepted_clips(exported)), features, include_state=True)
    written = modality_json(dataset_spec(run_settings(exported.root).export, features, episodes[0]))
    assert written["action"] == {"whole": {"start": 0, "end": 5}}
    assert written["state"] == {"whole": {"start": 0, "end": 4}}
    assert written["video"] == {"ego_view": {"original_key": "observation.images.ego_view"}}
