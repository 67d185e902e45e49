"""Videos as people have them become training clips that show what happened when it happened, or are refused."""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamgen.config.settings import ConvertSettings
from dreamgen.data.display import ColorTags
from dreamgen.data.video import probe, read_video
from dreamgen.prepare.stage import inspect, prepare
from export.convert import convert_dataset
from tests.fixtures import demos
from tests.fixtures.good_datasets import LENGTHS, lerobot_v30
from tests.fixtures.videos import MATRICES, corner_error, encode, number_in, picture, show_as, stored_for

FRAMES = 24
HOLE = (10, 11)


def plain(folder: Path, name: str, *args, **options) -> Path:
    path = encode(folder / f"{name}.mp4", *args, **options)
    path.with_suffix(".txt").write_text("push the block")
    return path


def summary(result) -> dict[str, dict[str, str]]:
    with result.outputs["summary"].open() as stream:
        return {row["name"]: row for row in csv.DictReader(stream)}


def numbers(path: Path) -> list[int]:
    return [number_in(frame_HWC) for frame_HWC in read_video(path)]


def test_turned_stretched_and_tagged_videos_look_as_they_were_recorded(tmp_path, settings_for):
    folder, turn = tmp_path / "demos", MATRICES[270]
    show_as(plain(folder, "phone", [stored_for(picture(n), turn) for n in range(16)]), turn)
    plain(folder, "hdr", map(picture, range(16)), color=ColorTags(6, 9, 16, 1))
    result = prepare(settings_for(folder, height=64, width=96))
    rows = summary(result)
    assert rows["phone"]["detail"] == "turned upright, as its display matrix says"
    assert (rows["phone"]["height"], rows["phone"]["width"]) == ("64", "96")
    assert rows["hdr"]["detail"] == "its colors are HDR (PQ): taken as they are, without tone mapping"
    for name in ("phone", "hdr"):
        video = result.outputs["train"] / f"videos/{name}.mp4"
        assert numbers(video) == list(range(16)) and corner_error(read_video(video)[3]) <= 8, name
    assert probe(result.outputs["train"] / "videos/hdr.mp4").display.color == ColorTags(6, 9, 16, 1)


def test_frames_of_an_uneven_rate_are_taken_by_their_time(tmp_path, settings_for):
    folder = tmp_path / "demos"
    times = [round(1000 * k / 30) for k in range(30)] + [1000 + 100 * k for k in range(20)]
    plain(folder, "phone", map(picture, range(50)), times, Fraction(1, 1000))
    result = prepare(settings_for(folder, height=64, width=96))
    wanted = [int(np.argmin([abs(time - 1000 * k / 16) for time in times])) for k in range(int(2.9 * 16) + 1)]
    assert numbers(result.outputs["train"] / "videos/phone.mp4") == wanted
    row = summary(result)["phone"]
    assert "its frame rate varies, 33 to 100 ms" in row["detail"] and row["num_source_frames"] == "50"


@pytest.mark.parametrize("write", [demos.write_lerobot_v21, demos.write_lerobot_v30], ids=lambda f: f.__name__)
def test_a_hole_refuses_its_episode_and_moves_no_other(write, tmp_path, settings_for):
    folder = write(tmp_path / "demos", num_episodes=3, num_frames=FRAMES)
    videos = sorted((folder / "videos").rglob("*.mp4"))
    for first, video in enumerate(videos):
        shown = range(3 * FRAMES if len(videos) == 1 else FRAMES)
        times = [k for k in shown if first or k not in HOLE]
        encode(video, [picture(FRAMES * first + k, 48, 64) for k in times], times)
    result = prepare(settings_for(folder))
    assert (result.metrics["refused"], result.metrics["frames"]) == (1, 2 * FRAMES)
    note = result.notes[-1]
    assert note.startswith("refused episode 0: its video has no frame for row 10, at 0.6250 s")
    for index in (1, 2):
        assert numbers(result.outputs["train"] / f"videos/episode_{index:06d}.mp4") == list(
            range(FRAMES * index, FRAMES * (index + 1))
        )
        rows = pq.read_table(result.outputs["train"] / f"trajectories/episode_{index:06d}.parquet")
        assert rows.num_rows == FRAMES


def test_a_video_that_begins_late_is_paired_with_its_rows(tmp_path, settings_for):
    folder = demos.write_lerobot_v21(tmp_path / "demos", num_episodes=1, num_frames=FRAMES)
    encode(next((folder / "videos").rglob("*.mp4")), [picture(k, 48, 64) for k in range(FRAMES)], range(5, FRAMES + 5))
    result = prepare(settings_for(folder))
    assert result.metrics["used"] == 1
    assert numbers(result.outputs["train"] / "videos/episode_000000.mp4") == list(range(FRAMES))


def test_pictures_in_tables_are_a_source_like_others(tmp_path, settings_for):
    cameras = ("observation.images.front",)
    v30 = lerobot_v30(tmp_path / "v30", cameras, dtype="image")
    v21, back = tmp_path / "v21", tmp_path / "back"
    convert_dataset(v30, v21, ConvertSettings(num_workers=1))
    convert_dataset(v21, back, ConvertSettings(num_workers=1))
    lengths = [length for length in LENGTHS if length >= 9]
    for root in (v30, v21, back):
        settings = settings_for(root, out=f"run-{root.name}", height=64, width=64)
        assert inspect(settings).metrics["frames"] == sum(lengths)
        train = prepare(settings).outputs["train"]
        stored = _stored(v30, cameras[0])
        first = 0
        for index, length in enumerate(LENGTHS):
            if length >= 9:
                video_THWC = read_video(train / f"videos/episode_{index:06d}.mp4")
                wanted_THWC = stored[first : first + length]
                assert video_THWC.shape == wanted_THWC.shape
                assert np.abs(video_THWC.astype(int) - wanted_THWC).mean() < 6
            first += length


def _stored(root: Path, camera: str) -> np.ndarray:
    cells = pq.read_table(root / "data/chunk-000/file-000.parquet")[camera].to_pylist()
    return np.stack([cv2.imdecode(np.frombuffer(cell["bytes"], np.uint8), cv2.IMREAD_COLOR_RGB) for cell in cells])


def test_a_picture_that_is_not_there_refuses_its_episode(tmp_path, settings_for):
    camera = "observation.images.front"
    root = lerobot_v30(tmp_path / "v30", (camera,), dtype="image", lengths=(9, 9))
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    cells = table[camera].to_pylist()
    cells[3] = {"bytes": None, "path": "images/frame-000003.png"}
    column = pa.array(cells, table.schema.field(camera).type)
    pq.write_table(table.set_column(table.column_names.index(camera), camera, column), path)
    result = prepare(settings_for(root, height=64, width=64))
    assert (result.metrics["refused"], result.metrics["frames"]) == (1, 9)
    assert f"row 3 of {camera} is no picture" in result.notes[-1] and "images/frame-000003.png" in result.notes[-1]
