"""The LeRobot reader: it reads what can be read and reports the rest; `read_meta` raises what leaves a gap."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dreamgen.data.lerobot.lines import find_lines
from dreamgen.data.lerobot.metadata import read_meta, read_metadata
from dreamgen.data.lerobot.schema import EPISODES_V2, split_ends
from dreamgen.errors import UserError
from export.check.findings import Findings
from tests.fixtures import demos


@pytest.fixture
def root(tmp_path):
    return demos.write_lerobot_v21(tmp_path / "demos", num_episodes=3)


def change_lines(root, edit):
    path = root / EPISODES_V2
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_info(root, **values):
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def codes(findings):
    return [finding.code for finding in findings.all()]


def test_both_ways_of_reading_give_the_same(root):
    findings = Findings()
    tolerant, strict = read_metadata(root, findings), read_meta(root)
    assert findings.all() == [] and tolerant.info == strict.info and list(tolerant.episodes) == list(strict.episodes)


def test_a_malformed_episode_is_left_out_and_raised_where_all_are_needed(root):
    change_lines(root, lambda rows: rows[1].update(length="many"))
    findings = Findings()
    meta = read_metadata(root, findings)
    assert meta.episodes.index_N.tolist() == [0, 2] and codes(findings) == ["episode-entry", "episode-gap"]
    with pytest.raises(UserError, match=r"episodes.jsonl: line 2 is malformed") as error:
        read_meta(root)
    assert "many" in error.value.actual


@pytest.mark.parametrize("edit", [lambda rows: rows.pop(1), lambda rows: rows.reverse()])
def test_gaps_and_order_are_no_reason_to_refuse_a_dataset(root, edit):
    change_lines(root, edit)
    index_N = read_meta(root).episodes.index_N
    assert np.all(np.diff(index_N) > 0) and index_N[0] == 0


def test_several_problems_are_raised_together(root):
    change_info(root, fps="fast", chunks_size=0)
    with pytest.raises(UserError, match="2 problems") as error:
        read_meta(root)
    assert "fps is not a frame rate" in str(error.value) and "chunks_size" in str(error.value)


def test_an_absent_template_is_the_layouts_own_and_an_empty_one_is_reported(root):
    info = json.loads((root / "meta/info.json").read_text())
    del info["video_path"]
    (root / "meta/info.json").write_text(json.dumps(info))
    assert read_meta(root).episodes[0].videos[demos.CAMERA].is_file()
    change_info(root, video_path=None)
    findings = Findings()
    assert read_metadata(root, findings) is None and codes(findings) == ["path-template"]


def test_a_slice_of_episodes_keeps_their_files(root):
    episodes = read_meta(root).episodes
    assert list(episodes[1:]) == list(episodes)[1:] and list(episodes[np.array([2, 0])]) == [episodes[2], episodes[0]]
    assert [episodes.file_name(place) for place in range(3)] == list(episodes.file_names())
    assert episodes.existing_videos([demos.CAMERA, *episodes.cameras]) == [demos.CAMERA, *episodes.cameras]


def test_lines_are_found_wherever_they_are(root):
    change_lines(root, lambda rows: rows.reverse())
    findings = Findings()
    lines = find_lines(root, EPISODES_V2, np.array([0, 1, 7]), findings)
    assert [row.get("episode_index") for row in lines.rows()] == [0, 1, None]
    assert [row.get("episode_index") for row in lines[1:].rows()] == [1, None]
    assert codes(findings) == ["episode-entry"]


@pytest.mark.parametrize("span, ends", [("0:5", (0, 5)), ("0:", None), ("a:b", None), ("1", None), (3, None)])
def test_split_ends(span, ends):
    assert split_ends(span) == ends
