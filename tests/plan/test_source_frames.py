"""Clips begin with the frames of the demonstrations themselves, not with those of the encoded training set."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from dreamgen.config.settings import PrepareSettings
from dreamgen.data.images import fit_frame, frame_sha256, read_image
from dreamgen.data.timeline import resampled_indices
from dreamgen.data.video import read_video
from dreamgen.data.views import tile, tiled_views
from dreamgen.errors import UserError
from dreamgen.plan.stage import plan
from dreamgen.prepare.stage import prepare
from dreamgen.run.jobs import read_jobs
from dreamgen.run.run_folder import RunFolder
from tests.fixtures import demos
from tests.fixtures.world import HEIGHT, WIDTH, make_world, tiny_settings

NUM_EPISODES = 2
WRIST = "observation.images.wrist"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("model") / "world")


def prepared(tmp_path, world, cameras=None, **wanted):
    """Prepare episodes at 20 fps for clips at 16 fps and another size; return the settings to plan with."""
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=NUM_EPISODES, fps=20)
    if cameras:
        demos.add_camera(tmp_path / "demos", WRIST, 40, 40)
    settings = replace(
        tiny_settings(tmp_path / "run", world, plan=wanted),
        demos=str(tmp_path / "demos"), prepare=PrepareSettings(cameras=cameras),
    )  # fmt: skip
    prepare(settings)
    return settings


def source_frames(tmp_path, camera, height=HEIGHT, width=WIDTH) -> list[list[np.ndarray]]:
    """Return each episode's first five frames after resampling, resized, from its own mp4."""
    paths = sorted((tmp_path / "demos/videos").rglob(f"*{camera}*/*.mp4"))
    assert len(paths) == NUM_EPISODES
    videos = [read_video(path) for path in paths]
    return [
        [fit_frame(video_THWC[t], height, width, "crop") for t in resampled_indices(len(video_THWC), 20, 16)[:5]]
        for video_THWC in videos
    ]


def planned_frames(settings) -> list[np.ndarray]:
    plan(settings)
    run = RunFolder.of(settings)
    return [read_image(run.first_frame_file(job.first_frame_sha256)) for job in read_jobs(run.jobs)]


def test_a_clip_begins_with_the_first_frame_of_the_source(tmp_path, world):
    settings = prepared(tmp_path, world)
    expected = [frames[0] for frames in source_frames(tmp_path, demos.CAMERA)]
    np.testing.assert_array_equal(planned_frames(settings), expected)
    encoded = read_video(tmp_path / "run/train/videos/episode_000000.mp4")[0]
    assert frame_sha256(encoded) != frame_sha256(expected[0])


def test_a_clip_continues_the_first_five_frames_of_the_source(tmp_path, world):
    settings = prepared(tmp_path, world, condition="video")
    expected = [np.concatenate(frames) for frames in source_frames(tmp_path, demos.CAMERA)]
    np.testing.assert_array_equal(planned_frames(settings), expected)


def test_several_cameras_are_tiled_from_their_sources(tmp_path, world):
    settings = prepared(tmp_path, world, cameras=[demos.CAMERA, WRIST])
    views = tiled_views((demos.CAMERA, WRIST), HEIGHT, WIDTH)
    cameras = [source_frames(tmp_path, view.camera, view.height, view.width) for view in views]
    expected = [tile([ego[0], wrist[0]], views, HEIGHT, WIDTH) for ego, wrist in zip(*cameras, strict=True)]
    np.testing.assert_array_equal(planned_frames(settings), expected)


def test_a_training_set_without_them_gives_its_encoded_frames_and_a_note(tmp_path, world):
    settings = prepared(tmp_path, world)
    train = tmp_path / "run/train"
    shutil.rmtree(train / "first_frames")
    result = plan(settings)
    assert any(note.startswith("2 first frames are read from encoded videos") for note in result.notes)
    hashes = [job.first_frame_sha256 for job in read_jobs(RunFolder.of(settings).jobs)]
    assert hashes == [frame_sha256(read_video(path)[0]) for path in sorted((train / "videos").glob("*.mp4"))]


def test_another_runs_training_set_gives_its_source_frames_too(tmp_path, world):
    prepared(tmp_path, world)
    settings = tiny_settings(tmp_path / "other", world, tmp_path / "run/train")
    result = plan(settings)
    assert not any("encoded videos" in note for note in result.notes)
    expected = [frame_sha256(frames[0]) for frames in source_frames(tmp_path, demos.CAMERA)]
    assert [job.first_frame_sha256 for job in read_jobs(RunFolder.of(settings).jobs)] == expected


def test_a_clip_that_is_found_damaged_while_decoding_leaves_no_first_frames(tmp_path, world):
    demos.write_plain(tmp_path / "demos", num_episodes=2)
    video = tmp_path / "demos/demo_1.mp4"
    content = bytearray(video.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    video.write_bytes(content)
    settings = replace(tiny_settings(tmp_path / "run", world), demos=str(tmp_path / "demos"))
    result = prepare(settings)
    kept = sorted(path.stem for path in (tmp_path / "run/train/videos").iterdir())
    assert sorted(path.stem for path in (tmp_path / "run/train/first_frames").iterdir()) == kept
    assert kept == ["demo_0"] and result.metrics["refused"] == 1


def test_a_damaged_stack_is_refused_with_the_way_out(tmp_path, world):
    settings = prepared(tmp_path, world)
    for path in (tmp_path / "run/train/first_frames").iterdir():
        shutil.copy(_odd_picture(tmp_path), path)
    with pytest.raises(UserError, match="does not hold 5 frames of one size") as caught:
        plan(settings)
    assert "remove it" in str(caught.value)


def _odd_picture(tmp_path):
    from dreamgen.data.images import write_png

    write_png(tmp_path / "odd.png", np.zeros((33, WIDTH, 3), np.uint8))
    return tmp_path / "odd.png"
