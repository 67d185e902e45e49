"""Features of several axes: what lerobot writes of them checks clean, and keeps its shape and values through ours."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.processor import NormalizerProcessorStep

from dreamgen.config.settings import ConvertSettings
from export.check import check, check_stage
from export.convert import convert_dataset

SHAPES = {"observation.state": (3,), "action": (2,), "observation.pose": (4, 4), "observation.tactile": (2, 3, 2),
          "observation.row": (1, 5), "observation.column": (5, 1)}  # fmt: skip
DTYPES = {"observation.tactile": "uint8"}
STATS = "meta/stats.json"
MOMENTS = ("min", "max", "mean", "std", "count")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A dataset of two episodes that lerobot wrote."""
    root, rng = tmp_path_factory.mktemp("lerobot") / "v30", np.random.default_rng(0)
    features = {
        name: {"dtype": DTYPES.get(name, "float32"), "shape": shape, "names": None} for name, shape in SHAPES.items()
    }
    features["observation.contact"] = {"dtype": "bool", "shape": (1,), "names": None}
    dataset = LeRobotDataset.create("me/shapes", fps=10, features=features, root=root, use_videos=False)
    for episode in range(2):
        for frame in range(12 + episode):
            row = {name: (40 * rng.random(shape)).astype(DTYPES.get(name, "float32")) for name, shape in SHAPES.items()}
            dataset.add_frame(row | {"observation.contact": np.array([frame % 2 == 0]), "task": "push"})
        dataset.save_episode()
    dataset.finalize()
    return root


def copied(root, target):
    return shutil.copytree(root, target)


def assert_same_moments(ours, theirs):
    assert set(ours) == set(theirs)
    for name, statistics in theirs.items():
        assert set(ours[name]) == set(statistics), name
        for stat, values in statistics.items():
            assert np.shape(ours[name][stat]) == np.shape(values), (name, stat)
            if stat in MOMENTS and name not in ("index", "episode_index"):
                assert np.allclose(ours[name][stat], values, rtol=1e-5, atol=1e-4), (name, stat)


def assert_normalized(root):
    """LeRobot's own normalizer takes the statistics."""
    dataset = LeRobotDataset("me/shapes", root=root)
    features = {name: PolicyFeature(FeatureType.STATE, shape) for name, shape in SHAPES.items()}
    for mode in (NormalizationMode.MEAN_STD, NormalizationMode.QUANTILES):
        step = NormalizerProcessorStep(features, {FeatureType.STATE: mode}, stats=dataset.meta.stats)
        rows = {name: torch.stack([dataset[i][name] for i in range(4)]).float() for name in SHAPES}
        out = step._normalize_observation(rows, inverse=False)
        assert {name: value.shape for name, value in out.items()} == {n: (4, *shape) for n, shape in SHAPES.items()}


def test_what_lerobot_writes_checks_clean_and_is_not_touched(written, tmp_path):
    assert check(written) == []
    root = copied(written, tmp_path / "copy")
    before = (root / STATS).read_bytes()
    assert check_stage(root, fix=True).metrics["changes"] == []
    assert (root / STATS).read_bytes() == before


def episode_rows(root):
    return [row for path in sorted(root.glob("meta/episodes/*/*.parquet")) for row in pq.read_table(path).to_pylist()]


def assert_same_statistics(ours, theirs):
    """Every number is the same, quantiles included: a policy normalizes with them."""
    assert set(ours) == set(theirs)
    for name, statistics in theirs.items():
        assert set(ours[name]) == set(statistics), name
        for stat, values in statistics.items():
            assert np.shape(ours[name][stat]) == np.shape(values), (name, stat)
            assert np.allclose(ours[name][stat], values, rtol=1e-6, atol=1e-6), (name, stat)


def test_there_and_back_keeps_every_statistic_of_lerobot(written, tmp_path):
    """LeRobot averages the quantiles of the episodes; those of all rows together would be others."""
    theirs = json.loads((written / STATS).read_text())
    convert_dataset(written, tmp_path / "v21", ConvertSettings(num_workers=1))
    groot = json.loads((tmp_path / "v21" / STATS).read_text())
    assert groot["observation.pose"]["q99"] == theirs["observation.pose"]["q99"]
    shutil.copytree(tmp_path / "v21", tmp_path / "bare")
    (tmp_path / "bare" / STATS).unlink()  # v2.1 of LeRobot has none
    own = [{n: v for n, v in row.items() if n.startswith("stats/")} for row in episode_rows(written)]
    for name in ("v21", "bare"):
        back = tmp_path / f"back_of_{name}"
        convert_dataset(tmp_path / name, back, ConvertSettings(num_workers=1))
        assert_same_statistics(json.loads((back / STATS).read_text()), theirs)
        for row, wanted in zip(episode_rows(back), own, strict=True):
            assert {n: v for n, v in row.items() if n.startswith("stats/")} == wanted


