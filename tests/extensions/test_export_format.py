"""The export format that docs/extending/export_format.md shows, installed as a package and used by commands."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from dreamgen.cli.main import main
from dreamgen.data.video import read_video
from dreamgen.errors import UserError
from dreamgen.extensions.export_format import EXPORT_FORMATS, reader_of
from dreamgen.report.gather import gather
from dreamgen.run.files import read_json, write_json
from dreamgen.run.jobs import accepted_clips
from export.check.findings import Findings
from export.episodes import read_label
from tests.fixtures.documented import DOCS, install_documented
from tests.fixtures.runs import make_run

LENGTHS = (9, 5)


@pytest.fixture
def npz_installed(tmp_path, monkeypatch):
    """The documented package, as if pip had installed it."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    install_documented("extending/export_format.md", folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(EXPORT_FORMATS, "_entries", dict(EXPORT_FORMATS._entries))
    monkeypatch.setattr(EXPORT_FORMATS, "_has_entry_points", False)
    yield
    sys.modules.pop("npz_folder", None)


@pytest.fixture
def exported_npz(npz_installed, tmp_path):
    """A run of two accepted clips, exported by the command as npz and robomimic."""
    run = make_run(tmp_path / "run", num_clips=2, num_frames=LENGTHS, rejected=0)
    words = ["--export.formats=[npz, robomimic]", "--num_workers=1"]
    assert main(["export", "--out", str(run.root), *words]) == 0
    return run


def test_the_command_writes_the_documented_format_with_card_and_provenance(exported_npz):
    root = exported_npz.datasets / "npz"
    for number, clip in enumerate(accepted_clips(exported_npz)):
        action_TA, state_TS = read_label(clip.label, include_state=True)
        with np.load(root / f"episode_{number:06d}.npz", allow_pickle=False) as arrays:
            np.testing.assert_array_equal(arrays["action"], action_TA)
            np.testing.assert_array_equal(arrays["state"], state_TS)
            assert str(arrays["task"]) == clip.job.instruction
        video = root / f"episode_{number:06d}.ego_view.mp4"
        np.testing.assert_array_equal(read_video(video), read_video(clip.video))
    card = (root / "README.md").read_text()
    assert "npz: one .npz and .mp4 file per episode" in card and 'episode_000000.npz")["action"]' in card
    assert pq.read_table(exported_npz.datasets / "npz.provenance.parquet").num_rows == 2
    assert (exported_npz.datasets / "robomimic/data.hdf5").is_file()


def test_check_reads_it_and_repairs_it(exported_npz, capsys):
    root = exported_npz.datasets / "npz"
    assert main(["check", str(root)]) == 0
    write_json(root / "dataset.json", read_json(root / "dataset.json") | {"num_episodes": 7})
    action_TA = np.zeros((LENGTHS[0] + 1, 5), np.float64)
    action_TA[3] = np.nan
    np.savez(root / "episode_000000.npz", action=action_TA)
    (root / "episode_000001.npz").write_bytes(b"PK\x03\x04 cut off")
    capsys.readouterr()
    assert main(["check", str(root), "--json"]) == 1
    (result,) = json.loads(capsys.readouterr().out)
    codes = {finding["code"] for finding in result["figures"]["findings"]}
    of_the_reader = {"wrong-total", "npz-type", "not-finite", "frame-count", "unreadable-file"}
    assert codes == of_the_reader | {"manifest-differs"}  # of the manifest that every export has
    assert main(["check", str(root), "--fix"]) == 1
    assert "fixed dataset.json: num_episodes -> 2" in capsys.readouterr().out
    assert read_json(root / "dataset.json")["num_episodes"] == 2


def test_the_report_counts_its_episodes(exported_npz):
    datasets = {dataset.name: dataset.num_episodes for dataset in gather(exported_npz).datasets}
    assert datasets == {"npz": 2, "robomimic": 2}


def test_an_unknown_format_is_refused_with_all_names(npz_installed, tmp_path, capsys):
    assert main(["export", "--out", str(tmp_path), "--export.formats=[zarr]"]) == 2
    error = capsys.readouterr().err
    assert "zarr" in error and "aloha, npz" in error


def test_a_path_that_no_format_recognizes_lists_all_layouts(npz_installed, tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "LeRobot: a folder with meta/info.json" in error and "dataset.json and episode_000000.npz" in error


def test_codes_of_a_format_that_is_not_installed_are_unknown():
    with pytest.raises(KeyError, match="npz-type"):
        Findings().add("npz-type", "file", "", 1, 2)


@pytest.mark.parametrize("name", EXPORT_FORMATS.names())
def test_a_format_is_registered_under_its_own_name_and_documented(name):
    entry = EXPORT_FORMATS.get(name)
    assert entry.name == name
    row = f"| `{name}` | {entry.summary} | {'yes' if entry.is_resumable else 'no'} |"
    assert row in (DOCS / "formats.md").read_text()


def test_a_format_that_is_registered_at_run_time_comes_before_robomimic(tmp_path):
    robomimic = EXPORT_FORMATS.get("robomimic")
    assert reader_of(tmp_path) is None
    (tmp_path / "data.hdf5").write_bytes(b"")
    assert reader_of(tmp_path) is robomimic.reader
    mine = replace(robomimic, name="mine", reader=replace(robomimic.reader))
    EXPORT_FORMATS.register("mine", mine)
    try:
        assert reader_of(tmp_path) is mine.reader
    finally:
        EXPORT_FORMATS.unregister("mine")


def test_the_number_of_demos_of_a_damaged_file_is_an_error(tmp_path):
    (tmp_path / "data.hdf5").write_bytes(b"")
    with pytest.raises(UserError, match="is not an HDF5 file"):
        EXPORT_FORMATS.get("robomimic").reader.num_episodes(tmp_path)
