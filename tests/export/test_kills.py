"""Kills at file operations: a resumed export publishes only what it lists; a repair is done in full or not at all."""

from __future__ import annotations

import hashlib
import shutil

import pytest

from export import export_datasets
from export.check import check, check_stage
from export.manifest import present_files, read_manifest
from tests.fixtures.damage import DATA30, INFO, STATS
from tests.fixtures.damaging import delete, in_json, without
from tests.fixtures.good_datasets import lerobot_v30
from tests.fixtures.killing import kills
from tests.fixtures.runs import make_run, run_settings


def digests(root):
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in present_files(root)}


@pytest.mark.parametrize("name", ["lerobot-v3.0", "lerobot-v2.1"])
def test_a_killed_and_resumed_export_publishes_only_what_it_lists(tmp_path, name):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0)
    settings = run_settings(run.root, export={"formats": [name]})
    dataset = run.datasets / name
    export_datasets(settings)
    whole = digests(dataset)
    shutil.rmtree(run.datasets)
    num_half_written = 0
    for _ in kills(lambda: export_datasets(settings), ("os.rename",)):
        if dataset.exists():  # killed after its last step
            assert digests(dataset) == whole
            shutil.rmtree(run.datasets)
            continue
        num_half_written += any(".tmp" in path.name for path in run.datasets.rglob("*"))
        export_datasets(settings, resume=True)
        manifest = read_manifest(dataset)
        assert manifest is not None and set(manifest.entries) == set(whole) == set(present_files(dataset))
        assert digests(dataset) == whole
        shutil.rmtree(run.datasets)
    assert num_half_written > 5


def test_a_killed_repair_changes_all_files_or_none_and_may_be_run_again(tmp_path):
    good = lerobot_v30(tmp_path / "good", cameras=(), lengths=(5, 9))
    without("index")(good / DATA30)
    in_json("total_frames", value=1)(good / INFO)
    delete(good / STATS)
    before, found_before = digests(good), check(good, fast=True)
    root = tmp_path / "damaged"
    shutil.copytree(good, root)
    num_interrupted = 0
    for _ in kills(lambda: check_stage(root, fix=True)):
        codes = {finding.code for finding in check(root, fast=True)}
        assert not [path for path in (root / "data").rglob("*.parquet") if path.name != "file-000.parquet"]
        if "repair-interrupted" in codes:
            num_interrupted += 1
        elif digests(root) == before:
            assert check(root, fast=True) == found_before
        else:  # between its two steps: index columns with totals, then statistics
            assert codes <= {"statistics-missing"}
        assert check_stage(root, fix=True).metrics["findings"] == []
        assert not list(root.glob(".repair*"))
        shutil.rmtree(root)
        shutil.copytree(good, root)
    assert num_interrupted >= 3
