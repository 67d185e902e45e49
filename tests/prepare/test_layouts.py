"""Every layout becomes the same training set, in which picture, state, action and text belong together."""

import csv
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from dreamgen.config.settings import PrepareSettings
from dreamgen.data.images import fit_frame
from dreamgen.data.video import probe, read_video
from dreamgen.prepare.stage import inspect, open_source, prepare
from dreamgen.run.records import RobotFeatures
from tests.fixtures import demos

PREFIX = "The robot arm is performing a task. "
LEROBOT = [demos.write_lerobot_v20, demos.write_lerobot_v21, demos.write_lerobot_v30]


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def vectors(path):
    table = pq.read_table(path)
    return {name: np.array(table[name].to_pylist(), np.float32) for name in table.column_names}


@pytest.mark.parametrize("write", LEROBOT, ids=lambda f: f.__name__)
@pytest.mark.parametrize("source_fps", [16, 20])
def test_lerobot_clips_keep_picture_state_and_action_together(write, source_fps, tmp_path, settings_for, square_place):
    write(tmp_path / "demos", num_episodes=3, num_frames=24, fps=source_fps)
    result = prepare(settings_for(tmp_path / "demos"))
    train = result.outputs["train"]
    num_frames = 24 if source_fps == 16 else 19
    assert result.metrics["refused"] == 0 and result.metrics["frames"] == 3 * num_frames
    for index in range(3):
        source = demos.make_episode(index, 24, source_fps, 48, 64)
        nearest = [min(range(24), key=lambda j: (abs(j / source_fps - k / 16), -j)) for k in range(num_frames)]
        found = vectors(train / "trajectories" / f"episode_{index:06d}.parquet")
        np.testing.assert_array_equal(found["observation.state"], source.state_TS[nearest])
        np.testing.assert_array_equal(found["action"], source.action_TA[nearest])
        video_THWC = read_video(train / "videos" / f"episode_{index:06d}.mp4")
        assert len(video_THWC) == num_frames
        assert np.abs(square_place(video_THWC) - source.state_TS[nearest, :2]).max() < 0.03
        assert (train / "metas" / f"episode_{index:06d}.txt").read_text() == PREFIX + source.instruction


@pytest.mark.parametrize("write", LEROBOT, ids=lambda f: f.__name__)
def test_features_are_kept(write, tmp_path, settings_for):
    write(tmp_path / "demos", num_episodes=1)
    train = prepare(settings_for(tmp_path / "demos")).outputs["train"]
    features = RobotFeatures.from_dict(json.loads((train / "features.json").read_text()))
    assert features.robot_type == "square" and features.camera == demos.CAMERA
    assert features.state_names == features.action_names == demos.NAMES
    assert (features.modality is None) == (write is demos.write_lerobot_v30)
    assert features.source == {
        "path": str(tmp_path / "demos"),
        "layout": f"LeRobot v{write.__name__[-2]}.{write.__name__[-1]}",
    }


@pytest.mark.parametrize("captions", ["metas", "captions", "metadata"])
def test_gr1_layout_with_each_kind_of_text(captions, tmp_path, settings_for):
    demos.write_gr1(tmp_path / "demos", captions=captions)
    train = prepare(settings_for(tmp_path / "demos")).outputs["train"]
    rows = rows_of(train / "metadata.csv")
    assert [row["instruction"] for row in rows] == list(demos.INSTRUCTIONS)  # commas and quotes among them
    assert [row["prompt"] for row in rows] == [PREFIX + text for text in demos.INSTRUCTIONS]
    assert not (train / "trajectories").exists()
    for index, row in enumerate(rows):
        source = demos.make_episode(index, 24, 16, 48, 64).video_THWC
        assert np.abs(read_video(train / row["file_name"]).astype(int) - source).mean() < 6
        assert int(row["num_frames"]) == probe(train / row["file_name"]).num_frames == 24


def test_gr1_caption_length_is_a_setting(tmp_path, settings_for):
    demos.write_gr1(tmp_path / "demos", captions="captions", num_episodes=1)
    result = inspect(settings_for(tmp_path / "demos", prepare={"caption_length": "short"}))
    assert result.notes[0].endswith(f"{PREFIX}short: {demos.INSTRUCTIONS[0]}")


@pytest.mark.parametrize("column", ["file_name", "video", "path", "video_path"])
def test_gr1_table_may_name_its_columns_in_several_ways(column, tmp_path):
    demos.write_gr1(tmp_path, num_episodes=1)
    (tmp_path / "metadata.csv").write_text(f'{column},caption\nclip_0.mp4,"a, b"\n', encoding="utf-8")
    clips = open_source(str(tmp_path), PrepareSettings()).clips
    assert [(clip.origin, clip.instruction, clip.refused) for clip in clips] == [("videos/clip_0.mp4", "a, b", None)]


def test_plain_folder(tmp_path, settings_for):
    demos.write_plain(tmp_path / "demos")
    result = prepare(settings_for(tmp_path / "demos"))
    rows = rows_of(result.outputs["train"] / "metadata.csv")
    assert [row["file_name"] for row in rows] == [f"videos/demo_{i}.mp4" for i in range(3)]
    assert [row["source"] for row in rows] == [f"demo_{i}.mp4" for i in range(3)]
    assert result.metrics == {"used": 3, "changed": 0, "refused": 0, "frames": 72, "seconds": 4.5}


