"""plan where the run's picture shows several cameras: one picture of all, or one of each."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from dreamgen.data.images import fit_frame, read_image, write_png
from dreamgen.data.views import tile, tiled_views
from dreamgen.errors import UserError
from dreamgen.plan.stage import plan
from dreamgen.run.files import write_json
from dreamgen.run.jobs import read_jobs
from dreamgen.run.records import RobotFeatures
from dreamgen.run.run_folder import RunFolder
from tests.fixtures.world import HEIGHT, WIDTH, frame, make_world, tiny_settings

CAMERAS = ("observation.images.ego_view", "observation.images.wrist")
VIEWS = tiled_views(CAMERAS, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("model") / "world")


@pytest.fixture
def settings(tmp_path, world):
    """Of a run whose training set shows two cameras."""
    write_train(tmp_path / "run/train", CAMERAS)
    (tmp_path / "given").mkdir()
    return tiny_settings(tmp_path / "run", world, tmp_path / "given")


def write_train(folder: Path, cameras: tuple[str, ...]) -> None:
    features = RobotFeatures(camera=cameras[0], views=tiled_views(cameras, HEIGHT, WIDTH))
    write_json(folder / "features.json", asdict(features))


def first_frame(settings) -> np.ndarray:
    run = RunFolder.of(settings)
    (job,) = read_jobs(run.jobs)
    return read_image(run.first_frame_file(job.first_frame_sha256))


def write_each(folder: Path) -> np.ndarray:
    """Write a picture of each camera, and return what they should become."""
    frames = [frame(0, 40, 40), frame(3, 24, 64)]
    for picture_HWC, name in zip(frames, ("ego_view", "wrist"), strict=True):
        write_png(folder / f"scene.{name}.png", picture_HWC)
    fitted = [fit_frame(f, v.height, v.width, "crop") for f, v in zip(frames, VIEWS, strict=True)]
    return tile(fitted, VIEWS, HEIGHT, WIDTH)


def test_a_picture_of_each_camera(tmp_path, settings):
    wanted_HWC = write_each(tmp_path / "given")
    (tmp_path / "given/scene.txt").write_text("open the drawer")
    result = plan(settings)
    np.testing.assert_array_equal(first_frame(settings), wanted_HWC)
    assert "a folder of 1 images" in result.notes[0]


def test_a_table_names_all_cameras_at_once(tmp_path, settings):
    wanted_HWC = write_each(tmp_path / "given")
    table = tmp_path / "given/scenes.jsonl"
    table.write_text(json.dumps({"image": "scene.{camera}.png", "prompt": "open the drawer"}) + "\n")
    plan(replace(settings, plan=replace(settings.plan, first_frames=str(table))))
    np.testing.assert_array_equal(first_frame(settings), wanted_HWC)


def test_a_cameras_name_may_have_dots(tmp_path, settings):
    cameras = ("observation.images.left", "observation.images.front.left")
    write_train(tmp_path / "run/train", cameras)
    views = tiled_views(cameras, HEIGHT, WIDTH)
    frames = [frame(number, view.height, view.width) for number, view in enumerate(views)]
    for picture_HWC, name in zip(frames, ("left", "front.left"), strict=True):
        write_png(tmp_path / f"given/scene.{name}.png", picture_HWC)
    (tmp_path / "given/scene.txt").write_text("open the drawer")
    plan(settings)
    np.testing.assert_array_equal(first_frame(settings), tile(frames, views, HEIGHT, WIDTH))


def test_a_picture_of_all_has_the_clips_size(tmp_path, settings):
    write_png(tmp_path / "given/scene.png", frame(1))
    (tmp_path / "given/scene.txt").write_text("open the drawer")
    plan(settings)
    np.testing.assert_array_equal(first_frame(settings), frame(1))


def test_what_shows_other_cameras_is_refused(tmp_path, settings):
    given = tmp_path / "given"
    write_png(given / "scene.png", frame(1, 96, 96))
    (given / "scene.txt").write_text("open the drawer")
    with pytest.raises(UserError, match="does not show the cameras of this run side by side") as caught:
        plan(settings)
    assert "ego_view 24 x 32 at 0,0, wrist 24 x 32 at 24,0" in str(caught.value)
    assert "NAME.ego_view.png, NAME.wrist.png" in str(caught.value)

    video = replace(settings.video, height=2 * HEIGHT)
    with pytest.raises(UserError, match="do not fit a frame of") as caught:
        plan(replace(settings, video=video))
    assert "set video.height and video.width as for prepare" in str(caught.value)

    (given / "scene.png").unlink()
    write_each(given)
    (given / "scene.wrist.png").unlink()
    with pytest.raises(UserError, match="a camera has no file"):
        plan(settings)

    (tmp_path / "other/train/videos").mkdir(parents=True)
    (tmp_path / "other/train/metadata.csv").write_text("file_name,prompt\n")
    write_train(tmp_path / "other/train", CAMERAS[::-1])
    with pytest.raises(UserError, match="shows other cameras than this run"):
        plan(replace(settings, plan=replace(settings.plan, first_frames=str(tmp_path / "other/train"))))
