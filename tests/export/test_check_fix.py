"""`check --fix`: what it can repair is clean afterwards, originals stay, and pictures and actions keep their bytes."""

from __future__ import annotations

import hashlib
import json
import shutil

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from dreamgen.cli.main import main
from export.check import check, check_stage
from tests.fixtures.damage import DAMAGES, DATA21, DATA30, EPISODE_STATS21, EPISODES21, INFO, STATS, V30
from tests.fixtures.damaging import (
    all_of,
    cut_off,
    delete,
    drop_last_row,
    in_json,
    in_lines,
    in_table,
    without,
    without_manifest,
)
from tests.fixtures.good_datasets import CAMERAS, GOOD_DATASETS

REPAIRED = [damage for damage in DAMAGES if not damage.also and not damage.full and (damage.code, damage.what) in {
    ("wrong-total", "total_frames is one more"), ("wrong-total", "total_tasks is wrong"),
    ("wrong-total", "total_videos counts cameras"), ("wrong-split", "a split goes beyond"),
    ("missing-column", "frame_index is missing"), ("statistics-length", "statistics are one value short"),
    ("statistics-not-finite", "statistics hold infinity"), ("statistics-differ", "statistics are of other data"),
    ("statistics-missing", "there are no statistics"), ("statistics-missing", "GR00T's statistics lack q99"),
    ("statistics-missing", "no stats.json beside"), ("statistics-missing", "an episode has no statistics"),
    ("statistics-missing", "no stats.json"), ("groot-count", "GR00T's statistics hold a count"),
    ("hdf5-total", "num_samples is wrong"), ("hdf5-total", "total is wrong"),
}]  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = GOOD_DATASETS[name](tmp_path_factory.mktemp("good") / "dataset")
        return made[name]

    return get


def test_the_list_names_sixteen():
    assert len(REPAIRED) == 16


@pytest.mark.parametrize("damage", REPAIRED, ids=lambda d: f"{d.dataset}: {d.what}")
def test_repaired_datasets_are_clean(good, tmp_path, damage):
    root = without_manifest(good(damage.dataset), tmp_path / "dataset")
    damage.apply(root / damage.file)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert all(finding.fixable for finding in check(root))
    result = check_stage(root, fix=True)
    assert result.metrics["num_errors"] == result.metrics["num_warnings"] == 0, result.notes
    assert result.metrics["changes"] and check(root) == []
    changed = {change["file"]: change["backup"] for change in result.metrics["changes"]}
    for path, content in before.items():
        name = path.relative_to(root).as_posix()
        if name not in changed:
            assert path.read_bytes() == content, name
        elif changed[name]:
            assert (root / changed[name]).read_bytes() == content
    assert check_stage(root, fix=True).metrics["changes"] == []


def test_statistics_are_those_that_lerobot_computed(good, tmp_path):
    root = without_manifest(good(V30), tmp_path / "dataset")
    theirs = json.loads((root / STATS).read_text())
    delete(root / STATS)
    check_stage(root, fix=True)
    ours = json.loads((root / STATS).read_text())
    assert set(ours) == set(theirs)
    for name in ("action", "observation.state", *CAMERAS):
        for stat, values in theirs[name].items():
            # Of nine rows LeRobot's bins make other quantiles than the values themselves.
            if not stat.startswith("q") or name in CAMERAS:
                assert np.shape(ours[name][stat]) == np.shape(values), (name, stat)
                assert np.allclose(ours[name][stat], values, atol=1e-5), (name, stat)


