"""Conversion between LeRobot versions: nothing is lost there and back, and lerobot's own converter agrees."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset as lerobots_convert

from dreamgen.config.settings import ConvertSettings
from dreamgen.data.video import read_video, write_video
from dreamgen.errors import UserError
from dreamgen.run.files import read_json, write_json
from export.check import check
from export.convert import convert_dataset
from tests.fixtures.runs import CAMERA


def convert(source, target, **settings):
    return convert_dataset(source, target, ConvertSettings(**{"num_workers": 1, **settings}))


def hashes(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*")) if path.is_file()
    }  # fmt: skip


def json_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def assert_same_v21(one, two):
    """Compare tables, frames and metadata of two v2.1 datasets."""
    names = sorted(path.relative_to(one).as_posix() for path in one.rglob("*.parquet"))
    assert names and names == sorted(path.relative_to(two).as_posix() for path in two.rglob("*.parquet"))
    for name in names:
        tables = [pq.ParquetFile(root / name).read() for root in (one, two)]
        assert tables[0].select(sorted(tables[0].column_names)).equals(tables[1].select(sorted(tables[1].column_names)))
    videos = sorted(path.relative_to(one).as_posix() for path in one.rglob("*.mp4"))
    for name in videos:
        np.testing.assert_array_equal(read_video(one / name), read_video(two / name))
    for name in ("episodes.jsonl", "tasks.jsonl"):
        assert json_lines(one / "meta" / name) == json_lines(two / "meta" / name)
    infos = [read_json(root / "meta/info.json") for root in (one, two)]
    assert infos[0] == infos[1]
    for name in ("stats.json", "modality.json"):
        if (one / "meta" / name).exists():
            assert_close(read_json(one / "meta" / name), read_json(two / "meta" / name))
    for a, b in zip(*(json_lines(root / "meta/episodes_stats.jsonl") for root in (one, two)), strict=True):
        assert_close(a, b)


def assert_close(one, two):
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one:
            assert_close(one[name], two[name])
    elif isinstance(one, str | None):
        assert one == two
    else:
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-9)


def assert_same_reading(one, two):
    """Compare two v3.0 datasets item by item, as lerobot's reader gives them."""
    datasets = [LeRobotDataset("dreamgen/test", root=r, video_backend="pyav", return_uint8=True) for r in (one, two)]
    assert len(datasets[0]) == len(datasets[1])
    for index in range(len(datasets[0])):
        items = [dataset[index] for dataset in datasets]
        assert items[0].keys() >= items[1].keys()
        for name in items[1]:
            np.testing.assert_array_equal(np.array(items[0][name]), np.array(items[1][name]), err_msg=name)


PLACES = ["episode_index", "length", "dataset_from_index", "dataset_to_index", f"videos/{CAMERA}/from_timestamp",
          f"videos/{CAMERA}/to_timestamp"]  # fmt: skip


def episodes_of(root):
    rows = pd.concat([pd.read_parquet(path) for path in sorted(root.glob("meta/episodes/*/*.parquet"))])
    return rows.sort_values("episode_index").reset_index(drop=True)


def test_there_and_back_changes_nothing(exported, tmp_path):
    source = exported.datasets / "lerobot-v2.1"
    before = hashes(source)
    there = convert(source, tmp_path / "v30")
    back = convert(tmp_path / "v30", tmp_path / "v21")
    assert (there.metrics["from"], there.metrics["to"], back.metrics["to"]) == ("v2.1", "v3.0", "v2.1")
    assert_same_v21(source, tmp_path / "v21")
    assert hashes(source) == before, "the source is only read"
    assert not there.notes and not back.notes
    assert check(tmp_path / "v21") == []


