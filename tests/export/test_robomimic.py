"""The robomimic file, opened with h5py as robomimic opens it."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pyarrow.parquet as pq

from dreamgen.data.video import read_video
from dreamgen.run.jobs import accepted_clips
from export import export_datasets
from export.episodes import read_label
from export.formats.robomimic import valid_episodes
from tests.fixtures.runs import make_run, run_settings, write_label


def test_arrays_are_those_of_the_clips(exported):
    with h5py.File(exported.datasets / "robomimic/data.hdf5") as file:
        data = file["data"]
        clips = accepted_clips(exported)
        assert data.attrs["total"] == sum(clip.num_frames for clip in clips)
        assert set(json.loads(data.attrs["env_args"])) == {"env_name", "type", "env_kwargs"}
        scale_A, offset_A = data.attrs["action_scale"], data.attrs["action_offset"]
        for number, clip in enumerate(clips):
            demo = data[f"demo_{number}"]
            action_TA, state_TS = read_label(clip.label, include_state=True)
            assert demo.attrs["num_samples"] == clip.num_frames and demo.attrs["task"] == clip.job.instruction
            np.testing.assert_array_equal(demo["obs/ego_view"][...], read_video(clip.video))
            assert demo["obs/ego_view"].chunks == (1, 32, 48, 3)
            assert np.abs(demo["actions"][...]).max() <= 1
            np.testing.assert_allclose(demo["actions"][...] * scale_A + offset_A, action_TA, atol=1e-6)
            np.testing.assert_array_equal(demo["obs/state"][...], state_TS)
            assert demo["dones"][...].tolist() == [0] * (clip.num_frames - 1) + [1]
            assert demo["rewards"].shape == (clip.num_frames,) and len(demo["states"]) == clip.num_frames


def test_masks_split_the_demos(exported):
    with h5py.File(exported.datasets / "robomimic/data.hdf5") as file:
        train, valid = set(file["mask/train"][...].tolist()), set(file["mask/valid"][...].tolist())
        assert train | valid == {name.encode() for name in file["data"]} and not train & valid
    assert valid_episodes(1) == set() and valid_episodes(2) == {1} and valid_episodes(25) == {9, 19}


def test_a_dimension_that_never_changes_comes_back_exactly(tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, state_dim=0, rejected=0)
    clip = accepted_clips(run)[0]
    action_TA = read_label(clip.label, include_state=False)[0].copy()
    action_TA[:, 2] = 0.1
    write_label(clip.label, action_TA, None)
    export_datasets(run_settings(run.root, export={"formats": ["robomimic"]}))
    with h5py.File(run.datasets / "robomimic/data.hdf5") as file:
        scaled_TA = file["data/demo_0/actions"][...]
        back_TA = scaled_TA * file["data"].attrs["action_scale"] + file["data"].attrs["action_offset"]
        assert not scaled_TA[:, 2].any()
        np.testing.assert_array_equal(back_TA[:, 2].astype(np.float32), action_TA[:, 2])
        assert file["data/demo_0/states"].shape == (9, 0) and "state" not in file["data/demo_0/obs"]
        assert len(file["mask/train"]) == 1 and len(file["mask/valid"]) == 0
    assert pq.read_table(run.datasets / "robomimic.provenance.parquet").num_rows == 1


def test_next_obs_is_the_next_frames(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, num_frames=(5, 9), rejected=0)
    for compression in ("lzf", "none"):
        export = {"formats": ["robomimic"], "hdf5": {"next_obs": True, "compression": compression}}
        export_datasets(run_settings(run.root, export=export))
        with h5py.File(run.datasets / "robomimic/data.hdf5") as file:
            for number in range(2):
                demo = file[f"data/demo_{number}"]
                assert set(demo["next_obs"]) == set(demo["obs"]) == {"state", "ego_view"}
                for name in demo["obs"]:
                    rows = demo["obs"][name][...]
                    np.testing.assert_array_equal(demo["next_obs"][name][...], np.concatenate([rows[1:], rows[-1:]]))
        shutil.rmtree(run.datasets)


def test_several_processes_write_the_same_values(tmp_path):
    run = make_run(tmp_path / "run", num_clips=6, num_frames=5, rejected=0)
    held = []
    for num_workers in (1, 2):
        export_datasets(run_settings(run.root, export={"formats": ["robomimic"], "num_workers": num_workers}))
        assert [path.name for path in (run.datasets / "robomimic").rglob("*.hdf5")] == ["data.hdf5"], "no part is left"
        with h5py.File(run.datasets / "robomimic/data.hdf5") as file:
            arrays = {}
            file.visititems(lambda n, x, a=arrays: a.update({n: x[...]}) if isinstance(x, h5py.Dataset) else None)
            assert list(file["data"]) == [f"demo_{i}" for i in range(6)]
        held.append(arrays)
        shutil.rmtree(run.datasets)
    assert held[0].keys() == held[1].keys()
    for name, values in held[0].items():
        np.testing.assert_array_equal(values, held[1][name])
