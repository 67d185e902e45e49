"""Bad demonstrations: one bad clip is refused with its reason and the others go on; nothing is half-written."""

import json
import os
import wave
from dataclasses import replace

import av
import pyarrow.parquet as pq
import pytest

from dreamgen.config.settings import PrepareSettings
from dreamgen.data.video import write_video
from dreamgen.errors import UserError
from dreamgen.prepare.stage import inspect, open_source, prepare
from tests.fixtures import demos


def change_info(folder, **values):
    path = folder / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused_one(settings, num_good):
    """Prepare, and return why the only bad clip was refused."""
    seen, result = inspect(settings), prepare(settings)
    assert result.metrics["refused"] == 1 and result.metrics["used"] == num_good and not result.partial
    train = result.outputs["train"]
    kept = {path.stem for path in (train / "videos").iterdir()}
    assert len(kept) == num_good == len((train / "metadata.csv").read_text().splitlines()) - 1
    assert kept == {path.stem for path in (train / "metas").iterdir()}
    assert seen.metrics["refused"] <= 1 and "refused," in result.outputs["summary"].read_text()
    return next(note for note in result.notes if note.startswith("refused "))


def test_missing_and_empty_folders(tmp_path, settings_for):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in (("missing", "does not exist"), ("empty", "is empty"), ("file", "not a folder")):
        with pytest.raises(UserError, match=message) as error:
            prepare(settings_for(tmp_path / name))
        assert error.value.actual == str(tmp_path / name)
    assert not (tmp_path / "run").exists()


def test_no_demos_given(settings_for):
    with pytest.raises(UserError, match="no demonstrations given"):
        prepare(replace(settings_for("x"), demos=None))


def test_unknown_layout_names_the_three(tmp_path, settings_for):
    (tmp_path / "demos/meta").mkdir(parents=True)
    (tmp_path / "demos/notes.md").write_text("hello")
    with pytest.raises(UserError, match="none of the layouts") as error:
        prepare(settings_for(tmp_path / "demos"))
    assert error.value.actual == "meta, notes.md"
    assert all(word in error.value.allowed for word in ("meta/info.json", "metadata.csv", "NAME.mp4 + NAME.txt"))


def test_existing_training_set_is_kept(tmp_path, settings_for):
    demos.write_plain(tmp_path / "demos", num_episodes=1)
    (tmp_path / "run/train").mkdir(parents=True)
    with pytest.raises(UserError, match="already exists") as error:
        prepare(settings_for(tmp_path / "demos"))
    assert "--resume" in error.value.next_step and list((tmp_path / "run/train").iterdir()) == []


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_truncated_mp4(share, tmp_path, settings_for):
    demos.write_plain(tmp_path / "demos")
    video = tmp_path / "demos/demo_1.mp4"
    video.write_bytes(video.read_bytes()[: int(video.stat().st_size * share)])
    assert "demo_1.mp4" in refused_one(settings_for(tmp_path / "demos"), num_good=2)


def test_mp4_with_noise_inside(tmp_path, settings_for):
    demos.write_plain(tmp_path / "demos")
    video = tmp_path / "demos/demo_1.mp4"
    data = bytearray(video.read_bytes())
    start = data.index(b"mdat") + 600
    data[start:] = os.urandom(len(data) - start)
    video.write_bytes(data)
    assert "demo_1.mp4" in refused_one(settings_for(tmp_path / "demos"), num_good=2)


def test_mp4_with_no_frames_no_bytes_and_no_video(tmp_path, settings_for):
    demos.write_plain(tmp_path / "demos", num_episodes=1)
    folder = tmp_path / "demos"
    (folder / "no_bytes.mp4").write_bytes(b"")
    (folder / "no_mp4.mp4").write_bytes(b"<html>not found</html>")
    with wave.open(str(folder / "no_video.mp4"), "wb") as sound:  # media, but no container of videos
        sound.setparams((1, 2, 8000, 0, "NONE", "none"))
        sound.writeframes(bytes(2000))
    empty = _mp4_without_frames(folder / "no_frames.mp4")
    assert empty.streams.video[0].frames == 0
    for name in ("no_bytes", "no_mp4", "no_video", "no_frames"):
        (folder / f"{name}.txt").write_text("wave")
    notes = prepare(settings_for(folder)).notes
    assert [note.split(":")[0] for note in notes] == [
        f"refused {name}.mp4" for name in ("no_bytes", "no_frames", "no_mp4", "no_video")
    ]
    assert "has 0 frames" in notes[1] and "is not a video" in notes[3]


