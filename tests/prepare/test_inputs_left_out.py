"""What prepare and plan do not use is named with the reason; other containers and sub-folders are read."""

from __future__ import annotations

import json
import shutil

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dreamgen.config.settings import PrepareSettings
from dreamgen.data.images import read_image, write_png
from dreamgen.data.video import read_video
from dreamgen.plan.sources import folder_rows
from dreamgen.prepare.stage import open_source, prepare
from tests.fixtures import demos


def write_container(path, video_THWC, codec="mpeg4", fps=16):
    """Encode in the container that the name stands for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=fps)
        stream.height, stream.width = video_THWC.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for frame_HWC in video_THWC:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC)))
        out.mux(stream.encode())


def states_of(clips):
    return {clip.origin: clip.refused or clip.instruction for clip in clips}


CONTAINERS = {"a.mov": "mpeg4", "b.mkv": "mpeg4", "c.avi": "mpeg4", "deep/er/d.webm": "libvpx", "e.MP4": "mpeg4"}


@pytest.mark.parametrize("layout", ["plain", "gr1"])
def test_other_containers_and_sub_folders_are_read(layout, tmp_path, settings_for):
    root = tmp_path / "demos"
    for index, (name, codec) in enumerate(CONTAINERS.items()):
        path = root / ("videos" if layout == "gr1" else "") / name
        write_container(path, demos.make_episode(index, 24, 16, 48, 64).video_THWC, codec)
        text = (root / "metas" / name).with_suffix(".txt") if layout == "gr1" else path.with_suffix(".txt")
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(f"push {name}")
    result = prepare(settings_for(root))
    assert result.metrics | {"used": 5, "refused": 0} == result.metrics and result.notes == []
    for index, name in enumerate(("a", "b", "c", "d", "e")):
        written = read_video(tmp_path / f"run/train/videos/{name}.mp4")
        source = demos.make_episode(index, 24, 16, 48, 64).video_THWC
        assert written.shape == source.shape and np.abs(written.astype(int) - source).mean() < 12


def test_equal_names_in_sub_folders_keep_their_own_texts_and_copies_are_refused(tmp_path):
    for root, videos, metas in ((tmp_path / "gr1", "videos", "metas"), (tmp_path / "plain", "", "")):
        for folder in ("one", "two"):
            write_container(root / videos / folder / "clip.mp4", np.zeros((4, 32, 32, 3), np.uint8))
            (root / metas / folder).mkdir(parents=True, exist_ok=True)
            (root / metas / folder / "clip.txt").write_text(f"push {folder}")
        write_container(root / videos / "two/clip.mkv", np.zeros((4, 32, 32, 3), np.uint8))
        clips = open_source(str(root), PrepareSettings()).clips
        prefix = "videos/" if videos else ""
        assert states_of(clips) == {
            f"{prefix}one/clip.mp4": "push one",
            f"{prefix}two/clip.mkv": "push two",
            f"{prefix}two/clip.mp4": f"{prefix}two/clip.mkv has the same name and text: only one of the two is used",
        }
        assert len({clip.name for clip in clips}) == 3


def test_a_plain_folder_names_everything_that_it_does_not_use(tmp_path):
    demos.write_plain(tmp_path / "demos")
    root = tmp_path / "demos"
    for name in ("notes.md", "extra/poses.npz", ".hidden", "orphan.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    demos.write_lerobot_v21(root / "dataset")
    source = open_source(str(root), PrepareSettings(max_episodes=2))
    assert [clip.origin for clip in source.clips] == ["demo_0.mp4", "demo_1.mp4"]
    assert source.findings == (
        "1 texts have no video: orphan",
        "2 files are not used, neither videos nor texts: extra/poses.npz, notes.md",
        "LeRobot datasets in sub-folders are not read: dataset",
        "1 files are not used, beyond prepare.max_episodes=2: demo_2.mp4",
    )


def test_a_gr1_folder_names_everything_that_it_does_not_use(tmp_path):
    demos.write_gr1(tmp_path, captions="metas")
    shutil.copy(tmp_path / "videos/clip_0.mp4", tmp_path / "outside.mp4")
    (tmp_path / "metas/nothing.txt").write_text("x")
    (tmp_path / "actions.npz").write_bytes(b"x")
    (tmp_path / "trajectories").mkdir()
    vectors = pa.array([[0.0, 1.0]] * 24)
    pq.write_table(pa.table({"action": vectors, "state": vectors, "actions": vectors}),
                   tmp_path / "trajectories/clip_0.parquet")  # fmt: skip
    findings = open_source(str(tmp_path), PrepareSettings()).findings
    assert findings[:3] == (
        "1 files are not used, as no video has their name: metas/nothing.txt",
        "1 files are not used, as they are outside videos/ and metadata.csv does not name them: outside.mp4",
        "1 files are not used, as this layout has no place for them: actions.npz",
    )
    assert len(findings) == 4 and findings[3].startswith("not used: state, actions. prepare reads observation.state")


def test_what_prepare_wrote_has_nothing_left_out(tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos")
    train = prepare(settings_for(tmp_path / "demos")).outputs["train"]
    assert open_source(str(train), PrepareSettings()).findings == ()


def test_features_and_columns_of_a_dataset_that_are_not_used(tmp_path):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=1)
    info_file = tmp_path / "demos/meta/info.json"
    info = json.loads(info_file.read_text())
    info["features"] |= {
        "action.gripper": {"dtype": "float32", "shape": [1], "names": None},
        "observation.tactile": {"dtype": "uint8", "shape": [2, 3], "names": None},
    }
    info_file.write_text(json.dumps(info))
    (table_file,) = (tmp_path / "demos/data").rglob("*.parquet")
    table = pq.read_table(table_file)
    for name in ("state", "actions"):
        table = table.append_column(name, table["action"])
    pq.write_table(table, table_file)
    notes = [note for note in open_source(str(tmp_path / "demos"), PrepareSettings()).findings if "not used" in note]
    assert [note.partition(". prepare")[0] for note in notes] == [
        "not used: action.gripper, observation.tactile",
        "not used: state, actions",
    ]


def test_first_frames_beside_the_pictures_are_named_and_other_pictures_read(tmp_path):
    frame_HWC = np.full((8, 8, 3), (200, 40, 90), np.uint8)
    for name in ("a.webp", "b.bmp", "c.tiff", "d.png"):
        (Image.fromarray(frame_HWC).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {})))
        np.testing.assert_array_equal(read_image(tmp_path / name), frame_HWC)
    (tmp_path / "scene.gif").write_bytes(b"GIF89a")
    (tmp_path / "more").mkdir()
    write_png(tmp_path / "more/e.png", frame_HWC)
    rows = folder_rows(tmp_path)
    assert [row.file.name for row in rows.rows] == ["a.webp", "b.bmp", "c.tiff", "d.png"]
    assert rows.notes == (
        "1 files are not used, neither images nor texts: scene.gif",
        "1 files are not used, as sub-folders are not read: more/e.png",
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_whatever_it_hides(tmp_path, mode):
    rgba_HWC = np.full((8, 8, 4), (200, 40, 90, 255), np.uint8)
    rgba_HWC[:4] = (255, 0, 255, 0)
    rgba_HWC[4, 0] = (0, 0, 0, 128)
    picture = Image.fromarray(rgba_HWC)
    if mode == "P":
        picture = Image.new("P", (8, 8), 1)
        picture.putpalette([200, 40, 90, 200, 40, 90, 255, 0, 255])
        picture.paste(2, (0, 0, 8, 4))
        picture.save(tmp_path / "a.png", transparency=2)
    else:
        picture.convert(mode).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    assert (found[:4] == 255).all() and (found[5:] == found[7, 7]).all()
    assert tuple(found[7, 7]) == ((200, 40, 90) if mode != "LA" else (found[7, 7, 0],) * 3)
    if mode == "RGBA":
        assert tuple(found[4, 0]) == (127, 127, 127)
