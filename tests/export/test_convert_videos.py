"""Conversion keeps what videos hold: depth bit for bit, colors and tags, and each picture at its row."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pandas as pd
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.feature_utils import dataset_to_policy_features

from dreamgen.config.settings import ConvertSettings
from dreamgen.data.display import ColorTags
from dreamgen.data.video import probe, read_video, write_video
from dreamgen.errors import UserError
from dreamgen.run.files import read_json, write_json
from export.check import check
from export.convert import convert_dataset
from tests.fixtures.runs import CAMERA
from tests.fixtures.videos import MATRICES, encode, number_in, picture, show_as, stored_for, yuv_frame

LENGTHS = (9, 13, 5, 9, 13)
FIRST = (0, 9, 22, 27, 36, 49)
BT709 = (0.2126, 0.0722)


def convert(source, target, **settings):
    return convert_dataset(source, target, ConvertSettings(**{"num_workers": 1, **settings}))


def video_of(root, episode=None):
    name = f"{CAMERA}/chunk-000/file-000" if episode is None else f"chunk-000/{CAMERA}/episode_{episode:06d}"
    return root / f"videos/{name}.mp4"


def change_info(root, **values):
    info = read_json(root / "meta/info.json")
    feature = values.pop("feature", {})
    info["features"][CAMERA] = {**info["features"][CAMERA], **feature}
    write_json(root / "meta/info.json", info | values)


def info_of(root):
    feature = read_json(root / "meta/info.json")["features"][CAMERA]
    return feature["shape"], {
        name: feature["info"][f"video.{name}"] for name in ("codec", "pix_fmt", "height", "width")
    }


def planes_of(path):
    """Decode to the stored values: one array a frame, of its first plane."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


DEPTHS = [("libx265", "gray12le", 4095, {"x265-params": "lossless=1:log-level=none:bframes=0:keyint=250"}),
          ("libaom-av1", "gray10le", 1023, {"aom-params": "lossless=1", "crf": "0", "cpu-used": "8"}),
          ("png", "gray16be", 65535, {})]  # fmt: skip


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "largest", "options"), DEPTHS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_depth_stays_exact(codec, pix_fmt, largest, options, copy_of, tmp_path):
    root, random = copy_of("lerobot-v3.0"), np.random.default_rng(0)
    depth_THW = random.integers(0, largest + 1, (49, 32, 48)).astype(np.uint16)
    frames = [av.VideoFrame.from_ndarray(depth_HW, format=pix_fmt) for depth_HW in depth_THW]
    # Episodes do not begin with key frames, so they have to be encoded again.
    encode(video_of(root), frames, codec=codec, pix_fmt=pix_fmt, g="250", **options)
    if codec == "png":  # whose frames are all key frames: here it is a hole that asks for it
        encode(video_of(root), frames[:5] + frames[6:], [k for k in range(49) if k != 5], codec=codec, pix_fmt=pix_fmt)
    name = probe(video_of(root)).codec
    change_info(root, feature={"info": {"video.codec": name, "video.pix_fmt": pix_fmt, "video.height": 32,
                                        "video.width": 48, "video.crf": 30, "is_depth_map": True}})  # fmt: skip
    convert(root, tmp_path / "v21", reencode=True)
    for episode, (first, end) in enumerate(pairwise(FIRST)):
        wanted_THW = depth_THW[first:end].copy()
        if codec == "png" and episode == 0:
            wanted_THW[5] = depth_THW[4]
        found = planes_of(video_of(tmp_path / "v21", episode))
        np.testing.assert_array_equal(np.stack(found), wanted_THW, err_msg=f"episode {episode}")
    shape, info = info_of(tmp_path / "v21")
    assert shape == [32, 48, 3] and info == {"codec": name, "pix_fmt": pix_fmt, "height": 32, "width": 48}
    assert "video.crf" not in read_json(tmp_path / "v21/meta/info.json")["features"][CAMERA]["info"]


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "color"),
    [("yuvj420p", "libx264", ColorTags(1, 1, 1, 2)), ("yuv420p10le", "libx265", ColorTags(9, 9, 14, 1)),
     ("yuv420p", "libsvtav1", ColorTags(6, 6, 6, 1))],
)  # fmt: skip
def test_colors_keep_their_values_and_tags(pix_fmt, codec, color, copy_of, tmp_path):
    root = copy_of("lerobot-v3.0")
    weights = {1: BT709, 9: (0.2627, 0.0593), 6: (0.299, 0.114)}[color.matrix]
    options = {"svtav1-params": "lp=1"} if codec == "libsvtav1" else {}
    frames = [yuv_frame(picture(k, 64, 96), *weights, color.color_range == 2, pix_fmt) for k in range(49)]
    encode(video_of(root), frames, codec=codec, pix_fmt=pix_fmt, color=color, g="250",
           pixel_aspect=Fraction(4, 3), **options)  # fmt: skip
    before = probe(video_of(root))
    change_info(root, feature={"shape": [64, 96, 3]})
    convert(root, tmp_path / "v21", reencode=True)
    for episode in (1, 4):
        after, video_THWC = probe(video_of(tmp_path / "v21", episode)), read_video(video_of(tmp_path / "v21", episode))
        assert (after.codec, after.pix_fmt, after.display) == (before.codec, before.pix_fmt, before.display)
        assert after.display.color == color and (after.height, after.width) == (64, 128)
        shown_THWC = read_video(video_of(root))[FIRST[episode] : FIRST[episode + 1]]
        assert np.abs(video_THWC.astype(int) - shown_THWC).mean() < 4
        assert [number_in(frame_HWC) for frame_HWC in video_THWC] == list(range(FIRST[episode], FIRST[episode + 1]))


