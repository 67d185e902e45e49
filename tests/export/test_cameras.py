"""Clips that show several cameras side by side, exported with a video of each; real datasets with these cameras too."""

from __future__ import annotations

from dataclasses import asdict

import cv2
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from dreamgen.data.video import probe, read_video, write_video
from dreamgen.data.views import tiled_views
from dreamgen.errors import UserError
from dreamgen.run.files import read_json, write_json
from dreamgen.run.jobs import accepted_clips
from dreamgen.run.records import RobotFeatures
from export import export_datasets
from export.check import check
from export.episodes import read_label
from export.formats import lerobot
from export.formats.aloha import jpegs
from export.formats.lerobot import FileLimits
from tests.fixtures import demos
from tests.fixtures.runs import CAMERA, make_run, run_settings

WRIST = "observation.images.wrist"
VIEWS = tiled_views([CAMERA, WRIST], 32, 48)  # two of 32 x 24
LEROBOT = ["lerobot-v3.0", "lerobot-v2.1"]


def run_of_two_cameras(folder, **how):
    run = make_run(folder, rejected=0, action_dim=3, state_dim=3, **how)
    features = RobotFeatures.from_dict(read_json(run.train / "features.json"))
    names = {"action_names": list(demos.NAMES), "state_names": list(demos.NAMES)}
    modality = {"video": {"eye": {"original_key": CAMERA}}}
    write_json(run.train / "features.json", asdict(features) | names
               | {"camera": CAMERA, "views": [asdict(view) for view in VIEWS], "modality": modality})  # fmt: skip
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three clips, exported in every format by two processes."""
    run = run_of_two_cameras(tmp_path_factory.mktemp("cameras") / "run", num_clips=3, num_frames=(9, 13, 5))
    formats = [*LEROBOT, "robomimic", "aloha"]
    hdf5 = {"jpeg_quality": 90, "equal_length": True}
    result = export_datasets(run_settings(run.root, export={"formats": formats, "num_workers": 2, "hdf5": hdf5}))
    assert result.metrics["episodes"] == 3 and result.metrics["left_out"] == 0
    assert any("2 cameras side by side" in note for note in result.notes)
    return run


@pytest.fixture(scope="module")
def cut_THWC(run, tmp_path_factory):
    """Each clip's and view's pixels, cut and encoded here."""
    folder, videos = tmp_path_factory.mktemp("cut"), {}
    for number, clip in enumerate(accepted_clips(run)):
        for view in VIEWS:
            path = folder / f"{number}.{view.camera}.mp4"
            write_video(path, map(view.cut, read_video(clip.video)), 16, "h264", clip.job.crf, clip.job.gop)
            videos[number, view.camera] = path
    return {key: read_video(path) for key, path in videos.items()}, videos


def loaded(run):
    return LeRobotDataset("dreamgen/test", root=run.datasets / "lerobot-v3.0", video_backend="pyav", return_uint8=True)


@pytest.mark.parametrize("name", [*LEROBOT, "robomimic", "aloha"])
def test_check_finds_nothing(run, name):
    assert check(run.datasets / name) == []


def test_lerobot_reads_every_frame_of_every_camera(run, cut_THWC):
    dataset, row = loaded(run), 0
    assert sorted(dataset.meta.video_keys) == sorted([CAMERA, WRIST])
    assert dataset.meta.features[WRIST]["shape"] == (32, 24, 3)
    for number, clip in enumerate(accepted_clips(run)):
        action_TA, _ = read_label(clip.label, include_state=False)
        for frame in range(clip.num_frames):
            item = dataset[row]
            for view in VIEWS:
                picture_HWC = item[view.camera].permute(1, 2, 0).numpy()
                np.testing.assert_array_equal(picture_HWC, cut_THWC[0][number, view.camera][frame])
            np.testing.assert_array_equal(item["action"].numpy(), action_TA[frame])
            row += 1
    assert row == len(dataset) == 27


def test_frames_stay_with_their_actions_where_the_cameras_files_end_apart(tmp_path, monkeypatch):
    run = run_of_two_cameras(tmp_path / "run", num_clips=12, num_frames=(9, 5, 13))
    monkeypatch.setattr(lerobot, "FileLimits", lambda: FileLimits(data_mb=0.004, video_mb=0.006, chunks_size=2))
    export_datasets(run_settings(run.root, export={"formats": LEROBOT}))
    assert check(run.datasets / "lerobot-v3.0") == []
    episodes = pq.read_table(run.datasets / "lerobot-v3.0/meta/episodes").to_pylist()
    files = [[(row[f"videos/{view.camera}/chunk_index"], row[f"videos/{view.camera}/file_index"]) for row in episodes]
             for view in VIEWS]  # fmt: skip
    assert files[0] != files[1] and min(len(set(of_camera)) for of_camera in files) > 2
    dataset, row = loaded(run), 0
    for number, clip in enumerate(accepted_clips(run)):
        action_TA, _ = read_label(clip.label, include_state=False)
        folder, name = run.datasets / "lerobot-v2.1/videos/chunk-000", f"episode_{number:06d}.mp4"
        own = {view.camera: read_video(folder / view.camera / name) for view in VIEWS}
        for frame in range(clip.num_frames):
            for camera, pictures_THWC in own.items():
                np.testing.assert_array_equal(dataset[row][camera].permute(1, 2, 0).numpy(), pictures_THWC[frame])
            np.testing.assert_array_equal(dataset[row]["action"].numpy(), action_TA[frame])
            row += 1
    assert row == len(dataset) == 108


def test_each_camera_has_its_own_statistics(run, cut_THWC):
    stats = read_json(run.datasets / "lerobot-v3.0/meta/stats.json")
    for view in VIEWS:
        pixels = np.concatenate([cut_THWC[0][number, view.camera] for number in range(3)]) / 255
        np.testing.assert_allclose(np.ravel(stats[view.camera]["mean"]), pixels.mean((0, 1, 2)), atol=1e-6)
    assert stats[CAMERA]["mean"] != stats[WRIST]["mean"]


def test_v21_holds_the_files_and_groot_finds_them(run, cut_THWC):
    root = run.datasets / "lerobot-v2.1"
    for (number, camera), path in cut_THWC[1].items():
        assert (root / f"videos/chunk-000/{camera}/episode_{number:06d}.mp4").read_bytes() == path.read_bytes()
    assert read_json(root / "meta/info.json")["total_videos"] == 6
    video = read_json(root / "meta/modality.json")["video"]
    assert video == {"eye": {"original_key": CAMERA}, "wrist": {"original_key": WRIST}}


def test_hdf5_has_an_entry_a_camera(run, cut_THWC):
    with h5py.File(run.datasets / "robomimic/data.hdf5") as file:
        for number in range(3):
            for view in VIEWS:
                name = view.camera.removeprefix("observation.images.")
                pictures_THWC = file[f"data/demo_{number}/obs/{name}"][...]
                np.testing.assert_array_equal(pictures_THWC, cut_THWC[0][number, view.camera])
    with h5py.File(run.datasets / "aloha/episode_1.hdf5") as file:
        lengths_VT = file["compress_len"][...].astype(int)
        for lengths_T, name, camera in zip(lengths_VT, ("ego_view", "wrist"), (CAMERA, WRIST), strict=True):
            wanted = list(jpegs(cut_THWC[1][1, camera], 90))
            for row, length, data in zip(file[f"observations/images/{name}"], lengths_T, wanted, strict=True):
                np.testing.assert_array_equal(row[:length], data)
                np.testing.assert_array_equal(cv2.imdecode(row, cv2.IMREAD_COLOR), cv2.imdecode(data, cv2.IMREAD_COLOR))


def test_a_size_of_its_own_is_each_cameras(tmp_path):
    run = run_of_two_cameras(tmp_path / "run", num_clips=1)
    export_datasets(run_settings(run.root, export={"formats": ["lerobot-v2.1"], "height": 16, "width": 16}))
    root = run.datasets / "lerobot-v2.1"
    assert check(root) == []
    for video in root.rglob("*.mp4"):
        assert (probe(video).height, probe(video).width) == (16, 16)


def test_real_episodes_go_in_camera_by_camera(tmp_path):
    root = tmp_path / "real"
    demos.write_lerobot_v21(root, num_episodes=2, num_frames=12, height=32, width=24)
    demos.add_camera(root, "observation.images.above", 32, 24)
    demos.add_camera(root, WRIST, 32, 24)
    run = run_of_two_cameras(tmp_path / "run", num_clips=2)
    result = export_datasets(run_settings(run.root, export={"formats": LEROBOT, "mix_with": str(root)}))
    assert result.metrics["episodes"] == 4 and any("above is left out" in note for note in result.notes)
    for name in LEROBOT:
        assert check(run.datasets / name) == []
    dataset = loaded(run)
    for episode in range(2):
        for camera in (CAMERA, WRIST):
            source_THWC = read_video(root / f"videos/chunk-000/{camera}/episode_{episode:06d}.mp4")
            for frame in (0, 5, 11):
                picture_HWC = dataset[12 * episode + frame][camera].permute(1, 2, 0).numpy()
                np.testing.assert_array_equal(picture_HWC, source_THWC[frame])  # copied, not encoded again


def test_appending_to_what_was_exported_goes_on(tmp_path):
    old, new = (run_of_two_cameras(tmp_path / name, num_clips=2, seed=seed) for name, seed in (("old", 1), ("new", 2)))
    export_datasets(run_settings(old.root, export={"formats": ["lerobot-v3.0"]}))
    append_to = str(old.datasets / "lerobot-v3.0")
    export_datasets(run_settings(new.root, export={"formats": ["lerobot-v3.0"], "append_to": append_to}))
    assert check(new.datasets / "lerobot-v3.0") == []
    before, after = loaded(old), loaded(new)
    assert (len(before), len(after)) == (18, 36)
    for row in (0, 8, 17):
        for camera in (CAMERA, WRIST):
            np.testing.assert_array_equal(before[row][camera].numpy(), after[row][camera].numpy())


def test_a_dataset_that_lacks_a_camera_is_refused(tmp_path):
    root = demos.write_lerobot_v21(tmp_path / "real", num_episodes=1, height=32, width=24)
    run = run_of_two_cameras(tmp_path / "run", num_clips=1)
    with pytest.raises(UserError, match="lacks cameras that the generated clips show") as caught:
        export_datasets(run_settings(run.root, export={"formats": LEROBOT, "mix_with": str(root)}))
    assert WRIST in str(caught.value)


def test_a_clip_of_another_size_is_left_out(tmp_path):
    run = run_of_two_cameras(tmp_path / "run", num_clips=2)
    first, *_ = accepted_clips(run)
    write_video(first.video, np.zeros((first.num_frames, 64, 48, 3), np.uint8), 16)
    result = export_datasets(run_settings(run.root, export={"formats": LEROBOT}))
    assert (result.metrics["episodes"], result.metrics["left_out"]) == (1, 1)
    assert any(first.job.clip_id in note and "do not fit a frame of 48 x 64" in note for note in result.notes)


def test_the_cut_pictures_are_those_of_the_clip(run, cut_THWC):
    for number, clip in enumerate(accepted_clips(run)):
        clip_THWC = read_video(clip.video).astype(int)
        for view in VIEWS:
            difference = np.stack([view.cut(frame_HWC) for frame_HWC in clip_THWC]) - cut_THWC[0][number, view.camera]
            assert np.abs(difference).mean() < 4
