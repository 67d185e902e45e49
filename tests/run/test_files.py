"""Files and folders are whole or absent; data's paths stay in their folder."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from dreamgen.data.action_range import demonstrated_range
from dreamgen.data.conditioning_frames import NUM_STORED_FRAMES
from dreamgen.data.demonstration_motion import demonstration_motion
from dreamgen.data.images import frame_sha256, write_png
from dreamgen.data.trajectory import Trajectory, write_trajectory
from dreamgen.errors import Problems, UserError
from dreamgen.label.first_states import known_first_states
from dreamgen.run.files import atomic_file, atomic_folder, inside, read_json, visible_files, write_json
from dreamgen.run.made_from import training_set_sha256
from dreamgen.run.run_folder import RunFolder
from tests.fixtures.leftovers import leftover


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_whole_or_absent_and_never_replaced(tmp_path):
    target = tmp_path / "set"
    with pytest.raises(RuntimeError), atomic_folder(target) as temporary:
        (temporary / "part").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(target) as temporary:
        (temporary / "part").write_text("x")
    assert (target / "part").read_text() == "x"
    with pytest.raises(UserError, match="already exists"), atomic_folder(target):
        pass


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../secret", "link/secret"])
def test_paths_from_data_may_not_leave_their_folder(tmp_path, path):
    root = tmp_path / "data"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="outside its dataset"):
        inside(root, path, "metadata.csv row 3")
    assert inside(root, "videos/a.mp4", "row") == root / "videos" / "a.mp4"


def test_json_refuses_what_strict_readers_refuse(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    (tmp_path / "b.json").write_text("{broken")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "b.json")


def test_several_problems_are_one_error():
    problems = Problems()
    problems.raise_if_any("nothing")
    problems.add("first", actual=np.int64(3), allowed="4")
    problems.add("second")
    with pytest.raises(UserError) as caught:
        problems.raise_if_any("two things")
    assert "first" in str(caught.value)
    assert "second" in str(caught.value)
    assert "2 problems" in str(caught.value)


@pytest.mark.parametrize("path", ["a\0b.mp4", "a" * 300 + ".mp4", "loop/a.mp4"])
def test_text_that_is_no_path_is_the_users_mistake(tmp_path, path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="metadata.csv row 3 names no path"):
        inside(tmp_path, path, "metadata.csv row 3")


def test_json_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match="not a JSON object"):
        read_json(tmp_path / "a.json")


def test_a_folder_is_synced_from_the_bottom_up_before_its_rename(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def recording_fsync(descriptor):
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    with atomic_folder(tmp_path / "set") as temporary:
        (temporary / "deep" / "deeper").mkdir(parents=True)
        (temporary / "deep" / "deeper" / "file").write_text("x")
    deep = temporary / "deep"
    wanted = [deep / "deeper" / "file", deep / "deeper", deep, temporary, tmp_path]
    assert synced == [str(path) for path in wanted]


def test_leftovers_of_dead_processes_of_this_host_are_swept(tmp_path):
    dead = 2**22 + 1  # above the largest process id that Linux gives
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "set") as temporary:
        own = temporary.name
        raise RuntimeError
    pid, host_and_random = own.removeprefix(".set.").removesuffix(".tmp").split("-")
    assert int(pid) == os.getpid()
    of_dead = f"{dead}-{host_and_random}.tmp"
    other_host = f"{dead}-{'0' * 8}{host_and_random[8:]}.tmp"
    stale = [f".set.{of_dead}", f".video.{of_dead}.mp4"]
    kept = [own, f".other.{other_host}", ".notes.tmp", f"set.{of_dead}", f".fresh.{of_dead}"]
    for name in stale + kept:
        if name.endswith(".mp4"):
            (tmp_path / name).write_bytes(b"half")
        else:
            (tmp_path / name).mkdir()
            (tmp_path / name / "part").write_text("half")
        if "fresh" not in name:
            os.utime(tmp_path / name, (time.time() - 7200,) * 2)
    with atomic_folder(tmp_path / "new"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "new"])


def test_a_snapshot_of_the_hub_cache_is_links_into_its_blobs(tmp_path):
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1f").write_text("x")
    (snapshot / "info.json").symlink_to("../../blobs/1f")
    (snapshot / "secret").symlink_to("/etc/passwd")
    assert inside(snapshot, "info.json", "row") == blobs / "1f"
    with pytest.raises(UserError, match="by a symbolic link"):
        inside(snapshot, "secret", "row")
    with pytest.raises(UserError, match="outside its dataset"):
        inside(snapshot, "../../blobs/1f", "row")


def test_files_are_readable_by_the_team_whatever_wrote_them(tmp_path):
    with atomic_folder(tmp_path / "set") as temporary:
        (temporary / "weights").write_text("x")
        (temporary / "weights").chmod(0o600)
    assert (tmp_path / "set" / "weights").stat().st_mode & 0o777 == (tmp_path / "set").stat().st_mode & 0o666


def test_half_written_files_are_not_taken_for_data(tmp_path):
    run = RunFolder(tmp_path)
    path_TS, image_HWC = np.cumsum(np.ones((60, 3), np.float32), axis=0), np.full((16, 16, 3), 9, np.uint8)
    write_trajectory(run.train / "trajectories" / "a.parquet", Trajectory(60, path_TS, path_TS))
    write_png(run.train / "first_frames" / "a.png", np.concatenate([image_HWC] * NUM_STORED_FRAMES))
    before = training_set_sha256(run), demonstrated_range(run.train)
    half = [leftover(run.train / name) for name in ("trajectories/b.parquet", "first_frames/b.png", "videos/b.mp4")]
    assert [path.name for path in visible_files(run.train / "trajectories", "*.parquet")] == ["a.parquet"]
    assert training_set_sha256(run) == before[0]
    os.utime(run.train / "trajectories")  # so that nothing is remembered
    for found, known in zip(demonstrated_range(run.train), before[1], strict=True):
        np.testing.assert_array_equal(found, known)
    assert demonstration_motion(run.train) is not None
    assert list(known_first_states(run, {frame_sha256(image_HWC)}, 3)) == [frame_sha256(image_HWC)]
    assert all(path.exists() for path in half)