def test_a_turned_video_is_copied_with_its_matrix_and_encoded_again_upright(copy_of, tmp_path):
    turn = MATRICES[90]
    root = copy_of("lerobot-v3.0")
    frames = [stored_for(picture(k, 32, 48), turn) for k in range(49)]
    show_as(encode(video_of(root), frames, g="1"), turn)
    convert(root, tmp_path / "copied")
    show_as(encode(video_of(root), frames, g="250"), turn)
    result = convert(root, tmp_path / "again", reencode=True)
    assert len(result.notes) == 5, "the first, which could be copied, must be like the others"
    for name, orientation in (("copied", True), ("again", False)):
        path = video_of(tmp_path / name, 3)
        assert probe(path).display.orientation.transpose == orientation
        assert [number_in(frame_HWC) for frame_HWC in read_video(path)] == list(range(27, 36))
    assert info_of(tmp_path / "again")[0] == [32, 48, 3]
    convert(tmp_path / "copied", tmp_path / "back")
    assert [number_in(f) for f in read_video(video_of(tmp_path / "back"))] == list(range(49))


def test_turned_and_upright_videos_do_not_share_a_file(copy_of, tmp_path):
    root, turn = copy_of("lerobot-v2.1"), MATRICES[180]
    for episode, (first, end) in enumerate(pairwise(FIRST)):
        frames = [picture(k, 32, 48) for k in range(first, end)]
        frames = [stored_for(frame_HWC, turn) for frame_HWC in frames] if episode == 2 else frames
        encode(video_of(root, episode), frames, g="2")
    show_as(video_of(root, 2), turn)
    convert(root, tmp_path / "v30")
    files = sorted((tmp_path / "v30/videos").rglob("*.mp4"))
    assert [[number_in(f) for f in read_video(path)] for path in files] == [
        list(range(22)), list(range(22, 27)), list(range(27, 49))
    ]  # fmt: skip


def test_a_hole_is_named_and_moves_no_other_episode(copy_of, tmp_path):
    root = copy_of("lerobot-v3.0")
    times = [k for k in range(49) if k not in (5, 6)]
    encode(video_of(root), [picture(k, 32, 48) for k in times], times, g="1")
    with pytest.raises(UserError, match=r"1 videos of .* cannot be copied") as refused:
        convert(root, tmp_path / "v21")
    assert "episode 0: its video has no frame for row 5, at 0.3125 s" in str(refused.value)
    assert not (tmp_path / "v21").exists()
    result = convert(root, tmp_path / "v21", reencode=True)
    assert [note for note in result.notes if "encoded again" in note] == [
        f"episode 0, {CAMERA}: encoded again, because its video has no frame for row 5, at 0.3125 s"
    ]
    shown = [[number_in(f) for f in read_video(video_of(tmp_path / "v21", episode))] for episode in range(5)]
    assert shown[0] == [0, 1, 2, 3, 4, 4, 7, 7, 8]
    assert shown[1:] == [list(range(*ends)) for ends in pairwise(FIRST[1:])]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")], ids=str)
def test_no_number_of_an_episode_is_made_up(value, copy_of, tmp_path):
    root = copy_of("lerobot-v3.0")
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    good = pd.read_parquet(path)
    # Where the row itself lies, in meta/episodes, is not read.
    columns = [c for c in good.columns if c != "tasks" and not c.startswith(("stats/", "meta/"))]
    assert len(columns) >= 10
    for column in columns:
        is_time = column.endswith("timestamp")
        kind = float if value is not None else "Float64" if is_time else "Int64"
        rows = good.assign(**{column: good[column].astype(kind)})
        rows.loc[2, column] = value
        rows.to_parquet(path)
        assert any(found.severity == "error" for found in check(root, fast=True)), column
        with pytest.raises(UserError):
            convert(root, tmp_path / "v21", reencode=True)
        assert not (tmp_path / "v21").exists(), column


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")], ids=str)
def test_a_place_that_is_not_known_never_becomes_the_beginning(value, copy_of, tmp_path):
    root = copy_of("lerobot-v3.0")
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pd.read_parquet(path)
    column = f"videos/{CAMERA}/from_timestamp"
    for episodes in ([2], [0, 1, 2, 3, 4]):
        rows[column] = rows[column].astype(object)
        rows.loc[episodes, column] = value
        rows.to_parquet(path)
        with pytest.raises(UserError, match=rf"where the video of {CAMERA} is, is not known for episodes 2|0, 1"):
            convert(root, tmp_path / "v21", reencode=True)
        assert not (tmp_path / "v21").exists()


