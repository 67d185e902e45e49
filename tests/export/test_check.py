"""The checker: silent on good datasets, and it names each kind of damage."""
# ruff: noqa: E501  (one line a damage reads best)

from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamgen.core.errors import UserError
from dreamgen.core.video import read_video, write_video
from export.check import check, check_stage
from tests.fixtures.runs import CAMERA

V30, V21, ROBOMIMIC = "lerobot-v3.0", "lerobot-v2.1", "robomimic"
DATA30, EPISODES30 = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
VIDEO30 = f"videos/{CAMERA}/chunk-000/file-000.mp4"
DATA21, VIDEO21 = "data/chunk-000/episode_000001.parquet", f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
TASK_COLUMN = "annotation.human.action.task_description"


def edit_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_parquet(path, change):
    """Change a table's columns, given as {name: list of python values}."""
    table = pq.read_table(path)
    columns = table.to_pydict()
    kinds = {name: table.schema.field(name).type for name in columns}
    change(columns, kinds)
    pq.write_table(pa.table({name: pa.array(values, kinds[name]) for name, values in columns.items()}), path)


def edit_lines(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def set_cell(column, row, value):
    def change(columns, kinds):
        columns[column][row] = value

    return change


def set_key(*keys, value):
    def change(values):
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


def shift_times(columns, kinds):
    columns["timestamp"] = [time + 1 / 16 for time in columns["timestamp"]]


def drop_last_row(columns, kinds):
    for values in columns.values():
        values.pop()


def nan_action(columns, kinds):
    columns["action"][3][2] = float("nan")


def as_lists(columns, kinds):
    columns[TASK_COLUMN], kinds[TASK_COLUMN] = [[v] for v in columns[TASK_COLUMN]], pa.list_(pa.int64())


def shorter_actions(columns, kinds):
    columns["action"] = [row[:4] for row in columns["action"]]


def as_text(columns, kinds):
    columns["timestamp"], kinds["timestamp"] = [str(v) for v in columns["timestamp"]], pa.string()


def without(name):
    def change(columns, kinds):
        del columns[name]

    return change


def drop_frame(path):
    write_video(path, read_video(path)[:-1], 16)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def add_rows_of_nobody(path):
    pq.write_table(pq.read_table(path).slice(0, 3), path.with_name("file-001.parquet"))


def swap_tasks(path):
    pd.read_parquet(path).iloc[::-1].to_parquet(path)


def lengthen_span(columns, kinds):
    columns[f"videos/{CAMERA}/to_timestamp"][1] += 2 / 16


def move_span(columns, kinds):
    for side in ("from", "to"):
        columns[f"videos/{CAMERA}/{side}_timestamp"][1] -= 2 / 16


def gap_in_index(columns, kinds):
    columns["index"] = [i + (i >= 20) for i in columns["index"]]


json_of = {"info": "meta/info.json", "modality": "meta/modality.json", "stats": "meta/stats.json"}
SIZE = ("features", CAMERA, "shape")

# Dataset, damaged file, how it is opened, the damage, the check that finds it, words in its finding.
DAMAGES = {
    "1 a frame is missing in a joined video": (V30, VIDEO30, None, drop_frame, "frame-count", "episode 4"),
    "1 a frame is missing in one episode's video": (V21, VIDEO21, None, drop_frame, "frame-count", "12 frames"),
    "1 a row is missing": (V21, DATA21, edit_parquet, drop_last_row, "row-count", "12 rows"),
    "1 a row is missing at the end of a shared file": (V30, DATA30, edit_parquet, drop_last_row, "row-count", "of 48"),
    "1 length says one more": (V21, "meta/episodes.jsonl", edit_lines, set_key(1, "length", value=14), "frame-count", "length 14"),
    "1 rows that no episode names": (V30, DATA30, None, add_rows_of_nobody, "row-count", "3 rows"),
    "1 a video is cut off": (V21, VIDEO21, None, truncate, "damaged-video", "episode_000001"),
    "2 times are shifted by a frame": (V30, DATA30, edit_parquet, shift_times, "timestamp", "0.062500"),
    "2 times are shifted in one episode": (V21, DATA21, edit_parquet, shift_times, "timestamp", "episode 1, row 0"),
    "2 fps is another": (V30, json_of["info"], edit_json, set_key("fps", value=8), "fps-differs", "16 frames a second"),
    "2 the camera's fps is another": (V21, json_of["info"], edit_json, set_key("features", CAMERA, "info", "video.fps", value=20), "fps-differs", "20"),
    "2 fps is not a number": (V30, json_of["info"], edit_json, set_key("fps", value="16"), "fps", "a number above 0"),
    "3 a span is too long": (V30, EPISODES30, edit_parquet, lengthen_span, "video-span", "episode 1"),
    "3 spans overlap": (V30, EPISODES30, edit_parquet, move_span, "video-overlap", "episode 0 ends"),
    "4 index has a gap": (V30, DATA30, edit_parquet, gap_in_index, "index", "21"),
    "4 total_frames": (V30, json_of["info"], edit_json, set_key("total_frames", value=50), "wrong-total", "49"),
    "4 total_episodes": (V21, json_of["info"], edit_json, set_key("total_episodes", value=6), "wrong-total", "total_episodes"),
    "4 total_videos": (V21, json_of["info"], edit_json, set_key("total_videos", value=2), "wrong-total", "total_videos"),
    "4 splits": (V21, json_of["info"], edit_json, set_key("splits", value={"train": "0:100"}), "wrong-split", "0:100"),
    "4 a video does not exist": (V21, VIDEO21, None, lambda path: path.unlink(), "missing-file", "episode_000001.mp4"),
    "4 no video exists": (V30, VIDEO30, None, lambda path: path.unlink(), "camera-without-files", CAMERA),
    "4 a data file does not exist": (V21, DATA21, None, lambda path: path.unlink(), "missing-file", DATA21),
    "4 a data file is cut off": (V30, DATA30, None, truncate, "unreadable-file", DATA30),
    "4 the episodes are cut off": (V30, EPISODES30, None, truncate, "unreadable-file", EPISODES30),
    "4 a path leads out": (V21, json_of["info"], edit_json, set_key("data_path", value="../../{episode_index}.parquet"), "path-outside", ".."),
    "4 a path template reaches for attributes": (V30, json_of["info"], edit_json, set_key("video_path", value="{video_key.__class__}"), "path-template", "video_key"),
    "4 an episode is named twice": (V21, "meta/episodes.jsonl", edit_lines, set_key(1, "episode_index", value=0), "episode-duplicate", "2 entries"),
    "4 a line is not JSON": (V21, "meta/tasks.jsonl", None, lambda path: path.write_text("{'task': 1}\n"), "unreadable-file", "line 1"),
    "5 a slice ends beyond the vector": (V21, json_of["modality"], edit_json, set_key("action", "gripper", "end", value=6), "modality-slice", "end 6"),
    "5 a slice is empty": (V21, json_of["modality"], edit_json, set_key("state", "arm", "start", value=3), "modality-slice", "state.arm"),
    "5 a camera of nobody": (V21, json_of["modality"], edit_json, set_key("video", "ego_view", "original_key", value="x"), "modality-entry", "video.ego_view"),
    "5 annotations are lists": (V21, DATA21, edit_parquet, as_lists, "annotation-list", "list"),
    "5 an annotation of nobody": (V21, DATA21, edit_parquet, set_cell(TASK_COLUMN, 0, 9), "annotation-unknown", "9"),
    "5 a task of nobody": (V30, DATA30, edit_parquet, set_cell("task_index", 0, 9), "task-unknown", "9"),
    "5 tasks in another order": (V30, "meta/tasks.parquet", None, swap_tasks, "task-order", "row order"),
    "5 statistics of another length": (V30, json_of["stats"], edit_json, set_key("action", "mean", value=[0.0] * 4), "statistics-length", "4 values"),
    "5 statistics are not numbers": (V21, json_of["stats"], edit_json, set_key("action", "std", value=[None] * 5), "statistics-not-finite", "finite"),
    "5 GR00T's statistics hold a count": (V21, json_of["stats"], edit_json, set_key("action", "count", value=[49]), "groot-count", "count"),
    "5 GR00T's statistics lack q99": (V21, json_of["stats"], edit_json, lambda v: v["action"].pop("q99"), "statistics-missing", "no q99"),
    "5 statistics of other data": (V30, json_of["stats"], edit_json, set_key("action", "max", value=[9.0] * 5), "statistics-differ", "as in the rows"),
    "6 names go with the other info": (V21, json_of["info"], edit_json, set_key("features", CAMERA, "names", value=["height", "width", "channel"]), "names-pairing", "channel"),
    "7 an action is not finite": (V30, DATA30, edit_parquet, nan_action, "not-finite", "row 3, action[2]"),
    "7 a file that nobody names": (V30, json_of["info"], None, lambda path: path.with_name("x.bin").write_bytes(b""), "unnamed-file", "x.bin"),
    "a vector has another length": (V21, DATA21, edit_parquet, shorter_actions, "vector-length", "vectors of 5"),
    "times are text": (V21, DATA21, edit_parquet, as_text, "column-type", "string"),
    "a column is missing": (V21, DATA21, edit_parquet, without("action"), "missing-column", "action"),
    "the picture has another size": (V30, json_of["info"], edit_json, set_key(*SIZE, value=[48, 32, 3]), "picture-size", "32x48"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(copy_of, name):
    dataset, file, opened, damage, slug, words = DAMAGES[name]
    root = copy_of(dataset)
    assert check(root) == []
    opened(root / file, damage) if opened else damage(root / file)
    found = check(root)
    assert any(finding.code == slug and words in str(finding) for finding in found), "\n".join(map(str, found))


def h5(change):
    def damage(path):
        with h5py.File(path, "r+") as file:
            change(file)

    return damage


def replace(group, key, values):
    del group[key]
    group[key] = values


DAMAGES_HDF5 = {
    "1 an image array is short": (h5(lambda f: replace(f, "data/demo_0/obs/ego_view", np.zeros((8, 4, 4, 3), np.uint8))), "row-count"),
    "1 num_samples": (h5(lambda f: f["data/demo_1"].attrs.__setitem__("num_samples", 12)), "hdf5-total"),
    "4 total": (h5(lambda f: f["data"].attrs.__setitem__("total", 1)), "hdf5-total"),
    "4 a mask names nobody": (h5(lambda f: replace(f, "mask/train", np.array([b"demo_99"]))), "mask"),
    "4 cut off": (truncate, "unreadable-file"),
    "5 actions beyond 1": (h5(lambda f: replace(f, "data/demo_0/actions", np.full((9, 5), 2.0))), "action-range"),
    "5 another number of actions": (h5(lambda f: replace(f, "data/demo_0/actions", np.zeros((9, 4)))), "vector-length"),
    "5 env_args": (h5(lambda f: f["data"].attrs.__setitem__("env_args", "{")), "hdf5-attribute"),
    "7 not finite": (h5(lambda f: replace(f, "data/demo_0/obs/state", np.full((9, 4), np.nan))), "not-finite"),
    "no dones": (h5(lambda f: f["data/demo_0"].__delitem__("dones")), "missing-column"),
    "pictures are floats": (h5(lambda f: replace(f, "data/demo_0/obs/ego_view", np.zeros((9, 4, 4, 3)))), "picture-type"),
    "another file's data": (h5(lambda f: f["data/demo_0"].__setitem__("obs/x", h5py.ExternalLink("../x.h5", "/"))), "path-outside"),
    "a circle of groups": (h5(lambda f: f["data/demo_0/obs"].__setitem__("x", f["data"])), "row-count"),
    "a demo's name": (h5(lambda f: f["data"].move("demo_0", "first")), "demo-name"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES_HDF5)
def test_damage_of_hdf5_is_found_and_named(copy_of, name):
    root = copy_of(ROBOMIMIC)
    assert check(root) == [] and check(root / "data.hdf5") == []
    damage, slug = DAMAGES_HDF5[name]
    damage(root / "data.hdf5")
    found = check(root)
    assert any(finding.code == slug and finding.severity == "error" for finding in found), "\n".join(map(str, found))


@pytest.mark.parametrize("dataset", [V30, V21])
def test_garbage_in_metadata_gives_findings_not_tracebacks(copy_of, dataset):
    root = copy_of(dataset)
    for file in sorted((root / "meta").glob("*.json*")):
        good = file.read_text()
        for text in ("", "null", '{"action": 3}', "\x00", "[" * 100_000, good[: len(good) // 2]):
            file.write_text(text)
            assert any(finding.severity == "error" for finding in check(root)), (file.name, text[:20])
        file.write_text(good)
    info = root / "meta/info.json"
    good = info.read_text()
    for key in json.loads(good):
        for value in (None, [], -1, "x", 1e300, {"x": {"dtype": "video", "shape": []}}):
            edit_json(info, set_key(key, value=value))
            check(root)
            info.write_text(good)
    assert check(root) == []


def test_garbage_in_lines_gives_findings_not_tracebacks(copy_of):
    root = copy_of(V21)
    for file in ("episodes.jsonl", "episodes_stats.jsonl", "tasks.jsonl", "modality.json", "stats.json"):
        path = root / "meta" / file
        good = path.read_text()
        row = json.loads(good.splitlines()[0]) if file.endswith("l") else json.loads(good)
        for key in row:
            for value in (None, [[1]], "x", 1.5, {"action": {"mean": "x"}}):
                path.write_text(json.dumps({**row, key: value}))
                assert check(root), (file, key, value)
        path.write_text(good)


def test_garbage_in_v30_tables_gives_findings_not_tracebacks(copy_of):
    root = copy_of(V30)
    for file in ("meta/tasks.parquet", EPISODES30, DATA30):
        path = root / file
        good, table = path.read_bytes(), pq.read_table(path)
        for name in (name for name in table.column_names if not name.startswith(("stats/", "meta/"))):
            place, rows = table.column_names.index(name), table.num_rows
            for values in (pa.nulls(rows), pa.array(["x"] * rows), pa.array([[1.5]] * rows), None):
                changed = table.remove_column(place)
                pq.write_table(changed if values is None else changed.append_column(name, values), path)
                assert any(finding.severity == "error" for finding in check(root)), (file, name, values)
        path.write_bytes(good)


def test_a_dataset_that_lerobot_writes_has_no_error(tmp_path):
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        CAMERA: {"dtype": "video", "shape": (64, 64, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (4,), "names": list("abcd")},
        "action": {"dtype": "float32", "shape": (1,), "names": ["x"]},
    }
    root, random = tmp_path / "theirs", np.random.default_rng(0)
    encoder = RGBEncoderConfig(vcodec="h264", crf=18, preset="veryfast")  # AV1's start alone takes seconds
    dataset = LeRobotDataset.create("dreamgen/test", 16, features, root=root, robot_type="arm", rgb_encoder=encoder)
    for episode in range(2):
        for frame in range(5 + episode):
            dataset.add_frame({
                CAMERA: np.full((64, 64, 3), 20 * frame, np.uint8),
                "observation.state": random.normal(size=4).astype(np.float32),
                "action": random.normal(size=1).astype(np.float32),
                "task": f"task {episode}",
            })  # fmt: skip
        dataset.save_episode()
    dataset.finalize()
    assert check(root) == []


def test_real_demonstrations(real_demos):
    found = {(finding.severity, finding.code): str(finding) for finding in reversed(check(real_demos))}
    texts = "\n".join(str(finding) for finding in check(real_demos))
    assert "observation.images.egoview" in found["error", "camera-without-files"]
    assert "0.050000" in found["error", "timestamp"]
    assert "0:100" in found["error", "wrong-split"]
    assert "total_videos: 2" in texts and "total_chunks: 0" in texts and "'valid'" in texts
    assert ("warning", "float64") in found
    assert {code for severity, code in found if severity == "error"} == {
        "camera-without-files",
        "timestamp",
        "wrong-split",
    }


def test_stage_counts_and_lists(copy_of):
    root = copy_of(V30)
    good = check_stage(root)
    assert good.figures == {"num_errors": 0, "num_warnings": 0, "decoded": True, "findings": []} and good.notes == []
    edit_json(root / "meta/info.json", set_key("total_frames", value=1))
    bad = check_stage(root)
    assert bad.figures["num_errors"] == 1
    finding = json.loads(json.dumps(bad.figures["findings"]))[0]
    assert finding["file"] == "meta/info.json" and finding["value"] == "1" and finding["expected"].startswith("49")
    assert finding["consequence"] and "total_frames" in bad.notes[0]


def test_what_is_no_dataset_is_a_users_error(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError):
            check(path)
