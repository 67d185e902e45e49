"""prepare with several cameras: their pictures side by side in one video, and what is refused."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from dreamgen.config.settings import PrepareSettings
from dreamgen.data.images import fit_frame
from dreamgen.data.video import read_video, write_video
from dreamgen.data.views import View, tile, tiled_views
from dreamgen.errors import UserError
from dreamgen.prepare.stage import inspect, open_source, prepare
from dreamgen.run.records import RobotFeatures
from tests.fixtures import demos

WRIST = "observation.images.wrist"


@pytest.mark.parametrize(
    ("count", "size", "places"),
    [(1, (48, 64), [(0, 0)]), (2, (48, 32), [(0, 0), (0, 32)]), (3, (24, 32), [(0, 0), (0, 32), (24, 0)]),
     (4, (24, 32), [(0, 0), (0, 32), (24, 0), (24, 32)]), (5, (24, 20), [(0, 0), (0, 20), (0, 40), (24, 0), (24, 20)])],
)  # fmt: skip
def test_tiles_are_alike_even_and_apart(count, size, places):
    views = tiled_views([f"camera_{number}" for number in range(count)], 48, 64)
    assert [(view.height, view.width) for view in views] == [size] * count
    assert [(view.top, view.left) for view in views] == places
    frames = [np.full((*size, 3), 10 + number, np.uint8) for number in range(count)]
    tiled_HWC = tile(frames, views, 48, 64)
    for view, frame_HWC in zip(views, frames, strict=True):
        np.testing.assert_array_equal(view.cut(tiled_HWC), frame_HWC)
    assert (tiled_HWC == 0).sum() == tiled_HWC.size - sum(frame.size for frame in frames)


def test_a_picture_that_is_too_small_is_refused():
    with pytest.raises(UserError, match="too small for this many cameras"):
        tiled_views(["camera"] * 50, 8, 8)


def test_each_camera_is_where_the_features_say(tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos")
    demos.add_camera(tmp_path / "demos", WRIST, 40, 40)
    cameras = {"cameras": ["ego_view", WRIST]}
    inspected = inspect(settings_for(tmp_path / "demos", prepare=cameras))
    result = prepare(settings_for(tmp_path / "demos", prepare=cameras))
    train = result.outputs["train"]
    assert inspected.metrics["frames"] == result.metrics["frames"] == 72
    features = RobotFeatures.from_dict(json.loads((train / "features.json").read_text()))
    assert features.camera == demos.CAMERA and features.views == tiled_views([demos.CAMERA, WRIST], 48, 64)
    assert features.views[1] == View(WRIST, 0, 32, 48, 32)
    for row in csv.DictReader((train / "metadata.csv").open()):
        tiled_THWC = read_video(train / row["file_name"]).astype(int)
        for view in features.views:
            source = tmp_path / f"demos/videos/chunk-000/{view.camera}/{row['file_name'].removeprefix('videos/')}"
            for tiled_HWC, frame_HWC in zip(tiled_THWC, read_video(source), strict=True):
                wanted_HWC = fit_frame(frame_HWC, view.height, view.width, "crop")
                assert np.abs(view.cut(tiled_HWC) - wanted_HWC.astype(int)).mean() < 6  # encoded once more
    summary = (train / "summary.csv").read_text()
    assert f"{WRIST} resized from 40x40 to 48x32, borders cut" in summary


def test_one_camera_in_a_list_is_that_camera(tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=1)
    alone = prepare(settings_for(tmp_path / "demos", prepare={"cameras": ["ego_view"]})).outputs["train"]
    plain = prepare(settings_for(tmp_path / "demos", out=tmp_path / "other")).outputs["train"]
    video = "videos/episode_000000.mp4"
    assert (alone / video).read_bytes() == (plain / video).read_bytes()
    assert json.loads((alone / "features.json").read_text())["views"] == []


def test_a_training_set_of_several_cameras_is_taken_apart_and_tiled_anew(tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=2)
    demos.add_camera(tmp_path / "demos", WRIST, 40, 40)
    cameras = {"cameras": ["ego_view", WRIST]}
    train = prepare(settings_for(tmp_path / "demos", out=tmp_path / "first", prepare=cameras)).outputs["train"]
    settings = settings_for(train, out=tmp_path / "second")
    again = prepare(replace(settings, video=replace(settings.video, height=32, width=96))).outputs["train"]
    assert prepare(settings_for(train, out=tmp_path / "third")).metrics["used"] == 2  # of one size, as they are
    before, after = (RobotFeatures.from_dict(json.loads((f / "features.json").read_text())) for f in (train, again))
    assert after.views == tiled_views([demos.CAMERA, WRIST], 32, 96) and after.action_names == before.action_names
    old_THWC, new_THWC = (read_video(folder / "videos/episode_000001.mp4") for folder in (train, again))
    for old_HWC, new_HWC in zip(old_THWC, new_THWC, strict=True):
        for old, new in zip(before.views, after.views, strict=True):
            wanted_HWC = fit_frame(np.ascontiguousarray(old.cut(old_HWC)), new.height, new.width, "crop")
            assert np.abs(new.cut(new_HWC) - wanted_HWC.astype(int)).mean() < 6  # encoded once more


def test_a_video_that_cannot_hold_the_tiles_is_refused(tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=2)
    demos.add_camera(tmp_path / "demos", WRIST, 40, 40)
    cameras = {"cameras": ["ego_view", WRIST]}
    train = prepare(settings_for(tmp_path / "demos", out=tmp_path / "first", prepare=cameras)).outputs["train"]
    video = train / "videos/episode_000000.mp4"
    write_video(video, read_video(video)[:, :, :32], 16)
    result = prepare(settings_for(train, out=tmp_path / "second"))
    assert result.metrics["refused"] == 1
    assert any("too small for the camera wrist" in note and "32 x 48 at 32,0" in note for note in result.notes)


def test_what_cannot_be_tiled_is_refused(tmp_path, settings_for):
    root = tmp_path / "demos"
    demos.write_lerobot_v21(root)
    demos.add_camera(root, WRIST, 40, 40)
    for cameras, words in (
        (["ego_view", "left", "right"], "left.*right"),
        (["ego_view", demos.CAMERA], "names a camera twice"),
        ([], "prepare.cameras is empty"),
    ):
        with pytest.raises(UserError) as caught:
            open_source(str(root), PrepareSettings(cameras=cameras))
        assert re.search(words, str(caught.value), re.DOTALL)
    with pytest.raises(UserError, match="do not go together"):
        open_source(str(root), PrepareSettings(camera="wrist", cameras=["wrist"]))
    with pytest.raises(UserError, match="for several in one frame") as caught:
        open_source(str(root), PrepareSettings())
    demos.write_plain(tmp_path / "plain")
    with pytest.raises(UserError, match="several video features"):
        open_source(str(tmp_path / "plain"), PrepareSettings(cameras=["a"]))

    wrist = root / "videos/chunk-000" / WRIST
    (wrist / "episode_000000.mp4").unlink()
    write_video(wrist / "episode_000001.mp4", read_video(wrist / "episode_000001.mp4")[:-5], 16)
    result = prepare(settings_for(root, prepare={"cameras": ["ego_view", "wrist"]}))
    assert result.metrics["refused"] == 2 and result.metrics["frames"] == 24
    notes = "\n".join(result.notes)
    assert "episode_000000.mp4 does not exist" in notes and "the cameras' videos differ in length" in notes
