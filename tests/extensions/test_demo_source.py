"""The demonstration source of docs/extending/demo_source.md, installed as a package and used by commands."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from dreamgen.data.video import read_video, write_video
from dreamgen.extensions.demo_source import DEMO_SOURCES, DemoSource, recognize
from tests.fixtures import demos

NUM_FRAMES = 24
SHAPE = ["--video.height=48", "--video.width=64", "--video.num_frames=9", "--video.fps=16"]


def write_jsonl(folder):
    """Write three episodes of the documented layout: two good ones and one that names a file outside."""
    header = {"robot_type": "arm", "state_names": ["x", "y"], "action_names": ["x", "y"]}
    lines = [header]
    folder.mkdir()
    for number in range(2):
        episode = demos.make_episode(number, NUM_FRAMES, 16, 48, 64)
        write_video(folder / f"{number}.mp4", episode.video_THWC, 16)
        places_TD = np.arange(2.0 * NUM_FRAMES).reshape(NUM_FRAMES, 2) + number
        np.savez(folder / f"{number}.npz", state=places_TD, action=places_TD + 1)
        lines.append({"video": f"{number}.mp4", "rows": f"{number}.npz", "task": f"push block {number}"})
    lines.append({"video": "../outside.mp4", "rows": "0.npz", "task": "steal"})
    (folder / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder / "episodes.jsonl"


def test_the_documented_source_works_through_the_command(installed, result_of, tmp_path):
    path = write_jsonl(tmp_path / "demos")
    dreamgen = installed("extending/demo_source.md")
    words = ["--demos", path, "--out", tmp_path / "run", *SHAPE, "--json"]
    counted = result_of(dreamgen("prepare", "--dry_run", *words))["figures"]
    assert (counted["used"], counted["refused"]) == (2, 1)
    result = result_of(dreamgen("prepare", *words))
    assert result["figures"]["used"] == 2
    assert any("episodes.jsonl line 4" in note and "outside" in note for note in result["notes"])
    train = tmp_path / "run/train"
    features = json.loads((train / "features.json").read_text())
    assert features["robot_type"] == "arm" and features["action_names"] == ["x", "y"]
    assert features["source"] == {"path": str(path), "layout": "JSON Lines of episodes"}
    rows = pq.read_table(train / "trajectories/episode_000001.parquet")
    np.testing.assert_array_equal(rows["action"].to_pylist()[3], [6 + 1 + 1, 7 + 1 + 1])
    assert len(read_video(train / "videos/episode_000000.mp4")) == NUM_FRAMES
    assert (train / "metas/episode_000001.txt").read_text().endswith("push block 1")
    refused = dreamgen("prepare", *words[:3], tmp_path / "other", "--prepare.cameras=[a, b]", status=2)
    assert "prepare.cameras needs a dataset with several video features" in refused.stderr


def test_a_file_that_no_source_recognizes_is_refused_and_the_layouts_are_listed(installed, tmp_path):
    (tmp_path / "demos").mkdir()
    (tmp_path / "demos/notes.md").write_text("hello")
    dreamgen = installed("extending/demo_source.md")
    stderr = dreamgen("prepare", "--demos", tmp_path / "demos", "--out", tmp_path / "run", status=2).stderr
    for layout in ("a file episodes.jsonl", "meta/info.json", "GR1", "NAME.mp4 + NAME.txt"):
        assert layout in stderr
    lone = tmp_path / "demos/notes.md"
    assert "not a folder" in dreamgen("prepare", "--demos", lone, "--out", tmp_path / "run", status=2).stderr


@pytest.mark.parametrize(("write", "name"), [
    (demos.write_lerobot_v21, "lerobot"), (demos.write_gr1, "gr1"), (demos.write_plain, "plain"),
])  # fmt: skip
def test_each_built_in_layout_is_recognized(write, name, tmp_path):
    write(tmp_path / "demos", num_episodes=1)
    assert recognize(tmp_path / "demos").name == name


def test_a_source_of_another_package_goes_before_a_general_built_in(tmp_path):
    demos.write_plain(tmp_path / "demos", num_episodes=1)
    (tmp_path / "demos/session.yaml").write_text("{}")
    own = DemoSource(name="session", summary="a session", open=None,
                     recognizes=lambda path: (path / "session.yaml").is_file())  # fmt: skip
    DEMO_SOURCES.register("session", own)
    try:
        assert recognize(tmp_path / "demos") is own
        (tmp_path / "demos/session.yaml").unlink()
        assert recognize(tmp_path / "demos").name == "plain"
    finally:
        DEMO_SOURCES.unregister("session")