def _mp4_without_frames(path):
    # Only a fragmented mp4 can announce a stream and then bring nothing.
    with av.open(str(path), "w", options={"movflags": "empty_moov+frag_keyframe"}) as out:
        stream = out.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()
    return av.open(str(path))


def test_clip_shorter_than_a_window_at_the_models_rate(tmp_path, settings_for):
    demos.write_plain(tmp_path / "demos", num_episodes=2, num_frames=24, fps=16)
    # 24 frames at 48 fps are 8 at 16 fps, and a window has 9.
    write_video(tmp_path / "demos/fast.mp4", demos.make_episode(0, 24, 48, 48, 64).video_THWC, 48)
    (tmp_path / "demos/fast.txt").write_text("too fast")
    note = refused_one(settings_for(tmp_path / "demos"), num_good=2)
    assert "24 frames at 48 fps, which are 8 at 16 fps; allowed: at least 9" in note


@pytest.mark.parametrize("text, reason", [(None, "does not exist"), (b"\xff\xfe\xfa", "not UTF-8"), (b" \n", "empty")])
def test_bad_caption_of_a_plain_clip(text, reason, tmp_path, settings_for):
    demos.write_plain(tmp_path / "demos")
    caption = tmp_path / "demos/demo_1.txt"
    caption.unlink()
    if text is not None:
        caption.write_bytes(text)
    assert reason in refused_one(settings_for(tmp_path / "demos"), num_good=2)


@pytest.mark.parametrize(
    "text, reason",
    [
        (b"\xff", "not UTF-8"),
        (b"{", "not JSON"),
        (b"[]", "no long caption"),
        (b'{"m": {"short": "x"}}', "no long caption; found short"),
        (None, "has no caption"),
    ],
)
def test_bad_caption_file_of_a_gr1_clip(text, reason, tmp_path, settings_for):
    demos.write_gr1(tmp_path / "demos", captions="captions")
    caption = tmp_path / "demos/captions/clip_1.json"
    caption.unlink()
    if text is not None:
        caption.write_bytes(text)
    assert reason in refused_one(settings_for(tmp_path / "demos"), num_good=2)


@pytest.mark.parametrize(
    "row, reason",
    [
        ("../outside.mp4,take it", "outside its dataset"),
        ("/etc/passwd,take it", "outside its dataset"),
        ("videos/../../outside.mp4,take it", "outside its dataset"),
        ("videos/none.mp4,take it", "does not exist"),
        (",take it", "names no video"),
        ("videos/clip_0.mp4,take it", "again"),
        ("videos/link.mp4,take it", "outside its dataset"),
    ],
)
def test_bad_rows_of_metadata_csv(row, reason, tmp_path, settings_for):
    demos.write_gr1(tmp_path / "demos", num_episodes=2)
    (tmp_path / "outside.mp4").write_bytes((tmp_path / "demos/videos/clip_0.mp4").read_bytes())
    with (tmp_path / "demos/metadata.csv").open("a") as stream:
        stream.write(row + "\n")
    if "link" in row:
        (tmp_path / "demos/videos/link.mp4").symlink_to(tmp_path / "outside.mp4")
        result = prepare(settings_for(tmp_path / "demos"))
        assert result.metrics["used"] == 2 and all(reason in note for note in result.notes if "refused" in note)
        return
    assert reason in refused_one(settings_for(tmp_path / "demos"), num_good=2)


def test_unquoted_comma_is_not_guessed_at(tmp_path, settings_for):
    demos.write_gr1(tmp_path / "demos", num_episodes=2)
    (tmp_path / "demos/metadata.csv").write_text(
        "file_name,prompt\nvideos/clip_0.mp4,take it, then go\nvideos/clip_1.mp4,go\n"
    )
    assert "more fields than the header" in refused_one(settings_for(tmp_path / "demos"), num_good=1)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"file_name,prompt\nvideos/clip_0.mp4,caf\xe9\n", "not UTF-8"),
        (b"clip,prompt\nx,y\n", "no column for the video"),
        (b'file_name,prompt\nvideos/clip_0.mp4,"a"b"\n', "line 2 is not CSV"),
        (b"", "no column for the video"),
    ],
)
def test_metadata_csv_that_is_no_table(content, reason, tmp_path, settings_for):
    demos.write_gr1(tmp_path / "demos", num_episodes=1)
    (tmp_path / "demos/metadata.csv").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        prepare(settings_for(tmp_path / "demos"))
    assert not (tmp_path / "run").exists()


