"""ACT's HDF5, read as the published readers of ACT and ACT++ read it: by name, at a random start, padded."""

from __future__ import annotations

import cv2
import h5py
import numpy as np
import pytest

from dreamgen.data.video import read_video
from dreamgen.errors import UserError
from dreamgen.run.files import read_json
from dreamgen.run.jobs import accepted_clips
from dreamgen.run.records import RobotFeatures
from export import export_datasets
from export.clips import generated_clips
from export.episodes import read_label
from export.formats.aloha import joint_velocity, write_aloha
from export.spec import dataset_spec
from export.validation import validate_clips
from export.workers import Workers
from tests.fixtures.runs import make_run, run_settings

LENGTHS = (9, 13, 5)


def export_aloha(folder, hdf5=None, num_workers=1, **run):
    run = make_run(folder, num_clips=5, num_frames=LENGTHS, rejected=1, **run)
    export = {"formats": ["aloha"], "num_workers": num_workers, "hdf5": hdf5 or {}}
    export_datasets(run_settings(run.root, export=export))
    return run, run.datasets / "aloha"


def act_sample(path, camera, start, max_len):
    """Do what ACT's readers do with a file: state and picture at `start`, all actions from it, padded, and the mask."""
    with h5py.File(path, "r") as root:
        is_sim, compressed = root.attrs["sim"], root.attrs.get("compress", False)
        qpos, qvel = root["/observations/qpos"][start], root["/observations/qvel"][start]
        image = root[f"/observations/images/{camera}"][start]
        if compressed:
            image = cv2.imdecode(image, 1)
        first = start if is_sim else max(0, start - 1)
        action = root["/action"][()][first:]
    padded = np.zeros((max_len, action.shape[1]), np.float32)
    padded[: len(action)] = action
    return image, qpos, qvel, padded, np.arange(max_len) >= len(action)


def test_an_act_reader_gets_each_frame_with_its_own_action(tmp_path):
    run, root = export_aloha(tmp_path / "run")
    clips = accepted_clips(run)
    assert sorted(path.name for path in root.glob("*.hdf5")) == [f"episode_{i}.hdf5" for i in range(len(clips))]
    random = np.random.default_rng(0)
    for number, clip in enumerate(clips):
        video_THWC = read_video(clip.video)
        action_TA, state_TS = read_label(clip.label, include_state=True)
        for start in {0, clip.num_frames - 1, int(random.integers(clip.num_frames))}:
            image, qpos, qvel, action, is_pad = act_sample(root / f"episode_{number}.hdf5", "ego_view", start, 13)
            np.testing.assert_array_equal(image, video_THWC[start])
            np.testing.assert_array_equal(qpos, state_TS[start])
            np.testing.assert_array_equal(action[0], action_TA[start])
            assert is_pad.sum() == 13 - (clip.num_frames - start) and not action[is_pad].any()
            change = state_TS[start] - state_TS[max(0, start - 1)]
            np.testing.assert_allclose(qvel, change * 16, rtol=1e-5, atol=1e-5)
        with h5py.File(root / f"episode_{number}.hdf5") as file:
            assert file["observations/images/ego_view"].chunks == (1, 32, 48, 3)
            assert file.attrs["task"] == clip.job.instruction and file.attrs["clip_id"] == clip.job.clip_id


def test_jpegs_come_back_as_rgb_and_shorter_rows_are_padded(tmp_path):
    run, root = export_aloha(tmp_path / "run", {"jpeg_quality": 95})
    for number, clip in enumerate(accepted_clips(run)):
        path, video_THWC = root / f"episode_{number}.hdf5", read_video(clip.video)
        with h5py.File(path) as file:
            rows, lengths = file["observations/images/ego_view"], file["compress_len"]
            assert bool(file.attrs["compress"]) and rows.dtype == np.uint8
            assert lengths.shape == (1, clip.num_frames) and rows.shape == (clip.num_frames, int(lengths[...].max()))
            for row, length in zip(rows[...], lengths[0].astype(int), strict=True):
                assert row[:2].tobytes() == b"\xff\xd8" and row[length - 2 : length].tobytes() == b"\xff\xd9"
                assert not row[length:].any()
        for start in range(clip.num_frames):
            image = act_sample(path, "ego_view", start, 13)[0].astype(int)
            as_it_is, swapped = (np.abs(image - wanted).mean() for wanted in (video_THWC[start], image[..., ::-1]))
            assert as_it_is < 8 < swapped, "red and blue stay where they are"


def test_equal_lengths_hold_the_last_frame(tmp_path):
    run, root = export_aloha(tmp_path / "run", {"equal_length": True, "compression": "gzip"})
    for number, clip in enumerate(accepted_clips(run)):
        action_TA, _ = read_label(clip.label, include_state=True)
        with h5py.File(root / f"episode_{number}.hdf5") as file:
            pictures = file["observations/images/ego_view"][...]
            assert len(pictures) == len(file["action"]) == len(file["observations/qpos"]) == max(LENGTHS)
            assert file.attrs["num_samples"] == clip.num_frames
            np.testing.assert_array_equal(file["action"][clip.num_frames - 1 :], action_TA[-1:].repeat(
                max(LENGTHS) - clip.num_frames + 1, axis=0))  # fmt: skip
            np.testing.assert_array_equal(pictures[-1], read_video(clip.video)[-1])
            assert not file["observations/qvel"][clip.num_frames :].any(), "what is held does not move"


def test_several_processes_write_the_same(tmp_path):
    _, alone = export_aloha(tmp_path / "alone")
    _, together = export_aloha(tmp_path / "together", num_workers=2)
    for path in alone.glob("*.hdf5"):
        assert path.read_bytes() == (together / path.name).read_bytes()


def test_episodes_that_are_there_are_not_written_again(tmp_path):
    run = make_run(tmp_path / "run", num_clips=3, num_frames=LENGTHS, rejected=0)
    settings = run_settings(run.root).export
    features = RobotFeatures.from_dict(read_json(run.train / "features.json"))
    root = tmp_path / "aloha"
    root.mkdir()
    with Workers(1) as workers:
        clips = accepted_clips(run)
        episodes, _ = validate_clips(
            generated_clips(clips), features, True, tmp_path / "episodes", workers, len(clips), ""
        )
        spec = dataset_spec(settings, features, episodes[0])
        write_aloha(root, tmp_path, episodes, spec, workers)
        before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.iterdir()}
        (root / "episode_1.hdf5").unlink()
        write_aloha(root, tmp_path, episodes, spec, workers)
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in root.iterdir()}
    assert after["episode_1.hdf5"][1] == before.pop("episode_1.hdf5")[1]
    assert {name: after[name] for name in before} == before


def test_without_states_it_says_what_is_missing_before_anything_is_written(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0, state_dim=0)
    with pytest.raises(UserError, match=r"aloha format needs observation.state"):
        export_datasets(run_settings(run.root, export={"formats": ["robomimic", "aloha"]}))
    assert not (run.datasets / "robomimic").exists()


def test_velocity_of_one_row_is_zero():
    np.testing.assert_array_equal(joint_velocity(np.array([[1.0, 2.0]], np.float32), 16), [[0, 0]])
