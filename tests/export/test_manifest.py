"""The manifest: any changed byte of any file is found in all formats, also by --fast, and readers do not mind it."""

from __future__ import annotations

import os
import shutil
import subprocess

import numpy as np
import pytest

from dreamgen.cli.main import main
from dreamgen.config.settings import CheckSettings, ConvertSettings
from dreamgen.errors import UserError
from export import export_datasets
from export.check import check, check_stage
from export.convert import convert_dataset
from export.manifest import MANIFEST, present_files, read_manifest, write_manifest
from tests.fixtures.damage import DATA30, INFO
from tests.fixtures.damaging import in_json, swap_values
from tests.fixtures.good_datasets import demonstrations, lerobot_v30
from tests.fixtures.leftovers import leftover
from tests.fixtures.runs import run_settings

FORMATS = ("lerobot-v3.0", "lerobot-v2.1", "robomimic", "aloha")


@pytest.fixture
def whole_copy(exported, tmp_path):
    """Return a function that copies an exported dataset with its manifest."""

    def copy(name):
        if name == "aloha" and not (exported.datasets / name).exists():
            export_datasets(run_settings(exported.root, export={"formats": [name]}))
        return shutil.copytree(exported.datasets / name, tmp_path / name)

    return copy


def verify(root):
    return check_stage(root, CheckSettings(verify=True, num_workers=2))


@pytest.mark.parametrize("name", FORMATS)
def test_every_flipped_byte_is_found(whole_copy, name):
    root = whole_copy(name)
    assert verify(root).metrics["num_errors"] == 0 and verify(root).metrics["manifest"]
    random = np.random.default_rng(0)
    for file in [*sorted(present_files(root)), MANIFEST]:
        path = root / file
        content = path.read_bytes()
        for place in random.integers(len(content), size=3).tolist():
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(random.integers(8))
            path.write_bytes(flipped)
            found = verify(root).metrics["findings"]
            assert found, (file, place)
            assert file == MANIFEST or file in {finding["file"] for finding in found}
            is_error = any(finding["severity"] == "error" for finding in found)
            assert is_error != file.startswith(("README", "LICENSE")), "a user may edit the card"
        found = check(root, fast=True)  # of the last of the three
        assert any(f.code.startswith("manifest-") and file in (f.file, MANIFEST) for f in found), file
        path.write_bytes(content)
    assert {finding.code for finding in check(root, fast=True)} <= {"length-varies"}


def test_fast_and_full_compare_with_the_manifest_too(whole_copy):
    root = whole_copy("lerobot-v2.1")
    first = root / "data/chunk-000/episode_000001.parquet"
    swap_values(first, first.with_name("episode_000004.parquet"))
    for fast in (True, False):
        found = {(finding.code, finding.file) for finding in check(root, fast=fast)}
        assert ("manifest-differs", first.relative_to(root).as_posix()) in found
    (root / "extra.bin").write_bytes(b"1")
    first.unlink()
    codes = {(finding.code, finding.file) for finding in check(root, fast=True)}
    assert ("unnamed-file", "extra.bin") in codes and ("manifest-unlisted", "extra.bin") not in codes
    found = {(finding["code"], finding["file"]) for finding in verify(root).metrics["findings"]}
    assert {("manifest-unlisted", "extra.bin"), ("missing-file", first.relative_to(root).as_posix())} <= found


@pytest.mark.parametrize("name", FORMATS)
def test_sha256sum_reads_it(whole_copy, name):
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum")
    command = ["sha256sum", "--check", "--strict", "--quiet", MANIFEST]
    assert subprocess.run(command, cwd=whole_copy(name), capture_output=True, check=False).returncode == 0


def test_names_are_escaped_as_sha256sum_does(tmp_path):
    (tmp_path / "a\\b\nc").write_bytes(b"1")
    write_manifest(tmp_path)
    manifest = read_manifest(tmp_path)
    assert manifest is not None and manifest.problem is None and set(manifest.entries) == {"a\\b\nc"}


def test_lerobot_and_the_hubs_library_open_a_dataset_with_a_manifest(whole_copy):
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = whole_copy("lerobot-v3.0")
    assert len(LeRobotDataset("dreamgen/test", root=root)) == 49
    assert datasets.load_dataset(str(root), split="train").num_rows == 49
    assert datasets.load_dataset(str(whole_copy("lerobot-v2.1")), split="train").num_rows == 49


def test_convert_writes_a_manifest_of_its_own(whole_copy, tmp_path):
    for name, target in (("lerobot-v3.0", "v21"), ("lerobot-v2.1", "v30")):
        convert_dataset(whole_copy(name), tmp_path / target, ConvertSettings(num_workers=1))
        assert verify(tmp_path / target).metrics["findings"] == []


def test_a_repair_keeps_the_manifest_right(whole_copy):
    root = whole_copy("lerobot-v3.0")
    in_json("total_frames", value=1)(root / INFO)
    write_manifest(root)  # so that the wrong total is as it was written
    assert check_stage(root, fix=True).metrics["changes"]
    assert verify(root).metrics["findings"] == [] and check(root) == []


def test_a_repair_does_not_hide_what_else_was_changed(whole_copy):
    root = whole_copy("lerobot-v3.0")
    in_json("robot_type", value="another")(root / INFO)
    in_json("total_frames", value=1)(root / INFO)
    left = check_stage(root, fix=True).metrics["findings"]
    assert [(finding["code"], finding["file"]) for finding in left] == [("manifest-differs", INFO)]


def test_a_manifest_for_datasets_of_others(tmp_path, capsys):
    root = lerobot_v30(tmp_path / "dataset", cameras=())
    with pytest.raises(UserError, match="has no manifest"):
        verify(root)
    assert "cannot be recognized" in check_stage(root).notes[0]
    assert main(["check", str(root), "--write_manifest", "--num_workers=1"]) == 0
    assert main(["check", str(root), "--verify"]) == 0
    content = bytearray((root / DATA30).read_bytes())
    content[len(content) // 2] ^= 1
    (root / DATA30).write_bytes(content)
    assert main(["check", str(root), "--verify"]) == 1
    assert "[manifest-differs] data/chunk-000/file-000.parquet" in capsys.readouterr().out


def test_what_a_killed_process_left_is_in_no_manifest(tmp_path):
    root = demonstrations(tmp_path / "dataset")
    stale, running = leftover(root / MANIFEST), leftover(root / MANIFEST, pid=os.getpid())
    write_manifest(root)
    manifest = read_manifest(root)
    assert not stale.exists() and running.exists()
    assert manifest is not None and running.name not in manifest.entries and len(manifest.entries) == 6