def test_if_nothing_is_left_all_reasons_are_listed_and_nothing_is_written(tmp_path, settings_for):
    demos.write_plain(tmp_path / "demos", num_frames=5)
    (tmp_path / "demos/demo_0.txt").unlink()
    with pytest.raises(UserError) as error:
        prepare(settings_for(tmp_path / "demos"))
    lines = str(error.value).splitlines()
    assert "3 refused" in lines[0] and len(lines) == 4
    assert "demo_0.txt does not exist" in lines[1] and "shorter than a window" in lines[2] and "demo_2" in lines[3]
    assert not (tmp_path / "run").exists()


def test_nothing_is_left_after_decoding(tmp_path, settings_for):
    demos.write_plain(tmp_path / "demos", num_episodes=1)
    video = tmp_path / "demos/demo_0.mp4"
    data = bytearray(video.read_bytes())
    start = data.index(b"mdat") + 8
    data[start:] = bytes(len(data) - start)
    video.write_bytes(data)
    with pytest.raises(UserError, match="no clip of the plain folder"):
        prepare(settings_for(tmp_path / "demos"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["data_path", "video_path"])
@pytest.mark.parametrize(
    "template",
    [
        "../{episode_index}.x",
        "/etc/{episode_index}",
        "data/{episode_index.__class__}",
        "data/{episode_index:999999d}",
        "data/{episode_index!r}",
        "data/{secret}",
        "data/{",
    ],
)
def test_path_templates_that_reach_out_or_do_more_than_name_a_file(key, template, tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=1)
    change_info(tmp_path / "demos", **{key: template})
    with pytest.raises(UserError, match=f"info.json: {key}"):
        prepare(settings_for(tmp_path / "demos"))
    assert not (tmp_path / "run").exists()


def test_v30_template_that_reaches_out(tmp_path, settings_for):
    demos.write_lerobot_v30(tmp_path / "demos", num_episodes=1)
    change_info(tmp_path / "demos", data_path="../{chunk_index}-{file_index}.parquet")
    with pytest.raises(UserError, match="outside its dataset"):
        prepare(settings_for(tmp_path / "demos"))


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"codebase_version": "v1.6"}, "codebase_version"),
        ({"fps": 0}, "fps is not a frame rate"),
        ({"fps": "fast"}, "fps is not a frame rate"),
        ({"features": []}, "features is not a table"),
        ({"video_path": None}, "video_path cannot be used to name files"),
        ({"chunks_size": 0}, "chunks_size"),
    ],
)
def test_info_json_that_cannot_be_used(values, reason, tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=1)
    change_info(tmp_path / "demos", **values)
    with pytest.raises(UserError, match=reason):
        prepare(settings_for(tmp_path / "demos"))


@pytest.mark.parametrize("name", ["episodes.jsonl", "tasks.jsonl"])
@pytest.mark.parametrize("content", [None, b"{", b"[]", b"{}", b"\xff"])
def test_v21_metadata_files_that_are_missing_or_damaged(name, content, tmp_path):
    demos.write_lerobot_v21(tmp_path, num_episodes=1)
    (tmp_path / "meta" / name).unlink()
    if content is not None:
        (tmp_path / "meta" / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        open_source(str(tmp_path), PrepareSettings())


@pytest.mark.parametrize("pattern", ["tasks.parquet", "episodes/*/*.parquet"])
@pytest.mark.parametrize("content", [None, b"PAR1 no parquet"])
def test_v30_metadata_files_that_are_missing_or_damaged(pattern, content, tmp_path):
    demos.write_lerobot_v30(tmp_path / "demos", num_episodes=1)
    path = next((tmp_path / "demos/meta").glob(pattern))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="meta"):
        open_source(str(tmp_path / "demos"), PrepareSettings())