def test_it_equals_our_own_v30_and_lerobots_converter(exported, tmp_path):
    ours, source = exported.datasets / "lerobot-v3.0", exported.datasets / "lerobot-v2.1"
    convert(source, tmp_path / "converted")
    shutil.copytree(source, tmp_path / "theirs")
    lerobots_convert("dreamgen/test", root=tmp_path / "theirs", push_to_hub=False)
    for other in (ours, tmp_path / "theirs"):
        assert_same_reading(tmp_path / "converted", other)
        mine, rows = episodes_of(tmp_path / "converted"), episodes_of(other)
        np.testing.assert_allclose(mine[PLACES], rows[PLACES], atol=1e-9)
        assert mine["tasks"].map(list).tolist() == rows["tasks"].map(list).tolist()
        assert pd.read_parquet(tmp_path / "converted/meta/tasks.parquet").equals(
            pd.read_parquet(other / "meta/tasks.parquet")
        )
        stats = [read_json(root / "meta/stats.json") for root in (tmp_path / "converted", other)]
        for name in ("action", "observation.state", "timestamp"):
            for stat in ("min", "max", "mean", "std"):
                np.testing.assert_allclose(stats[0][name][stat], stats[1][name][stat], rtol=1e-5, atol=1e-6)
    # Frame for frame the same packets, so the same file.
    video = f"videos/{CAMERA}/chunk-000/file-000.mp4"
    assert (tmp_path / "converted" / video).read_bytes() == (ours / video).read_bytes()


def lerobots_own(root, with_image=False):
    """Let lerobot write two cameras, an extra vector, a flag and, if wanted, images within the table."""
    shapes = {"observation.images.left": (64, 96, 3), "observation.images.right": (64, 64, 3)}
    axes = ["height", "width", "channels"]
    features = {name: {"dtype": "video", "shape": shape, "names": axes} for name, shape in shapes.items()}
    features["action"] = {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]}
    features["observation.state"] = {"dtype": "float32", "shape": (1,), "names": ["x"]}
    features["next.reward"] = {"dtype": "float32", "shape": (1,), "names": None}
    features["next.done"] = {"dtype": "bool", "shape": (1,), "names": None}
    if with_image:
        features["observation.images.wrist"] = {"dtype": "image", "shape": (32, 32, 3), "names": axes}
    dataset = LeRobotDataset.create("dreamgen/test", 10, features, root=root, robot_type="two_eyes", use_videos=True)
    random = np.random.default_rng(0)
    for length in (7, 4, 9):
        for frame in range(length):
            pictures = {n: np.full(feature["shape"], 20 * frame + 10 * k, np.uint8)
                        for k, (n, feature) in enumerate(features.items()) if len(feature["shape"]) == 3}  # fmt: skip
            dataset.add_frame(
                {
                    **pictures, "action": random.normal(size=3).astype(np.float32), "task": f"task of {length}",
                    "observation.state": random.normal(size=1).astype(np.float32),
                    "next.reward": np.array([frame], np.float32), "next.done": np.array([frame == length - 1]),
                }
            )  # fmt: skip
        dataset.save_episode()
    dataset.finalize()
    return root


def test_several_cameras_extra_features_and_images_of_lerobots_own(tmp_path):
    source = lerobots_own(tmp_path / "source", with_image=True)
    (source / "README.md").write_text("a card")
    before = hashes(source)
    result = convert(source, tmp_path / "v21")
    assert result.metrics["cameras"] == 3 and result.metrics["files_carried"] == 1
    info = read_json(tmp_path / "v21/meta/info.json")
    assert (info["total_videos"], info["total_chunks"], info["robot_type"]) == (6, 1, "two_eyes")
    rows = pd.read_parquet(tmp_path / "v21/data/chunk-000/episode_000002.parquet")
    assert rows["next.reward"].tolist() == list(range(9)) and rows["next.done"].tolist() == [False] * 8 + [True]
    assert len(read_video(tmp_path / "v21/videos/chunk-000/observation.images.right/episode_000001.mp4")) == 4
    convert(tmp_path / "v21", tmp_path / "v30")
    assert_same_reading(tmp_path / "v30", source)
    assert hashes(source) == before and (tmp_path / "v30/README.md").read_text() == "a card"


