"""Datasets that were made to harm: to write or read elsewhere, to hang, or to take all memory."""

from __future__ import annotations

import json
import os
import shutil

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamgen.config.settings import ConvertSettings, PrepareSettings
from dreamgen.data.containers import open_video
from dreamgen.data.images import decode_image, read_image
from dreamgen.data.lerobot.metadata import read_meta
from dreamgen.data.video import probe, write_video
from dreamgen.errors import UserError
from dreamgen.prepare.detect import open_source
from dreamgen.run.files import name_problem, path_component
from export.check import check
from export.convert import convert_dataset
from tests.fixtures.damage import DATA21, INFO, VIDEO21
from tests.fixtures.damaging import in_json, json_edit
from tests.fixtures.runs import CAMERA

V21 = "lerobot-v2.1"


def convert(root, target):
    return convert_dataset(root, target, ConvertSettings(num_workers=1))


@pytest.mark.parametrize("name", ["../../../x", "..", "a/b", "a\\b", "", " ", "x\n", "\ud800", "a" * 300, "\x1b[2J"])
def test_a_name_never_leads_elsewhere(copy_of, tmp_path, name):
    assert name_problem(name)
    with pytest.raises(UserError):
        path_component(name, "the camera")
    root = copy_of(V21)
    inside = root / "a/b/c/d/e"  # so that the source's own template leads to a file within it
    inside.mkdir(parents=True)
    json_edit(lambda info: info["features"].update({name: info["features"].pop(CAMERA)}))(root / INFO)
    in_json("video_path", value="a/b/c/d/e/{video_key}/{episode_index}.mp4")(root / INFO)
    before = {path for path in tmp_path.rglob("*") if root not in path.parents}
    with pytest.raises(UserError):
        convert(root, tmp_path / "below/below/converted")
    with pytest.raises(UserError):
        read_meta(root)
    assert {path for path in tmp_path.rglob("*") if root not in path.parents} - before <= {
        tmp_path / "below", tmp_path / "below/below",
    }  # fmt: skip
    assert {finding.code for finding in check(root, fast=True)} & {"feature", "unreadable-file"}


@pytest.mark.parametrize("script", [
    "ffconcat version 1.0\nfile {secret}\n", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
    "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><Period><AdaptationSet><Representation>"
    "<BaseURL>{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>",
])  # fmt: skip
def test_a_video_that_is_a_script_reads_no_other_file(copy_of, tmp_path, script, monkeypatch):
    root = copy_of(V21)
    write_video(tmp_path / "secret.mp4", np.full((9, 32, 48, 3), 200, np.uint8), 16)
    video = root / "videos/chunk-000" / CAMERA / "episode_000000.mp4"
    for secret in ("secret.mp4", os.path.relpath(tmp_path / "secret.mp4", video.parent), tmp_path / "secret.mp4"):
        video.write_text(script.format(secret=secret))
        shutil.copy(tmp_path / "secret.mp4", video.parent / "secret.mp4")
        monkeypatch.chdir(video.parent)
        with pytest.raises(UserError):
            probe(video)
        with pytest.raises((UserError, ValueError, OSError)):
            open_video(video)
        assert any(f.code == "damaged-video" for f in check(root))
        with pytest.raises(UserError):
            convert(root, tmp_path / "converted")


def test_a_path_is_never_a_url_or_a_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a?b.mp4", "a#b.mp4", "concat:a.mp4", "%03d.mp4", "http:x.mp4"):
        write_video(tmp_path / name, np.zeros((9, 32, 48, 3), np.uint8), 16)
        assert probe(name).num_frames == 9


