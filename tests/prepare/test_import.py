"""Clips and labels of other programs become clips and labels of a run, and every later stage serves them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from dreamgen.config.loading import load_settings
from dreamgen.data.video import probe, read_video, write_video
from dreamgen.errors import UserError
from dreamgen.pipeline import run_stage
from dreamgen.run.files import sha256_of_file
from dreamgen.run.jobs import read_jobs
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder
from dreamgen.status import status
from tests.fixtures.demos import write_lerobot_v21
from tests.fixtures.runs import lenient, make_run, moving_square, random_vectors, run_settings, write_label

NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 48


def write_clips(folder, num=2, height=HEIGHT, width=WIDTH, fps=16, num_frames=NUM_FRAMES, suffix=".mp4"):
    """Write clips of another generator; returns their video_THWC."""
    videos = [moving_square(40 + number, num_frames, height, width) for number in range(num)]
    for number, video_THWC in enumerate(videos):
        write_video(folder / f"foreign_{number}{suffix}", video_THWC, fps)
        (folder / f"foreign_{number}.txt").write_text(f"stack block {number}")
    return videos


def imported(root, clips, **values) -> tuple:
    settings = run_settings(root, import_clips={"clips": [str(clips)], **values})
    return run_stage("import", settings)[-1], RunFolder(root)


def stage(name, root, **sections):
    return run_stage(name, run_settings(root, export={"formats": ["lerobot-v3.0"]}, **sections))[-1]


def provenance(run, name="lerobot-v3.0"):
    return pq.read_table(run.datasets / f"{name}.provenance.parquet").to_pylist()


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_a_folder_of_clips_and_labels_is_curated_exported_and_told_apart(tmp_path, kind):
    videos, labels = write_clips(tmp_path / "clips"), tmp_path / "labels"
    labels.mkdir()
    vectors = [random_vectors(number, NUM_FRAMES, 3, 2) for number in range(2)]
    for number, (action_TA, state_TS) in enumerate(vectors):
        if kind == "npz":
            np.savez(labels / f"foreign_{number}.npz", actions=action_TA.astype(np.float64), state=state_TS)
        else:
            write_label(labels / f"foreign_{number}.parquet", action_TA, state_TS)
    run = RunFolder(tmp_path / "run")
    given = {"clips": [str(tmp_path / "clips")], "labels": str(labels), "generator": "wan2.2-14b",
             "labeled_by": "idm of a colleague"}  # fmt: skip
    first = run_stage("import", load_settings(None, {"out": str(run.root), "import_clips": given}))[-1]
    assert first.metrics == {"num_clips": 2, "num_refused": 0, "num_imported": 2, "num_known": 0, "num_copied": 2,
                             "num_encoded": 0, "num_labelled": 2, "num_labels_failed": 0}  # fmt: skip
    jobs = read_jobs(run.jobs)
    assert [job.instruction for job in jobs] == ["stack block 0", "stack block 1"]
    assert [sha256_of_file(run.clip_file(job.clip_id)) for job in jobs] == [
        sha256_of_file(tmp_path / f"clips/foreign_{number}.mp4") for number in range(2)
    ]
    again = run_stage("import", load_settings(None, {"out": str(run.root), "import_clips": given}))[-1]
    assert (again.metrics["num_imported"], again.metrics["num_known"], again.metrics["num_labelled"]) == (0, 2, 0)
    assert len(read_jobs(run.jobs)) == 2 and "nothing new" in again.notes[-1]
    export = {"formats": ["lerobot-v3.0"], "num_workers": 1}
    own = load_settings(None, {"out": str(run.root), "export": export})  # run.yaml has the clips' shape
    assert (own.video.height, own.video.width, own.video.fps) == (HEIGHT, WIDTH, 16)
    assert run_stage("label", own)[-1].metrics["num_already_done"] == 2  # no model is trained: there is none to need
    assert run_stage("curate", own)[-1].metrics["num_accepted"] == 2
    assert run_stage("export", own)[-1].metrics["episodes"] == 2
    for row, video_THWC, (action_TA, _), job in zip(provenance(run), videos, vectors, jobs, strict=True):
        assert row["model"] == "wan2.2-14b" and row["level"] == "imported" and "seed" not in row
        assert row["labeled_by"] == "idm of a colleague" and row["idm_held_out"] is None
        assert row["label_sha256"] == sha256_of_file(run.label_file(job.clip_id)) and row["clip_id"] == job.clip_id
        written = np.array(pq.read_table(run.label_file(job.clip_id))["action"].to_pylist(), np.float32)
        np.testing.assert_array_equal(written, action_TA)
        assert np.abs(read_video(run.clip_file(job.clip_id)).astype(int) - video_THWC).mean() < 8
    now, report = status(own), run_stage("report", own)[-1]
    assert now.metrics["num_left"] == 0 and report.metrics["accepted"] == 2
    page = run.report.read_text()
    assert "stack block 1" in page and "wan2.2-14b" in page


def test_clips_join_those_of_a_run_in_its_shape_and_provenance_names_what_made_each_part(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0, action_dim=3, state_dim=2)
    before = {job.clip_id: sha256_of_file(run.clip_file(job.clip_id)) for job in read_jobs(run.jobs)}
    write_clips(tmp_path / "clips", height=64, width=80, fps=32, num_frames=33)
    action_TA = np.arange(33, dtype=np.float32)[:, None] + np.array([0, 100, 200], np.float32)
    np.savez(tmp_path / "clips/foreign_0.npz", action=action_TA, state=np.zeros((33, 2)))
    result, _ = imported(run.root, tmp_path / "clips", labels=str(tmp_path / "clips"), generator="sora")
    assert (result.metrics["num_encoded"], result.metrics["num_labelled"]) == (2, 1)
    jobs = read_jobs(run.jobs)
    assert len(jobs) == 4 and {job.clip_id for job in jobs[:2]} == before.keys()
    first, second = (job for job in jobs if job.is_imported)
    info = probe(run.clip_file(first.clip_id))
    assert (info.height, info.width, info.fps, info.num_frames) == (HEIGHT, WIDTH, 16, 17)
    label = np.array(pq.read_table(run.label_file(first.clip_id))["action"].to_pylist(), np.float32)
    np.testing.assert_array_equal(label, action_TA[::2])  # the rows of the frames that were kept
    assert "resized" in read_journal(run.journal, "generate")[first.clip_id].metrics["how"]
    result = stage("generate", run.root)
    assert result.metrics["num_jobs"] == 2 and result.metrics["num_left"] == 0  # none of them is to be generated
    np.savez(tmp_path / f"{second.clip_id}.npz", action=action_TA[::2], state=np.zeros((17, 2)))
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"{second.clip_id}.npz").rename(tmp_path / f"theirs/{second.clip_id}.npz")
    labeled = stage("label", run.root, label={"from_folder": str(tmp_path / "theirs"), "labeled_by": "theirs"})
    assert (labeled.metrics["num_labelled"], labeled.metrics["num_already_done"]) == (1, 3)
    stage("curate", run.root, curate=lenient())
    stage("export", run.root)
    rows = {row["clip_id"]: row for row in provenance(run)}
    assert len(rows) == 4
    assert {rows[clip]["model"] for clip in before} == {"mini-random"} and rows[first.clip_id]["model"] == "sora"
    assert rows[first.clip_id]["seed"] is None and rows[first.clip_id]["prompt"] is None
    assert all(rows[clip]["seed"] is not None and rows[clip]["idm_held_out"] for clip in before)
    assert rows[first.clip_id]["labeled_by"] == "unknown" and rows[second.clip_id]["labeled_by"] == "theirs"
    assert {clip: sha256_of_file(run.clip_file(clip)) for clip in before} == before


@pytest.mark.parametrize("table", ["csv", "jsonl"])
def test_instructions_come_from_a_table(tmp_path, table):
    write_clips(tmp_path / "clips")
    rows = [{"file_name": f"foreign_{number}.mp4", "text": f"from the table, {number}"} for number in range(2)]
    with (tmp_path / f"clips/metadata.{table}").open("w", newline="") as stream:
        if table == "csv":
            writer = csv.DictWriter(stream, ["file_name", "text"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    _, run = imported(tmp_path / "run", tmp_path / "clips")
    assert [job.instruction for job in read_jobs(run.jobs)] == ["from the table, 0", "from the table, 1"]


def test_a_lerobot_dataset_brings_its_videos_labels_and_robot(tmp_path):
    dataset = write_lerobot_v21(tmp_path / "dataset", num_episodes=2, num_frames=24, height=HEIGHT, width=WIDTH)
    result, run = imported(tmp_path / "run", dataset, generator="sim")
    assert (result.metrics["num_imported"], result.metrics["num_labelled"]) == (2, 2)
    assert run.robot_features().action_names == ("x", "y", "gripper")
    truth = pq.read_table(next(dataset.glob("data/*/episode_000001.parquet")))["action"].to_pylist()
    label = pq.read_table(run.label_file(read_jobs(run.jobs)[1].clip_id))["action"].to_pylist()
    np.testing.assert_allclose(label, truth)
    stage("curate", run.root, curate=lenient())
    assert stage("export", run.root).metrics["episodes"] == 2
    without, run = imported(tmp_path / "without", dataset, own_labels=False)
    assert (without.metrics["num_imported"], without.metrics["num_labelled"]) == (2, 0)
    assert not list(run.labels.rglob("*.parquet")), "left to an inverse-dynamics model"


def test_labels_of_a_lerobot_dataset_go_to_the_clips_that_bear_its_numbers(tmp_path):
    dataset = write_lerobot_v21(tmp_path / "dataset", num_episodes=3, num_frames=9, height=HEIGHT, width=WIDTH)
    videos = write_clips(tmp_path / "clips", num=1)
    write_video(tmp_path / "clips/episode_000002.mp4", videos[0][::-1], 16)
    (tmp_path / "clips/episode_000002.txt").write_text("third")
    result, run = imported(tmp_path / "run", tmp_path / "clips", labels=str(dataset))
    assert result.metrics["num_labelled"] == 2  # foreign_0 and episode_000002
    third = next(job for job in read_jobs(run.jobs) if job.instruction == "third")
    truth = pq.read_table(next(dataset.glob("data/*/episode_000002.parquet")))["action"].to_pylist()
    np.testing.assert_allclose(pq.read_table(run.label_file(third.clip_id))["action"].to_pylist(), truth)
    assert any("episode_000001.parquet" in note and "not used" in note for note in result.notes)


def test_what_does_not_fit_is_refused_alone_with_its_reason(tmp_path):
    clips = tmp_path / "clips"
    write_clips(clips)
    (clips / "foreign_1.txt").unlink()
    write_video(clips / "short.mp4", moving_square(1, 1, HEIGHT, WIDTH), 16)
    (clips / "short.txt").write_text("blink")
    (clips / "broken.mp4").write_bytes((clips / "foreign_0.mp4").read_bytes()[:900])
    (clips / "broken.txt").write_text("broken")
    labels = tmp_path / "labels"
    labels.mkdir()
    np.savez(labels / "foreign_0.npz", action=np.zeros((5, 3)))
    np.savez(labels / "nobody.npz", action=np.zeros((5, 3)))
    (clips / "good.txt").write_text("good")
    write_video(clips / "good.mp4", moving_square(2, NUM_FRAMES, HEIGHT, WIDTH), 16)
    result, run = imported(tmp_path / "run", clips, labels=str(labels))
    assert (result.metrics["num_imported"], result.metrics["num_refused"]) == (1, 4)
    told = "\n".join(result.notes)
    for reason in ("foreign_0.mp4: numbers of rows and frames do not match", "foreign_1.txt does not exist",
                   "short.mp4: shorter than", "broken.mp4", "nobody.npz"):  # fmt: skip
        assert reason in told, told
    assert [job.instruction for job in read_jobs(run.jobs)] == ["good"]


def test_labels_that_do_not_fit_fail_their_clip_alone(tmp_path):
    write_clips(tmp_path / "clips", num=3)
    labels = tmp_path / "labels"
    labels.mkdir()
    good = np.zeros((NUM_FRAMES, 3))
    np.savez(labels / "foreign_0.npz", action=good)
    np.savez(labels / "foreign_1.npz", action=np.full((NUM_FRAMES, 3), np.nan))
    np.savez(labels / "foreign_2.npz", joints=good)
    result, _ = imported(tmp_path / "run", tmp_path / "clips", labels=str(labels))
    assert (result.metrics["num_labelled"], result.metrics["num_labels_failed"]) == (1, 2) and result.partial
    told = "\n".join(result.notes)
    assert "27 values that are not finite" in told and "joints" in told and "has no actions" in told


def test_pickled_arrays_are_never_loaded(tmp_path):
    write_clips(tmp_path / "clips", num=1)
    (tmp_path / "labels").mkdir()
    np.savez(tmp_path / "labels/foreign_0.npz", action=np.array([{"a": 1}], dtype=object))
    result, _ = imported(tmp_path / "run", tmp_path / "clips", labels=str(tmp_path / "labels"))
    assert result.metrics["num_labels_failed"] == 1 and "pickle" in "\n".join(result.notes).lower()


def test_another_instruction_for_the_same_video_is_told(tmp_path):
    write_clips(tmp_path / "clips", num=1)
    _, run = imported(tmp_path / "run", tmp_path / "clips")
    first = read_jobs(run.jobs)[0]
    (tmp_path / "clips/foreign_0.txt").write_text("a better text")
    result, _ = imported(tmp_path / "run", tmp_path / "clips")
    assert any(f"dreamgen reject {first.clip_id}" in note for note in result.notes)


def test_a_dry_run_writes_nothing_and_no_clips_is_an_error(tmp_path):
    write_clips(tmp_path / "clips")
    settings = run_settings(tmp_path / "run", import_clips={"clips": [str(tmp_path / "clips")]})
    assert run_stage("import", settings, dry_run=True)[-1].metrics["num_clips"] == 2
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="no clips are named"):
        run_stage("import", run_settings(tmp_path / "run"))
