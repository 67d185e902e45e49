"""Label and curate of a run share one pass over the clips, with the outcome of the two stages alone."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from dreamgen.cluster.clip_pass import process_clips
from dreamgen.curate.stage import Curator, curate
from dreamgen.data import video as video_module
from dreamgen.data.clip_context import ClipContext
from dreamgen.data.trajectory import read_trajectory
from dreamgen.data.video import decode_frames
from dreamgen.label.stage import Labeler, label, label_clip
from dreamgen.models.idm.model import InverseDynamics, small_decoded
from dreamgen.pipeline import check_datasets, label_and_curate
from dreamgen.report import report
from dreamgen.run.jobs import read_jobs
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder
from export import export_datasets
from finetune.inverse_dynamics import finetune_idm
from tests.finetune.square_world import NUM_FRAMES, square_episode, square_settings, write_square_training_set
from tests.generate.clips import write_generated_run

NUM_CLIPS = 3


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """A run with an inverse-dynamics model, trained for a few steps, and three clips."""
    root = tmp_path_factory.mktemp("one_pass") / "run"
    write_square_training_set(root)
    finetune_idm(square_settings(root, num_steps=5))
    write_generated_run(root, [square_episode(1000 + number, NUM_FRAMES)[0] for number in range(NUM_CLIPS)])
    return root


@pytest.fixture
def run(generated, tmp_path):
    return RunFolder(Path(shutil.copytree(generated, tmp_path / "run")))


@pytest.fixture
def opened(monkeypatch):
    """Count how often each file is opened, by the function of dreamgen.data.video that opens it."""
    counts: Counter[tuple[str, str]] = Counter()
    open_video = video_module._open

    def counting(path):
        counts[Path(path).stem, sys._getframe(1).f_code.co_name] += 1
        return open_video(path)

    monkeypatch.setattr(video_module, "_open", counting)
    return counts


def clip_ids(run):
    return sorted(path.stem for path in run.clips.rglob("*.mp4"))


def outcome(run):
    """Return what both stages wrote, without the times."""
    records = {
        (stage, clip_id): replace(record, time_s=0.0)
        for stage in ("label", "curate") for clip_id, record in read_journal(run.journal, stage).items()
    }  # fmt: skip
    labels = {clip_id: run.label_file(clip_id).read_bytes() for clip_id in clip_ids(run)}
    return records, labels, pq.read_table(run.scores / "scores.parquet").to_pylist()


def together(settings):
    return process_clips(settings, Labeler(settings), Curator(settings))


def test_each_clip_is_decoded_once_for_labels_scores_and_verdict(run, opened):
    results = together(square_settings(run.root))
    assert [result.stage for result in results] == ["label", "curate"]
    assert results[0].metrics["num_labelled"] == results[1].metrics["num_clips"] == NUM_CLIPS
    assert {clip_id: opened[clip_id, "decode_frames"] for clip_id in clip_ids(run)} == dict.fromkeys(clip_ids(run), 1)


def test_a_run_decodes_a_clip_once_for_the_stages_and_once_for_each_format_that_stores_pixels(run, monkeypatch):
    opened: Counter[str] = Counter()
    open_file = av.open

    def counting(name, *words, **named):
        path = Path(str(name).removeprefix("file:"))
        if run.clips in path.parents:
            opened[path.stem] += 1
        return open_file(name, *words, **named)

    monkeypatch.setattr(av, "open", counting)
    settings = square_settings(run.root)
    accept_all = replace(settings.curate, min_motion=0.0, min_first_frame_psnr_db=0.0, max_cut_score=1000.0)
    formats = ["lerobot-v3.0", "lerobot-v2.1", "robomimic"]
    settings = replace(
        settings,
        curate=accept_all,
        export=replace(settings.export, formats=formats, num_workers=1, allow_weak_labels=True),
    )

    def opens_of(stage):
        opened.clear()
        stage(settings)
        return [opened[clip_id] for clip_id in clip_ids(run)]

    assert opens_of(label_and_curate) == [1] * NUM_CLIPS  # packets are counted while they are decoded
    # One look, whose packets also give the statistics; packets for v3.0 (v2.1 copies the file); robomimic's pixels; the
    # card's pictures, which all formats share.
    assert opens_of(export_datasets) == [1 + 1 + 1 + 1] * NUM_CLIPS
    assert opens_of(check_datasets) == [0] * NUM_CLIPS  # it reads the datasets
    assert opens_of(report) == [1] * NUM_CLIPS  # a poster


def test_alone_each_stage_decodes_each_clip_once(run, opened):
    for stage, times in ((label, 1), (curate, 2)):
        stage(square_settings(run.root))
        assert [opened[clip_id, "decode_frames"] for clip_id in clip_ids(run)] == [times] * NUM_CLIPS


def test_the_report_decodes_only_a_poster(run, opened, monkeypatch):
    together(square_settings(run.root))
    opened.clear()
    decoded: Counter[str] = Counter()
    decode_frames = video_module.decode_frames

    def counting(path, **options):
        for frame in decode_frames(path, **options):
            decoded[Path(path).stem] += 1
            yield frame

    monkeypatch.setattr(video_module, "decode_frames", counting)
    report(square_settings(run.root))
    assert decoded == dict.fromkeys(clip_ids(run), 1)


def test_labels_come_from_small_frames_as_the_training_reads_them_and_whole_frames_are_not_kept(run):
    model = InverseDynamics.load(run.idm)
    made_by = {"idm_sha256": "", "has_state": True, "states_from": "frames"}
    for job in read_jobs(run.jobs):
        clip = ClipContext(run, job)
        assert label_clip(clip, model, made_by, {}).status == "ok"
        assert "video_THWC" not in vars(clip), "whole frames are not kept"
        frames = [small_decoded(frame, model.config.image_px, model.config.views) for frame in decode_frames(clip.file)]
        label, expected = read_trajectory(run.label_file(job.clip_id)), model.predict_small(np.stack(frames))
        assert label.action_TA is not None and label.state_TS is not None and expected.state_TS is not None
        assert (label.action_TA == expected.action_TA).all() and (label.state_TS == expected.state_TS).all()


def test_a_clip_that_ends_early_is_not_labeled_and_is_rejected(run, opened):
    short = clip_ids(run)[0]
    data = run.clip_file(short).read_bytes()
    run.clip_file(short).write_bytes(data[: int(len(data) * 0.8)])  # its header comes first and states all frames
    labeled, _ = together(square_settings(run.root))
    assert labeled.metrics["num_failed"] == 1 and not run.label_file(short).exists()
    assert "the file ends within frame" in (read_journal(run.journal, "curate")[short].reason or "")


def test_together_writes_what_the_stages_write_alone(run, tmp_path):
    copy = RunFolder(Path(shutil.copytree(run.root, tmp_path / "alone")))
    together(square_settings(run.root))
    label(square_settings(copy.root))
    curate(square_settings(copy.root))
    assert outcome(run) == outcome(copy)


def test_what_is_labeled_stays_and_every_clip_is_curated(run):
    label(square_settings(run.root))
    lost = clip_ids(run)[1]
    run.label_file(lost).unlink()
    before = {clip_id: run.label_file(clip_id).stat().st_mtime_ns for clip_id in clip_ids(run) if clip_id != lost}
    labeled, curated = together(square_settings(run.root))
    assert labeled.metrics["num_labelled"] == 1 and labeled.metrics["num_already_done"] == NUM_CLIPS - 1
    assert curated.metrics["num_clips"] == NUM_CLIPS
    assert {clip_id: run.label_file(clip_id).stat().st_mtime_ns for clip_id in before} == before


def test_a_damaged_clip_fails_one_stage_is_rejected_by_the_other_and_stops_neither(run):
    damaged = clip_ids(run)[0]
    run.clip_file(damaged).write_bytes(b"no video")
    labeled, curated = together(square_settings(run.root))
    assert labeled.partial and labeled.metrics["num_failed"] == 1
    records = read_journal(run.journal, "curate")
    assert records[damaged].reason.startswith("not decodable") and curated.metrics["num_clips"] == NUM_CLIPS


def test_labels_are_there_for_scores(run):
    from dreamgen.extensions.score import SCORES, Score, Threshold

    seen = []
    score = Score(
        name="num_actions", summary="rows of the label", rejection="{value}", measure=lambda clip: len(clip.action_TA),
        threshold=Threshold(setting="min_num_actions", default=None, help="rows of the label"),
    )  # fmt: skip
    SCORES.register("num_actions", score)
    try:
        together(square_settings(run.root))
        seen = [row["num_actions"] for row in pq.read_table(run.scores / "scores.parquet").to_pylist()]
    finally:
        SCORES.unregister("num_actions")
    assert seen == [NUM_FRAMES] * NUM_CLIPS