def test_what_prepare_wrote_is_read_again_without_a_second_prefix(tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos")
    first = prepare(settings_for(tmp_path / "demos")).outputs["train"]
    second = prepare(settings_for(first, out="again")).outputs["train"]
    for index in range(3):
        name = f"episode_{index:06d}"
        assert (second / f"metas/{name}.txt").read_bytes() == (first / f"metas/{name}.txt").read_bytes()
        before, after = (vectors(train / f"trajectories/{name}.parquet") for train in (first, second))
        np.testing.assert_array_equal(before["action"], after["action"])
        np.testing.assert_array_equal(before["observation.state"], after["observation.state"])
    assert [row["instruction"] for row in rows_of(second / "metadata.csv")] == list(demos.INSTRUCTIONS)
    assert json.loads((second / "features.json").read_text())["action_names"] == list(demos.NAMES)


@pytest.mark.parametrize("column", ["prompt", "text"])
def test_a_prompt_that_has_the_prefix_does_not_get_it_twice(column, tmp_path, settings_for):
    demos.write_gr1(tmp_path / "demos", num_episodes=1)
    (tmp_path / "demos/metadata.csv").write_text(f"file_name,{column}\nvideos/clip_0.mp4,{PREFIX}lift the cup\n")
    train = prepare(settings_for(tmp_path / "demos")).outputs["train"]
    assert (train / "metas/clip_0.txt").read_text() == PREFIX + "lift the cup"
    assert rows_of(train / "metadata.csv")[0]["instruction"] == "lift the cup"


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_aspect_ratio_is_kept(fit, tmp_path, settings_for):
    demos.write_plain(tmp_path / "demos", num_episodes=1)
    result = prepare(settings_for(tmp_path / "demos", prepare={"fit": fit}, height=64, width=64))
    written = read_video(result.outputs["train"] / "videos/demo_0.mp4")
    source = read_video(tmp_path / "demos/demo_0.mp4")
    expected = np.stack([fit_frame(frame, 64, 64, fit) for frame in source])
    assert written.shape == (24, 64, 64, 3) and np.abs(written.astype(int) - expected).mean() < 6
    assert (written[:, :6].mean() < 12) == (fit == "pad")
    detail = rows_of(result.outputs["summary"])[0]["detail"]
    assert detail == "resized from 48x64 to 64x64" + {"crop": ", borders cut", "pad": ", black borders added"}[fit]


def test_slow_source_is_brought_up_to_the_rate(tmp_path, settings_for, square_place):
    demos.write_plain(tmp_path / "demos", num_episodes=1, fps=8, num_frames=12)
    train = prepare(settings_for(tmp_path / "demos")).outputs["train"]
    places = square_place(read_video(train / "videos/demo_0.mp4"))
    source = square_place(read_video(tmp_path / "demos/demo_0.mp4"))
    assert len(places) == 23
    assert np.abs(places - source[(np.arange(23) + 1) // 2]).max() < 0.02


def test_summary_says_what_became_of_each_clip(tmp_path, settings_for):
    demos.write_plain(tmp_path / "demos", num_episodes=2, fps=20)
    demos.write_plain(tmp_path / "short", num_episodes=1, num_frames=6)
    (tmp_path / "short/demo_0.mp4").rename(tmp_path / "demos/short.mp4")
    (tmp_path / "demos/short.txt").write_text("too short")
    result = prepare(settings_for(tmp_path / "demos"))
    rows = rows_of(result.outputs["summary"])
    header = "source,name,status,detail,num_source_frames,num_frames,source_fps,height,width"
    assert result.outputs["summary"].read_text().splitlines()[0] == header
    assert [row["status"] for row in rows] == ["changed", "changed", "refused"]
    assert rows[0]["detail"] == "resampled from 20 to 16 fps"
    assert rows[0]["num_source_frames"] == "24" and rows[0]["num_frames"] == "19" and rows[0]["source_fps"] == "20.0"
    assert "shorter than a window" in rows[2]["detail"] and rows[2]["num_frames"] == "0"


def test_the_same_demos_give_the_same_bytes(tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=2, fps=20)
    trains = [prepare(settings_for(tmp_path / "demos", out=out)).outputs["train"] for out in ("a", "b")]
    names = [sorted(p.relative_to(t) for p in t.rglob("*") if p.is_file()) for t in trains]
    assert names[0] == names[1] and len(names[0]) == 11
    assert all((trains[0] / name).read_bytes() == (trains[1] / name).read_bytes() for name in names[0])


def test_dry_run_writes_nothing_and_says_the_same(tmp_path, settings_for):
    demos.write_lerobot_v20(tmp_path / "demos", num_episodes=4, fps=20)
    settings = settings_for(tmp_path / "demos")
    seen = inspect(replace(settings, out=None))
    assert not (tmp_path / "run").exists()
    assert seen.notes[:3] == [f"prompt of episode_{i:06d}: {PREFIX}{demos.INSTRUCTIONS[i]}" for i in range(3)]
    done = prepare(settings)
    assert {k: v for k, v in seen.metrics.items() if k != "disk_mib"} == done.metrics
    assert seen.notes[3:] == done.notes and seen.metrics["disk_mib"] > 0


def test_max_episodes(tmp_path, settings_for):
    demos.write_lerobot_v30(tmp_path / "demos")
    result = prepare(settings_for(tmp_path / "demos", prepare={"max_episodes": 2}))
    assert result.metrics["used"] == 2 and not (result.outputs["train"] / "videos/episode_000002.mp4").exists()
