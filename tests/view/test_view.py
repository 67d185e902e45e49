"""`dreamgen view`: frames, actions and states of a clip, a run or an episode, on one timeline of a Rerun recording."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from dreamgen.cli.main import main
from dreamgen.config.settings import ViewSettings
from dreamgen.data.video import read_video
from dreamgen.errors import UserError
from dreamgen.run.jobs import read_jobs
from dreamgen.view.sources import episode_of, file_of, run_clips
from dreamgen.view.stage import view
from export import export_datasets
from tests.fixtures.runs import make_run, run_settings
from tests.report.scored_run import write_ramps

NUM_FRAMES, FPS = 9, 16


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two clips, the second rejected, in a LeRobot dataset of the first."""
    run = make_run(tmp_path_factory.mktemp("view") / "run", num_clips=2, num_frames=NUM_FRAMES)
    export_datasets(run_settings(run.root, export={"formats": ["lerobot-v3.0"]}))
    return run


def frames_of(shown, camera="camera"):
    return np.stack(list(shown.cameras[camera]()))


def test_a_clip_of_a_run_comes_with_its_label_and_verdict(run):
    first, second = read_jobs(run.jobs)
    shown = file_of(run.clip_file(second.clip_id))
    assert (shown.name, shown.fps) == (second.clip_id[:8], FPS)
    assert np.array_equal(frames_of(shown), read_video(run.clip_file(second.clip_id)))
    assert set(shown.vectors) == {"action", "observation.state"}
    assert shown.vectors["action"].names == tuple(f"motor_{i}" for i in range(5))
    label = pq.read_table(run.label_file(second.clip_id))
    assert np.allclose(shown.vectors["action"].values_TD, np.stack(label["action"].to_numpy()))
    assert "rejected" in shown.about and "is below min\\_motion" in shown.about
    assert [each.name for each in run_clips(run.root, [], 9)] == [first.clip_id[:8], second.clip_id[:8]]
    assert [each.name for each in run_clips(run.root, [], 1)] == [first.clip_id[:8]]
    assert [each.name for each in run_clips(run.root, [second.clip_id[:6]], 9)] == [second.clip_id[:8]]


def test_uncertainty_is_shown_where_the_label_has_it(run, tmp_path):
    other = make_run(tmp_path / "run", num_clips=1, rejected=0)
    job = read_jobs(other.jobs)[0]
    write_ramps(other.label_file(job.clip_id))
    (shown,) = run_clips(other.root, [], 1)
    assert shown.vectors["action_std"].values_TD[-1, 0] == 0.5
    assert shown.vectors["action"].names == ("action_0", "action_1", "action_2"), "numbers where the names do not fit"


def test_an_episode_of_a_dataset_has_the_frames_and_vectors_of_its_clip(run):
    job = read_jobs(run.jobs)[0]
    shown = episode_of(run.datasets / "lerobot-v3.0", 0)
    (camera,) = shown.cameras
    assert np.array_equal(frames_of(shown, camera), read_video(run.clip_file(job.clip_id)))
    label = pq.read_table(run.label_file(job.clip_id))
    assert np.allclose(shown.vectors["action"].values_TD, np.stack(label["action"].to_numpy()))
    assert set(shown.vectors) == {"action", "observation.state"} and job.instruction in shown.about


@pytest.mark.parametrize(
    ("what", "settings", "problem"),
    [
        ("nothing", ViewSettings(), "no such path"),
        ("run/run.yaml", ViewSettings(), "another kind"),
        ("run", ViewSettings(clips=["zzz"]), "no clip"),
        ("run", ViewSettings(clips=[""]), "2 clips begin with it"),
        ("run/datasets/lerobot-v3.0", ViewSettings(episode=7), "no episode 7"),
        ("run", ViewSettings(save="{exists}"), "already exists"),
    ],
)
def test_what_cannot_be_shown_is_refused(run, tmp_path, what, settings, problem):
    (tmp_path / "old.rrd").write_bytes(b"x")
    if settings.save:
        settings = ViewSettings(save=str(tmp_path / "old.rrd"))
    with pytest.raises(UserError) as caught:
        view(run.root.parent / what, settings)
    assert problem in str(caught.value)
    assert (tmp_path / "old.rrd").read_bytes() == b"x"


def test_without_a_display_a_recording_is_suggested(run, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(UserError, match="no display") as caught:
        view(run.root, ViewSettings())
    assert "--save=recording.rrd" in str(caught.value)


def test_without_rerun_the_install_line_is_shown(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rerun", None)  # as if it were not installed
    assert main(["view", str(run.root), f"--save={tmp_path / 'a.rrd'}"]) == 2
    assert "pip install 'dreamgen[view]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_recording_has_frames_and_curves_on_one_timeline(run, tmp_path, capsys):
    pytest.importorskip("rerun.chunk", reason="rerun-sdk is not installed (pip install 'dreamgen[view]')")
    from rerun.chunk import RrdReader

    file = tmp_path / "clips.rrd"
    assert main(["view", str(run.root), f"--save={file}"]) == 0
    assert f"num_frames={2 * NUM_FRAMES}" in capsys.readouterr().out
    logged = {(chunk.entity_path, chunk.is_static): chunk for chunk in RrdReader(file).stream()}
    timed = [chunk for (_, is_static), chunk in logged.items() if not is_static]
    assert all(chunk.timeline_names == ["time"] for chunk in timed), "pictures and curves have one cursor"
    assert len(timed) == 2 * 3
    for job in read_jobs(run.jobs):
        root = f"/{job.clip_id[:8]}"
        pictures = logged[f"{root}/camera", False].to_record_batch()
        times_s = np.array(pictures["time"].cast("int64")) / 1e9
        assert np.allclose(times_s, np.arange(NUM_FRAMES) / FPS)
        blobs = pictures["EncodedImage:blob"].to_pylist()
        frame_HWC = cv2.imdecode(np.array(blobs[3][0], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        shown_HWC = read_video(run.clip_file(job.clip_id))[3]
        assert np.abs(frame_HWC.astype(int) - shown_HWC).mean() < 8, "JPEG of the right frame"
        label = pq.read_table(run.label_file(job.clip_id))
        for column in ("action", "observation.state"):
            path = next(path for path, _ in logged if path.replace("\\", "") == f"{root}/{column}")
            values = logged[path, False].to_record_batch()
            assert np.allclose(values["Scalars:scalars"].to_pylist(), label[column].to_pylist())
            assert values["time"].equals(pictures["time"])