def test_added_columns_leave_the_others_and_lerobot_reads_them(good, tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = without_manifest(good(V30), tmp_path / "dataset")
    whole = pq.read_table(root / DATA30)
    for column in ("frame_index", "index", "timestamp", "episode_index"):
        without(column)(root / DATA30)
    assert check_stage(root, fix=True).metrics["findings"] == []
    repaired = pq.read_table(root / DATA30).select(whole.column_names)
    assert repaired.to_pydict() == whole.to_pydict()
    assert LeRobotDataset("dreamgen/test", root=root)[20]["index"] == 20


@pytest.mark.parametrize("break_more", [
    lambda root: in_lines(lambda rows: rows.append(rows[0]))(root / EPISODES21),
    lambda root: in_lines(lambda rows: rows.pop(1))(root / EPISODES21),
    lambda root: (root / "meta/tasks.jsonl").write_text("{'task': 1}\n"),
])  # fmt: skip
def test_nothing_is_counted_from_what_is_damaged_itself(good, tmp_path, break_more):
    root = without_manifest(good("LeRobot v2.1 for GR00T"), tmp_path / "dataset")
    in_json("total_frames", value=1)(root / INFO)
    break_more(root)
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in root.rglob("*") if path.is_file()}
    result = check_stage(root, fix=True)
    assert result.metrics["changes"] == [] and "is damaged itself" in result.notes[0]
    assert before == {path: hashlib.sha256(path.read_bytes()).digest() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("break_more", [cut_off, in_table(drop_last_row), delete])
def test_no_statistics_of_rows_in_doubt(good, tmp_path, break_more):
    root = without_manifest(good("LeRobot v2.1 for GR00T"), tmp_path / "dataset")
    delete(root / STATS)
    break_more(root / DATA21)
    result = check_stage(root, fix=True)
    assert result.metrics["changes"] == [] and "rows are in doubt" in result.notes[0]
    assert not (root / STATS).exists()


def test_nothing_is_computed_from_rows_that_the_same_check_calls_changed(good, tmp_path):
    root = without_manifest(good(V30), tmp_path / "dataset")
    all_of("action", lambda values: [2 * value for value in values])(root / DATA30)
    before = (root / STATS).read_bytes()
    result = check_stage(root, fix=True)
    assert {finding["code"] for finding in result.metrics["findings"]} == {
        "statistics-differ", "episode-statistics-differ",
    }  # fmt: skip
    assert result.metrics["changes"] == [] and (root / STATS).read_bytes() == before
    assert "rows are in doubt" in result.notes[0]


def test_no_total_is_counted_from_lengths_in_doubt(good, tmp_path):
    root = without_manifest(good("LeRobot v2.1 for GR00T"), tmp_path / "dataset")
    in_lines(lambda rows: rows[1].__setitem__("length", 14))(root / EPISODES21)
    result = check_stage(root, fix=True)
    assert result.metrics["changes"] == [] and "lengths of episodes are in doubt" in result.notes[0]


@pytest.mark.parametrize("link", [h5py.ExternalLink("other.hdf5", "/demo"), h5py.ExternalLink("../x.hdf5", "/demo"),
                                  h5py.SoftLink("/elsewhere")])  # fmt: skip
def test_a_demo_behind_a_link_is_not_dropped_from_the_total(good, tmp_path, link):
    root = without_manifest(good("robomimic by h5py"), tmp_path / "dataset")
    with h5py.File(root / "data.hdf5", "r+") as file:
        moved = "other.hdf5" if getattr(link, "filename", "") == "other.hdf5" else None
        if moved is None:
            file.move("data/demo_1", "elsewhere")
        else:
            with h5py.File(root / moved, "w") as other:
                file.copy("data/demo_1", other, "demo")
            del file["data/demo_1"]
        file["data/demo_1"] = link
        total = file["data"].attrs["total"]
        file["data/demo_2"].attrs["num_samples"] = 1
    result = check_stage(root, fix=True)
    with h5py.File(root / "data.hdf5") as file:
        assert file["data"].attrs["total"] == total
    if moved is None:
        assert result.metrics["changes"] == [] and "in doubt" in result.notes[0]
        assert "hdf5-total" not in {f["code"] for f in result.metrics["findings"] if f["where"] == "data, total"}


def test_all_statistics_of_episodes_are_made_where_there_are_none(good, tmp_path):
    root = without_manifest(good("LeRobot v2.1 for GR00T"), tmp_path / "dataset")
    theirs = [json.loads(line) for line in (root / EPISODE_STATS21).read_text().splitlines()]
    delete(root / EPISODE_STATS21)
    assert check_stage(root, fix=True).metrics["findings"] == []
    ours = [json.loads(line) for line in (root / EPISODE_STATS21).read_text().splitlines()]
    for one, other in zip(ours, theirs, strict=True):
        assert one["episode_index"] == other["episode_index"] and set(one["stats"]) == set(other["stats"])
        for name, metrics in other["stats"].items():
            for stat in ("min", "max", "mean", "std", "count"):
                assert np.allclose(one["stats"][name][stat], metrics[stat], atol=1e-5), (name, stat)


def test_real_demonstrations_lose_what_can_be_repaired(real_demos, tmp_path, capsys):
    root = shutil.copytree(real_demos, tmp_path / "demos")
    videos = {path: hashlib.sha256(path.read_bytes()).digest() for path in root.rglob("*.mp4")}
    actions = {path: pq.read_table(path)["action"] for path in (root / "data").rglob("*.parquet")}
    assert main(["check", str(root), "--fix", "--fast", "--num_workers=1"]) == 1
    printed = capsys.readouterr().out
    assert "splits {'train': '0:100'} -> {'train': '0:5'}" in printed and "columns + frame_index" in printed
    assert {finding.code for finding in check(root, fast=True)} == {
        "camera-without-files", "timestamp", "float64", "episode-tasks",
    }  # fmt: skip
    assert videos == {path: hashlib.sha256(path.read_bytes()).digest() for path in root.rglob("*.mp4")}
    assert all(pq.read_table(path)["action"].equals(column) for path, column in actions.items())