def test_episodes_that_begin_between_key_frames_are_refused_or_encoded_again(copy_of, tmp_path):
    root = copy_of("lerobot-v3.0")
    video = root / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    # Most of the frame does not change, so the encoder sees no scene change, where it would put a key frame.
    frames_THWC = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), np.uint8), 49, axis=0)
    for t in range(49):
        frames_THWC[t, :8, :8] = 37 * t % 256
    write_video(video, frames_THWC, 16, crf=1, gop=250)
    shown_THWC = read_video(video)
    with pytest.raises(UserError, match="4 videos of .* cannot be copied") as refused:
        convert(root, tmp_path / "v21")
    assert "episode 1: frame 9 is not a key frame" in str(refused.value) and "--reencode" in str(refused.value)
    assert not (tmp_path / "v21").exists()
    result = convert(root, tmp_path / "v21", reencode=True)
    assert [note.split(",")[0] for note in result.notes] == [f"episode {i}" for i in (1, 2, 3, 4)]
    first = 0
    for number, length in enumerate((9, 13, 5, 9, 13)):
        episode_THWC = read_video(tmp_path / f"v21/videos/chunk-000/{CAMERA}/episode_{number:06d}.mp4")
        expected_THWC = shown_THWC[first : first + length]
        assert episode_THWC.shape == expected_THWC.shape
        if number == 0:
            np.testing.assert_array_equal(episode_THWC, expected_THWC)
        corners_T = [video_THWC[:, :8, :8].mean(axis=(1, 2, 3)) for video_THWC in (episode_THWC, expected_THWC)]
        assert np.abs(corners_T[0] - corners_T[1]).max() < 12, "each frame is its own"
        first += length
    assert not [finding for finding in check(tmp_path / "v21") if finding.severity == "error"]
    assert not (tmp_path / "v21/encoded-again").exists()


def as_v20(root):
    """Turn a v2.1 dataset into v2.0 with quirks that are found in the wild."""
    info = read_json(root / "meta/info.json")
    info |= {"codebase_version": "v2.0", "splits": {"train": "0:100"}, "total_videos": 2, "fps": 16.0}
    info["features"]["observation.images.nowhere"] = dict(info["features"][CAMERA])
    del info["features"]["frame_index"]
    write_json(root / "meta/info.json", info)
    (root / "meta/episodes_stats.jsonl").unlink()
    for path in root.glob("data/*/*.parquet"):
        rows = pd.read_parquet(path).drop(columns="frame_index")
        rows["timestamp"] += 1 / 16
        rows.to_parquet(path)
    return root


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_v20_with_quirks(copy_of, exported, tmp_path, version):
    result = convert(as_v20(copy_of("lerobot-v2.1")), tmp_path / "out", to=version)
    notes = "\n".join(result.notes)
    for quirk in ("observation.images.nowhere, but no episode has a file", "'0:100'", "frame_index is missing",
                  "timestamp is recomputed: the source begins with 0.0625"):  # fmt: skip
        assert quirk in notes
    errors = [str(f) for f in check(tmp_path / "out") if f.severity == "error" and "count" not in f.where]
    assert errors == []
    if version == "v3.0":
        assert_same_reading(tmp_path / "out", exported.datasets / "lerobot-v3.0")


def test_files_that_are_full_and_several_processes(exported, tmp_path, monkeypatch):
    import export.convert
    from dreamgen.data.lerobot.file_layout import FileLimits

    small = FileLimits(data_mb=0.001, video_mb=0.004, chunks_size=2)
    monkeypatch.setattr(export.convert, "FileLimits", lambda **_: small)
    source = exported.datasets / "lerobot-v2.1"
    convert(source, tmp_path / "v30", num_workers=2)
    assert len(list((tmp_path / "v30").rglob("*.mp4"))) > 1 and (tmp_path / "v30/data/chunk-001").exists()
    assert_same_reading(tmp_path / "v30", exported.datasets / "lerobot-v3.0")
    convert(tmp_path / "v30", tmp_path / "v21")
    assert_same_v21(source, tmp_path / "v21")