def test_links_out_of_a_dataset_are_followed_only_where_the_hub_makes_them(copy_of, tmp_path):
    root = copy_of(V21)
    for name in ("meta/tasks.jsonl", "meta/info.json", DATA21, VIDEO21):
        (tmp_path / "outside").mkdir(exist_ok=True)
        outside = shutil.move(root / name, tmp_path / "outside" / "x")
        (root / name).symlink_to(outside)
        assert any(finding.code == "path-outside" for finding in check(root, fast=True)), name
        with pytest.raises(UserError, match="lead|link"):
            convert(root, tmp_path / "converted")
        with pytest.raises(UserError, match="lead|link"):
            source = open_source(str(root), PrepareSettings())
            raise UserError("; ".join(clip.refused for clip in source.clips if clip.refused))
        (root / name).unlink()
        shutil.move(outside, root / name)
    cached = tmp_path / "datasets--a--b/snapshots/main"
    blobs = tmp_path / "datasets--a--b/blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in root.rglob("*") if path.is_file())):
        shutil.copy(path, blobs / str(number))
        link = cached / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    assert check(cached) == [] and convert(cached, tmp_path / "converted").metrics["episodes"] == 5


@pytest.mark.parametrize("name", [INFO, "meta/episodes.jsonl", "meta/tasks.jsonl", DATA21, VIDEO21])
def test_a_fifo_is_not_waited_for(copy_of, tmp_path, name):
    root = copy_of(V21)
    (root / name).unlink()
    os.mkfifo(root / name)
    if name != INFO:  # without it, nothing recognizes the folder as a dataset
        assert any(finding.severity == "error" for finding in check(root, fast=True))
    with pytest.raises(UserError):
        convert(root, tmp_path / "converted")
    with pytest.raises(UserError):
        source = open_source(str(root), PrepareSettings())
        raise UserError("; ".join(clip.refused for clip in source.clips if clip.refused))


def test_sizes_are_judged_before_memory_is_asked_for(tmp_path, copy_of):
    png = tmp_path / "large.png"
    header = b"IHDR" + (60_000).to_bytes(4, "big") + (60_000).to_bytes(4, "big") + b"\x08\x02\0\0\0"
    import zlib

    png.write_bytes(b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big"))
    assert decode_image(png.read_bytes()) is None
    with pytest.raises(UserError, match="cannot be read as an image"):
        read_image(png)
    with h5py.File(tmp_path / "episode_0.hdf5", "w") as file:
        file.attrs["sim"] = False
        for name in ("action", "observations/qpos", "observations/qvel"):
            file.create_dataset(name, (10**12, 14), np.float32, chunks=(1024, 14))
        file.create_dataset("observations/images/top", (10**12, 4_000, 4_000, 3), np.uint8, chunks=(1, 100, 100, 3))
    for fast in (True, False):
        assert {f.code for f in check(tmp_path, fast=fast)} >= {"unreadable-file"}
    root = copy_of(V21)
    for shape in ([10**12], [10**6, 10**6], [10**400], [-1], [0.5]):
        json_edit(lambda info, shape=shape: info["features"]["action"].__setitem__("shape", shape))(root / INFO)
        assert any(finding.severity == "error" for finding in check(root, fast=True)), shape
        with pytest.raises(UserError):
            convert(root, tmp_path / "converted")


def test_columns_of_one_name_are_a_finding(copy_of, tmp_path):
    root = copy_of(V21)
    table = pq.read_table(root / DATA21)
    pq.write_table(pa.Table.from_arrays([*table.columns, table["action"]], [*table.column_names, "action"]),
                   root / DATA21)  # fmt: skip
    assert any(finding.code == "unreadable-file" for finding in check(root, fast=True))
    with pytest.raises(UserError):
        convert(root, tmp_path / "converted")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "", '{"fps": ' + "9" * 5_000 + "}",
                                  '{"\\ud800": 1}', '{"codebase_version": "v2.1", "fps": NaN}', "\xff"])  # fmt: skip
def test_json_of_any_kind_is_an_error_for_users(copy_of, tmp_path, text):
    root = copy_of(V21)
    (root / INFO).write_text(text, encoding="latin-1")
    assert any(finding.severity == "error" for finding in check(root, fast=True))
    for action in (lambda: convert(root, tmp_path / "converted"), lambda: open_source(str(root), PrepareSettings())):
        with pytest.raises(UserError):
            action()
    info = json.dumps({"a": 1})
    (root / INFO).write_text(info)