@pytest.mark.parametrize("part", ["data", "videos"])
@pytest.mark.parametrize("content", [None, b"garbage"])
def test_one_file_of_a_lerobot_dataset_is_missing_or_damaged(part, content, tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos")
    path = next((tmp_path / "demos" / part).rglob("episode_000001.*"))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    prepared = prepare(settings_for(tmp_path / "demos"))
    assert prepared.metrics["used"] == 2 and prepared.metrics["refused"] == 1
    assert prepared.notes[-1].startswith("refused episode 1:") and "episode_000001" in prepared.notes[-1]


def test_no_camera_with_files(tmp_path):
    demos.write_lerobot_v21(tmp_path, num_episodes=1)
    for path in (tmp_path / "videos").rglob("*.mp4"):
        path.unlink()
    with pytest.raises(UserError, match="no camera has a video file") as error:
        open_source(str(tmp_path), PrepareSettings())
    assert error.value.actual == demos.CAMERA


def test_packed_file_that_ends_early_refuses_only_what_is_gone(tmp_path, settings_for):
    demos.write_lerobot_v30(tmp_path / "demos")
    path = next((tmp_path / "demos/videos").rglob("*.mp4"))
    frames = [demos.make_episode(i, 24, 16, 48, 64).video_THWC for i in range(3)]
    write_video(path, [frame for video in frames for frame in video][:60], 16)
    note = refused_one(settings_for(tmp_path / "demos"), num_good=2)
    assert note.startswith("refused episode 2:") and "24 rows, 12 frames" in note


def test_a_missing_hub_dataset_is_not_fetched_by_a_dry_run(tmp_path, settings_for, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for act in (inspect, prepare):  # offline: prepare may try, and says what came of it
        with pytest.raises(UserError, match="somebody/nothing is not a local folder"):
            act(settings_for("somebody/nothing"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, -1])
def test_max_episodes_must_be_positive(count, tmp_path, settings_for):
    with pytest.raises(UserError, match=r"prepare\.max_episodes is too small"):
        prepare(settings_for(tmp_path, prepare={"max_episodes": count}))


def test_names_are_made_plain_and_unique(tmp_path, settings_for):
    demos.write_plain(tmp_path / "demos", num_episodes=1)
    video = (tmp_path / "demos/demo_0.mp4").read_bytes()
    for stem in ("a b", "a_b", "A b", "ünï.x", "..hidden", "日本"):
        (tmp_path / f"demos/{stem}.mp4").write_bytes(video)
        (tmp_path / f"demos/{stem}.txt").write_text(f"do {stem}", encoding="utf-8")
    train = prepare(settings_for(tmp_path / "demos")).outputs["train"]
    assert sorted(p.stem for p in (train / "videos").iterdir()) == ["A_b", "a_b_2", "a_b_3", "clip", "demo_0", "n_.x"]
    assert (train / "metas/clip.txt").read_text(encoding="utf-8").endswith("do 日本")


def test_states_are_not_read_from_outside(tmp_path, settings_for):
    demos.write_lerobot_v21(tmp_path / "demos", num_episodes=2)
    first = prepare(settings_for(tmp_path / "demos")).outputs["train"]
    trajectory = first / "trajectories/episode_000001.parquet"
    trajectory.rename(tmp_path / "outside.parquet")
    trajectory.symlink_to(tmp_path / "outside.parquet")
    assert pq.read_table(trajectory).num_rows == 24
    assert "outside its dataset" in refused_one(settings_for(first, out="again"), num_good=1)


@pytest.mark.parametrize("name", ["a" * 300 + ".mp4", "a\0b.mp4"])
def test_a_row_that_names_no_possible_path_is_refused_alone(name, tmp_path, settings_for):
    demos.write_gr1(tmp_path / "demos", num_episodes=2)
    with (tmp_path / "demos/metadata.csv").open("a") as stream:
        stream.write(f"{name},take it\n")
    assert "names no path" in refused_one(settings_for(tmp_path / "demos"), num_good=2)


@pytest.mark.parametrize("missing", ["videos/**/*.mp4", "data/**/*.parquet", "meta/tasks.parquet"])
def test_an_interrupted_download_is_not_taken_for_a_dataset(missing, tmp_path, settings_for, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lerobot.utils.constants.HF_LEROBOT_HOME", tmp_path / "home")
    demos.write_lerobot_v30(tmp_path / "home/somebody/demos", num_episodes=2)
    assert prepare(settings_for("somebody/demos")).metrics["used"] == 2  # whole: nothing is asked of the network
    next((tmp_path / "home/somebody/demos").glob(missing)).unlink()
    with pytest.raises(UserError, match="what is missing of"):
        prepare(settings_for("somebody/demos", out="again"))