def test_rates_that_are_no_whole_numbers_reach_lerobot(copy_of, tmp_path):
    root, fps = copy_of("lerobot-v2.1"), Fraction(2997, 100)
    for episode, length in enumerate(LENGTHS):
        write_video(video_of(root, episode), [picture(10 * episode + k, 32, 48) for k in range(length)], fps)
        table = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        rows = pd.read_parquet(table)
        rows["timestamp"] = (np.arange(length) / 29.97).astype(np.float32)
        rows.to_parquet(table)
    change_info(root, fps=29.97, feature={"info": {"video.fps": 29.97}})
    convert(root, tmp_path / "v30")
    assert read_json(tmp_path / "v30/meta/info.json")["fps"] == 29.97
    dataset = LeRobotDataset("dreamgen/test", root=tmp_path / "v30")
    for index, number in ((0, 0), (8, 8), (9, 10), (21, 22), (48, 52)):
        frame_HWC = (dataset[index][CAMERA].numpy().transpose(1, 2, 0) * 255).astype(np.uint8)
        assert number_in(frame_HWC) == number
    assert [f.code for f in check(tmp_path / "v30") if f.severity == "error" and f.code != "statistics-differ"] == []


@pytest.mark.parametrize(
    ("shape", "names", "wanted"),
    [([32, 48, 3], None, ["height", "width", "channels"]), ([32, 48, 3], ["height", "width", "rgb"], None),
     ([3, 32, 48], None, ["channels", "height", "width"]),
     ([32, 48, 3], ["height", "width", "channel"], ["height", "width", "channel"])],
)  # fmt: skip
def test_lerobot_can_build_a_policy_of_what_convert_writes(shape, names, wanted, copy_of, tmp_path):
    root = copy_of("lerobot-v2.1")
    change_info(root, feature={"shape": shape, "names": names})
    convert(root, tmp_path / "v30")
    features = read_json(tmp_path / "v30/meta/info.json")["features"]
    assert features[CAMERA]["names"] == (wanted or ["height", "width", "channels"])
    assert tuple(dataset_to_policy_features(features)[CAMERA].shape) == (3, 32, 48)
    assert [str(finding) for finding in check(tmp_path / "v30", fast=True) if "names" in finding.code] == []


def test_malformed_features_and_rates_are_named(copy_of, tmp_path):
    root = copy_of("lerobot-v2.1")
    info = read_json(root / "meta/info.json")
    info["features"]["action"]["shape"] = 3
    write_json(root / "meta/info.json", info)
    with pytest.raises(UserError, match="the feature .action. is malformed"):
        convert(root, tmp_path / "v30")
    write_json(root / "meta/info.json", info | {"fps": "16"})
    with pytest.raises(UserError) as refused:
        convert(root, tmp_path / "v30")
    assert "the text '16'" in str(refused.value)


def test_a_number_that_is_text_is_shown_as_text(copy_of, tmp_path):
    root = copy_of("lerobot-v2.1")
    change_info(root, total_episodes="5", feature={"info": {"video.fps": "16"}})
    told = {(finding.code, finding.value) for finding in check(root, fast=True)}
    assert {("wrong-total", "the text '5'"), ("fps-differs", "the text '16'")} <= told
    (note,) = convert(root, tmp_path / "v30").notes
    assert note == "info.json has total_episodes the text '5'; counted and written: 5"
    change_info(root, chunks_size="1000")
    with pytest.raises(UserError, match="chunks_size cannot be used to name files\n  found:   the text '1000'"):
        convert(root, tmp_path / "again")


@pytest.mark.parametrize("shape", [[32, 48], [1536], [32, 48, 3, 1]])
def test_a_picture_without_three_axes_is_a_finding_and_is_not_converted(shape, copy_of, tmp_path):
    """LeRobot refuses such a feature; check was silent, and convert wrote it."""
    root = copy_of("lerobot-v2.1")
    change_info(root, feature={"shape": shape, "names": None})
    assert any(f.code == "feature" and f"shape {shape}" in f.value for f in check(root, fast=True))
    with pytest.raises(UserError, match="has a shape that lerobot cannot read"):
        convert(root, tmp_path / "v30")


@pytest.mark.parametrize("tasks", ["push", None, [], [3]], ids=str)
def test_tasks_that_an_episode_does_not_list_are_those_of_its_rows(tasks, copy_of, tmp_path):
    root = copy_of("lerobot-v2.1")
    path = root / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    wanted = rows[1]["tasks"]
    rows[1]["tasks"] = tasks
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = convert(root, tmp_path / "v30")
    assert "episode 1: it lists no tasks: those of its rows were written" in result.notes
    (episodes,) = (tmp_path / "v30/meta/episodes").rglob("*.parquet")
    assert list(pd.read_parquet(episodes)["tasks"][1]) == wanted and wanted
    assert [f.code for f in check(tmp_path / "v30", fast=True) if f.severity == "error"] == []