def test_recorded_statistics_that_are_not_those_of_the_rows_are_computed(written, tmp_path):
    v21, back = tmp_path / "v21", tmp_path / "back"
    convert_dataset(written, v21, ConvertSettings(num_workers=1))
    wanted = json.loads((v21 / STATS).read_text())
    lines = [json.loads(line) for line in (v21 / "meta/episodes_stats.jsonl").read_text().splitlines()]
    lines[0]["stats"]["observation.pose"]["mean"][2] += 5  # not those of the rows
    lines[0]["stats"]["observation.tactile"]["q50"] = [900.0, -900.0]  # no median
    lines[1]["stats"]["action"] = {"mean": "nonsense"}
    (v21 / "meta/episodes_stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recorded = json.loads((v21 / STATS).read_text())
    recorded["observation.row"]["max"][0] += 9
    (v21 / STATS).write_text(json.dumps(recorded))
    convert_dataset(v21, back, ConvertSettings(num_workers=1))
    assert check(back) == []
    (first, second), whole = episode_rows(back), json.loads((back / STATS).read_text())
    theirs, others = episode_rows(written)
    for name in ("observation.pose", "observation.tactile"):
        assert np.allclose(first[f"stats/{name}/mean"], theirs[f"stats/{name}/mean"], rtol=1e-5)
        assert np.all(np.diff([first[f"stats/{name}/q{q}"] for q in ("01", "10", "50", "90", "99")], axis=0) >= 0)
    assert np.allclose(second["stats/action/mean"], others["stats/action/mean"], rtol=1e-5)
    assert whole["observation.row"]["max"] == wanted["observation.row"]["max"]
    assert whole["observation.pose"]["q99"] == wanted["observation.pose"]["q99"]  # of the whole, it was right


def test_there_and_back_keeps_shapes_and_values(written, tmp_path):
    theirs = json.loads((written / STATS).read_text())
    convert_dataset(written, tmp_path / "v21", ConvertSettings(num_workers=1))
    convert_dataset(tmp_path / "v21", tmp_path / "back", ConvertSettings(num_workers=1))
    assert {finding.code for finding in check(tmp_path / "v21")} == {"modality-missing"}  # which only GR00T needs
    assert check(tmp_path / "back") == []
    assert_same_moments(json.loads((tmp_path / "back" / STATS).read_text()), theirs)
    (first, _) = [json.loads(line) for line in (tmp_path / "v21/meta/episodes_stats.jsonl").read_text().splitlines()]
    (episodes,) = (written / "meta/episodes").rglob("*.parquet")
    own, recorded = first["stats"], pq.read_table(episodes).to_pylist()[0]
    for name in SHAPES:
        for stat in MOMENTS:
            assert np.allclose(own[name][stat], recorded[f"stats/{name}/{stat}"], rtol=1e-5, atol=1e-4), (name, stat)
    assert_normalized(tmp_path / "back")


def test_fix_computes_what_lerobot_computed(written, tmp_path):
    theirs = json.loads((written / STATS).read_text())
    flat = {stat: values * 4 if stat != "count" else values for stat, values in theirs["observation.pose"].items()}
    for name, change in (("none", None), ("flat", flat)):
        root = copied(written, tmp_path / name)
        if change is None:
            (root / STATS).unlink()
        else:
            (root / STATS).write_text(json.dumps(theirs | {"observation.pose": change}))
            assert {finding.code for finding in check(root)} == {"statistics-length"}
        assert check_stage(root, fix=True).metrics["findings"] == []
        ours = json.loads((root / STATS).read_text())
        ours.setdefault("observation.contact", theirs["observation.contact"])  # no vector of numbers
        assert_same_moments(ours, theirs)
        assert_normalized(root)


def test_statistics_of_every_number_are_right_too_and_wrong_ones_are_found(written, tmp_path):
    root = copied(written, tmp_path / "copy")
    theirs, dataset = json.loads((root / STATS).read_text()), LeRobotDataset("me/shapes", root=root)
    pose = np.stack([dataset[i]["observation.pose"].numpy() for i in range(len(dataset))])
    whole = {"min": pose.min(0), "max": pose.max(0), "mean": pose.mean(0), "std": pose.std(0)}
    earlier = {stat: values.tolist() for stat, values in whole.items()} | {"count": [len(pose)]}
    (root / STATS).write_text(json.dumps(theirs | {"observation.pose": earlier}))
    assert check(root) == []
    earlier["max"][1][2] += 30
    theirs["observation.tactile"]["mean"] = [1.0, 2.0, 3.0]
    theirs["observation.row"]["min"][4] -= 7
    (root / STATS).write_text(json.dumps(theirs | {"observation.pose": earlier}))
    found = {(finding.code, finding.where) for finding in check(root)}
    assert found == {
        ("statistics-differ", "observation.pose, max[6]"),
        ("statistics-length", "observation.tactile, mean"),
        ("statistics-differ", "observation.row, min[4]"),
    }


def test_depth_pictures_of_lerobot_keep_values_and_statistics(tmp_path):
    depth = "observation.images.depth"
    feature = {"dtype": "image", "shape": (24, 32, 1), "names": ["height", "width", "channels"],
               "info": {"is_depth_map": True}}  # fmt: skip
    features = {depth: feature, "action": {"dtype": "float32", "shape": (2,), "names": None}}
    source = tmp_path / "v30"
    dataset = LeRobotDataset.create("me/depth", fps=10, features=features, root=source, use_videos=False)
    for _ in range(2):
        for frame in range(9):
            millimeters_HW1 = 400 + 90 * frame + np.arange(24 * 32, dtype=np.uint16).reshape(24, 32, 1)
            dataset.add_frame({depth: millimeters_HW1, "action": np.full(2, frame, np.float32), "task": "push"})
        dataset.save_episode()
    dataset.finalize()
    assert check(source) == []
    convert_dataset(source, tmp_path / "v21", ConvertSettings(num_workers=1))
    convert_dataset(tmp_path / "v21", tmp_path / "back", ConvertSettings(num_workers=1))
    assert check(tmp_path / "back") == []
    ours, theirs = (LeRobotDataset("me/depth", root=root) for root in (tmp_path / "back", source))
    assert all(torch.equal(ours[index][depth], theirs[index][depth]) for index in range(18))
    assert ours.meta.features[depth]["info"] == theirs.meta.features[depth]["info"]
    assert_same_statistics(*(json.loads((root / STATS).read_text()) for root in (tmp_path / "back", source)))


def language_events(rows):
    """A column as lerobot's annotations write it: the calls of each message are JSON."""
    messages, calls = [message for row in rows for message in row], pa.json_()
    told = pa.ExtensionArray.from_storage(
        calls, pa.array([call for m in messages for call in m["tool_calls"]], "string")
    )
    tool_calls = pa.ListArray.from_arrays(np.cumsum([0, *(len(m["tool_calls"]) for m in messages)]).astype("i4"), told)
    texts = {
        name: pa.array([m[name] for m in messages], pa.string()) for name in ("role", "content", "style", "camera")
    }
    structs = pa.StructArray.from_arrays([*texts.values(), tool_calls], [*texts, "tool_calls"])
    return pa.ListArray.from_arrays(np.cumsum([0, *map(len, rows)]).astype("i4"), structs)


def test_language_columns_of_lerobot_go_there_and_back(written, tmp_path):
    root = copied(written, tmp_path / "v30")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["language_events"] = {"dtype": "language", "shape": [1], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    (table_file,) = (root / "data").rglob("*.parquet")
    table = pq.read_table(table_file)
    message = {"role": "user", "content": "stop\n\U0001f7e5", "style": "interjection", "camera": None,
               "tool_calls": ['{"name": "say"}']}  # fmt: skip
    column = language_events([[message] if row % 5 == 0 else [] for row in range(table.num_rows)])
    pq.write_table(table.append_column("language_events", column), table_file)
    assert check(root) == []
    convert_dataset(root, tmp_path / "v21", ConvertSettings(num_workers=1))
    convert_dataset(tmp_path / "v21", tmp_path / "back", ConvertSettings(num_workers=1))
    assert check(tmp_path / "back") == []
    ours, theirs = (LeRobotDataset("me/shapes", root=path) for path in (tmp_path / "back", root))
    assert ours[5]["language_events"][0]["content"] == message["content"]
    for index in (0, 4, 5, len(theirs) - 1):
        assert ours[index]["language_events"] == theirs[index]["language_events"]