def test_what_cannot_be_converted_is_an_error(copy_of, exported, tmp_path):
    root = copy_of("lerobot-v2.1")
    with pytest.raises(UserError, match=r"is already LeRobot v2.1"):
        convert(root, tmp_path / "out", to="v2.1")
    with pytest.raises(UserError, match="already exists"):
        convert(root, exported.datasets / "lerobot-v3.0")
    with pytest.raises(UserError, match="outside the source dataset"):
        convert(root, root / "copy")
    with pytest.raises(UserError, match="does not exist"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    video = root / f"videos/chunk-000/{CAMERA}/episode_000002.mp4"
    whole = video.read_bytes()
    write_video(video, read_video(video)[:3], 16)
    with pytest.raises(UserError, match="too few frames"):
        convert(root, tmp_path / "out")
    video.unlink()
    with pytest.raises(UserError, match="no file for episodes 2"):
        convert(root, tmp_path / "out")
    video.write_bytes(whole)
    table = root / "data/chunk-000/episode_000001.parquet"
    pd.read_parquet(table).iloc[:-1].to_parquet(table)
    with pytest.raises(UserError, match="differ from its length"):
        convert(root, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*")), "the target is whole or absent"


def test_the_command(exported, tmp_path, capsys):
    from dreamgen.cli.main import main

    source = str(exported.datasets / "lerobot-v2.1")
    assert main(["convert", source, str(tmp_path / "v30"), "--num_workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["figures"]["to"] == "v3.0"
    assert main(["convert", source]) == 2 and "needs SRC and DST" in capsys.readouterr().err
    assert main(["convert", source, str(tmp_path / "x"), "--quality=3"]) == 2
    assert "does not take --quality=3" in capsys.readouterr().err
    assert main(["convert", source, str(tmp_path / "x"), "--to=v1.0"]) == 2


def test_the_five_real_episodes(real_demos, tmp_path):
    result = convert(real_demos, tmp_path / "v30")
    convert(tmp_path / "v30", tmp_path / "v21")
    assert result.metrics["episodes"] == 5 and any("egoview" in note for note in result.notes)
    name = "videos/chunk-000/observation.images.ego_view/episode_000003.mp4"
    np.testing.assert_array_equal(read_video(tmp_path / "v21" / name), read_video(real_demos / name))
    rows = [pd.read_parquet(root / "data/chunk-000/episode_000003.parquet") for root in (tmp_path / "v21", real_demos)]
    for column in ("action", "observation.state", "annotation.human.validity", "next.done"):
        np.testing.assert_array_equal(np.stack(rows[0][column]), np.stack(rows[1][column]))


def test_damaged_statistics_are_an_error_and_leave_no_target(exported, tmp_path):
    shutil.copytree(exported.datasets / "lerobot-v2.1", tmp_path / "v21")
    lines = tmp_path / "v21/meta/episodes_stats.jsonl"
    whole = lines.read_text().splitlines()
    for damaged, problem in (
        (whole[0][:-5], "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"stats": {}}', "episode_index"),
    ):
        lines.write_text("\n".join([damaged, *whole[1:]]) + "\n")
        with pytest.raises(UserError, match="episodes_stats.jsonl.*" + problem):
            convert(tmp_path / "v21", tmp_path / "v30")
        assert not (tmp_path / "v30").exists()
    # An episode without a line is counted from its frames, as all are in v2.0.
    lines.write_text("\n".join(whole[1:]) + "\n")
    convert(tmp_path / "v21", tmp_path / "v30")
    assert check(tmp_path / "v30") == []
