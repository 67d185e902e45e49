"""Published LeRobot datasets whose metadata is wrong: each difference is reported and worked around."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamgen.config.settings import PrepareSettings
from dreamgen.data.video import read_video, write_video
from dreamgen.errors import UserError
from dreamgen.prepare.stage import inspect, open_source, prepare
from tests.fixtures import demos


def change_info(folder, **values):
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    info.update(values)
    path.write_text(json.dumps(info))


def change_feature(folder, key, **values):
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"][key] = {**info["features"].get(key, {}), **values}
    change_info(folder, features=info["features"])


def set_column(folder, index, name, values):
    path = folder / f"data/chunk-000/episode_{index:06d}.parquet"
    table = pq.read_table(path)
    column = pa.array(values, table.schema.field(name).type)
    pq.write_table(table.set_column(table.column_names.index(name), name, column), path)


def opened(folder, **settings):
    return open_source(str(folder), PrepareSettings(**settings))


def test_every_quirk_of_published_v20_data_is_reported(tmp_path, settings_for):
    demos.write_lerobot_v20(tmp_path / "demos")
    result = prepare(settings_for(tmp_path / "demos"))
    assert result.notes == [
        f"info.json names the camera {demos.CAMERA_WITHOUT_FILES}, but no episode has a file of it: not used",
        "info.json says total_videos 2, the dataset has 3: the count is used",
        "info.json says total_chunks 0, the dataset has 1: the count is used",
        "info.json's split train is 0:100, the dataset has 3 episodes: not used",
        "observation.state and action are float64: stored as float32",
        "timestamps begin at 0.0625 s, not at 0: rows and frames are paired by their order",
        'the task "valid" of 3 episodes is not an instruction: only annotation.human.validity points to it',
    ]


@pytest.mark.parametrize("write", [demos.write_lerobot_v21, demos.write_lerobot_v30], ids=lambda f: f.__name__)
def test_clean_data_has_no_findings(write, tmp_path):
    source = opened(write(tmp_path / "demos"))
    assert source.findings == () and [clip.refused for clip in source.clips] == [None] * 3


def test_several_cameras_ask_for_a_choice(tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=1)
    other = "observation.images.wrist"
    change_feature(tmp_path / "demos", other, dtype="video", shape=[48, 64, 3])
    episode = demos.make_episode(7, 24, 16, 48, 64)
    write_video(tmp_path / f"demos/videos/chunk-000/{other}/episode_000000.mp4", episode.video_THWC, 16)
    with pytest.raises(UserError, match="several cameras") as error:
        prepare(settings_for(tmp_path / "demos"))
    assert error.value.actual == f"{demos.CAMERA}, {other}" and "--prepare.camera=" in error.value.next_step
    for choice in (other, "wrist"):
        source = opened(tmp_path / "demos", camera=choice)
        assert source.features.camera == other and other in str(source.clips[0].videos[0].path)


def test_a_camera_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    demos.write_lerobot_v20(tmp_path)
    with pytest.raises(UserError) as error:
        opened(tmp_path, camera=demos.CAMERA_WITHOUT_FILES)
    assert error.value.actual == demos.CAMERA_WITHOUT_FILES and error.value.allowed == demos.CAMERA


def test_depth_video_is_not_a_camera(tmp_path):
    demos.write_lerobot_v21(tmp_path, num_episodes=1)
    change_feature(tmp_path, "observation.images.depth", dtype="video", video_info={"video.is_depth_map": True})
    source = tmp_path / f"videos/chunk-000/{demos.CAMERA}/episode_000000.mp4"
    depth = tmp_path / "videos/chunk-000/observation.images.depth/episode_000000.mp4"
    depth.parent.mkdir()
    depth.write_bytes(source.read_bytes())
    assert opened(tmp_path).features.camera == demos.CAMERA


def test_the_most_frequent_task_of_an_episode_is_its_instruction(tmp_path):
    demos.write_lerobot_v21(tmp_path)
    set_column(tmp_path, 0, "task_index", [1] * 10 + [2] * 14)
    clip = opened(tmp_path).clips[0]
    assert clip.instruction == demos.INSTRUCTIONS[2]
    assert clip.changes == ("2 tasks in its frames: used the most frequent",)


def test_instruction_falls_back_to_the_annotation_then_to_the_metadata(tmp_path):
    demos.write_lerobot_v20(tmp_path)
    set_column(tmp_path, 0, "task_index", [99] * 24)
    clip = opened(tmp_path).clips[0]
    assert clip.instruction == demos.INSTRUCTIONS[0]
    assert clip.changes == ("instruction taken from annotation.human.action.task_description",)
    set_column(tmp_path, 0, "annotation.human.action.task_description", [99] * 24)
    assert "has no instruction" in opened(tmp_path).clips[0].refused  # its metadata lists two tasks
    lines = (tmp_path / "meta/episodes.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"episode_index": 0, "tasks": ["wave"], "length": 24})
    (tmp_path / "meta/episodes.jsonl").write_text("\n".join(lines))
    clip = opened(tmp_path).clips[0]
    assert clip.instruction == "wave" and clip.changes == ("instruction taken from the episode's metadata",)


def test_names_that_do_not_fit_the_vector_are_not_used(tmp_path):
    demos.write_lerobot_v21(tmp_path)
    change_feature(tmp_path, "action", names=["x", "y"])
    change_feature(tmp_path, "observation.state", names={"motors": ["a", "b", "c"]})
    source = opened(tmp_path)
    assert source.findings == ("info.json gives action 3 dimensions but 2 names: names not used",)
    assert source.features.action_names == ("action_0", "action_1", "action_2")
    assert source.features.state_names == ("a", "b", "c")


def test_modality_beyond_the_vector_is_reported(tmp_path):
    demos.write_lerobot_v21(tmp_path)
    (tmp_path / "meta/modality.json").write_text(json.dumps({"action": {"arm": {"start": 0, "end": 7}}}))
    assert opened(tmp_path).findings == ("modality.json's action arm is 0:7, but action has 3 values: not used",)


def test_only_what_is_whole_of_a_modality_reaches_features_json(tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=1)
    file = tmp_path / "demos/meta/modality.json"
    parts = {"arm": [0, 3], "hand": {"start": 2, "end": 3}}
    file.write_text(json.dumps({"action": parts, "state": {"x": {"start": 0}}}))
    result = prepare(settings_for(tmp_path / "demos"))
    features = json.loads((result.outputs["train"] / "features.json").read_text())
    assert features["modality"] == {"action": {"hand": {"start": 2, "end": 3}}}
    assert [note for note in result.notes if note.startswith("modality.json")] == [
        "modality.json's state x is 0:None, but observation.state has 3 values: not used",
        "modality.json's action arm is [0, 3], not an object: not used",
    ]
    file.write_text(json.dumps({"action": {"arm": [0, 3]}}))
    assert opened(tmp_path / "demos").features.modality is None


def test_unicode_line_breaks_stay_within_a_task(tmp_path):
    demos.write_lerobot_v21(tmp_path, num_episodes=1)
    task = "push\u2028the\u0085square"
    rows = [{"task_index": 0, "task": task}]
    (tmp_path / "meta/tasks.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    assert opened(tmp_path).clips[0].instruction == "push the square"


@pytest.mark.parametrize("details", [["is_depth_map"], "depth", 3, None])
def test_video_details_that_are_no_table_say_nothing_of_depth(details, tmp_path):
    demos.write_lerobot_v21(tmp_path, num_episodes=1)
    change_feature(tmp_path, demos.CAMERA, info=details, video_info=details)
    assert opened(tmp_path).features.camera == demos.CAMERA


def test_dataset_without_action_gives_clips_without(tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=1)
    info = json.loads((tmp_path / "demos/meta/info.json").read_text())
    del info["features"]["action"]
    change_info(tmp_path / "demos", features=info["features"])
    path = tmp_path / "demos/data/chunk-000/episode_000000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["action"]), path)
    (tmp_path / "demos/meta/modality.json").unlink()
    result = prepare(settings_for(tmp_path / "demos"))
    assert result.notes == ["the dataset has no action: the training set will have none"]
    columns = pq.read_schema(result.outputs["train"] / "trajectories/episode_000000.parquet").names
    assert columns == ["observation.state"]


@pytest.mark.parametrize("num_rows, status", [(23, "changed"), (22, "changed"), (21, "refused"), (12, "refused")])
def test_rows_that_do_not_match_the_frames(num_rows, status, tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=2)
    path = tmp_path / "demos/data/chunk-000/episode_000000.parquet"
    pq.write_table(pq.read_table(path).slice(0, num_rows), path)
    result = prepare(settings_for(tmp_path / "demos"))
    summary = result.outputs["summary"].read_text().splitlines()[1]
    assert f",{status}," in summary and f"{num_rows} rows" in summary
    if status == "changed":
        rows = pq.read_table(result.outputs["train"] / "trajectories/episode_000000.parquet").num_rows
        assert rows == num_rows and result.metrics["frames"] == 24 + num_rows


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("column", ["action", "observation.state"])
def test_values_that_are_not_finite_refuse_the_clip(bad, column, tmp_path, settings_for):
    demos.write_lerobot_v20(tmp_path / "demos", num_episodes=2)
    values = [[0.0, 0.0, 0.0]] * 23 + [[0.0, bad, 0.0]]
    set_column(tmp_path / "demos", 1, column, values)
    result = prepare(settings_for(tmp_path / "demos"))
    assert result.metrics["refused"] == 1
    assert "not finite" in result.notes[-1] and "row 23, dimension 1" in result.notes[-1] and column in result.notes[-1]


def test_vectors_of_another_length_refuse_the_clip(tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=3)
    set_column(tmp_path / "demos", 0, "action", [[0.0, 0.0]] * 24)
    set_column(tmp_path / "demos", 1, "action", [[0.0, 0.0]] * 23 + [[0.0]])
    result = prepare(settings_for(tmp_path / "demos"))
    assert result.metrics["used"] == 1
    assert "action has the wrong length; found 2; allowed: 3" in result.notes[0]
    assert "action changes its length" in result.notes[1]


def test_rate_of_the_dataset_goes_before_the_videos(tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=1)
    change_info(tmp_path / "demos", fps=32)
    result = prepare(settings_for(tmp_path / "demos"))
    assert result.metrics["frames"] == 12
    assert "the video states 16 fps, the dataset 32" in result.outputs["summary"].read_text()


def test_episodes_of_one_packed_mp4_are_cut_apart_exactly(tmp_path, settings_for, square_place):
    demos.write_lerobot_v30(tmp_path / "demos", num_episodes=4, num_frames=11, fps=30)
    assert len(list((tmp_path / "demos/videos").rglob("*.mp4"))) == 1
    source = opened(tmp_path / "demos")
    spans_s = [clip.videos[0].span_s for clip in source.clips]
    np.testing.assert_allclose(spans_s, [(k * 11 / 30, (k + 1) * 11 / 30) for k in range(4)])
    train = prepare(settings_for(tmp_path / "demos", num_frames=5)).outputs["train"]
    for index in range(4):
        truth = demos.make_episode(index, 11, 30, 48, 64).state_TS[[0, 2, 4, 6, 8, 9], :2]
        assert np.abs(square_place(read_video(train / f"videos/episode_{index:06d}.mp4")) - truth).max() < 0.03


def test_v30_with_wrong_totals_is_reported(tmp_path, settings_for):
    demos.write_lerobot_v30(tmp_path / "demos")
    change_info(tmp_path / "demos", total_frames=5)
    assert inspect(settings_for(tmp_path / "demos")).notes[-1] == (
        "info.json says total_frames 5, the dataset has 72: the count is used"
    )
