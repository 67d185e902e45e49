"""Curate: each score separates its kind of bad clip from good ones, and each verdict gives its reasons."""

from dataclasses import replace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from dreamgen.config.loading import settings_from_dict
from dreamgen.config.settings import CurateSettings
from dreamgen.curate import score_table as score_table_module
from dreamgen.curate import stage as curate_module
from dreamgen.curate.scores.cut_score import cut_score
from dreamgen.curate.scores.first_frame_psnr_db import MAX_PSNR_DB, psnr_db
from dreamgen.curate.scores.motion import motion
from dreamgen.curate.stage import curate
from dreamgen.data.clip_context import small_gray
from dreamgen.data.timeline import resampled_indices
from dreamgen.data.video import read_video
from dreamgen.errors import UserError
from dreamgen.run.journal import Journal, read_journal
from dreamgen.run.records import JournalRecord
from dreamgen.run.run_folder import RunFolder
from tests.generate.clips import replan, write_generated_run

LIMITS = CurateSettings()
NUM_FRAMES = 17


def settings_of(root, **curate_settings):
    return settings_from_dict({"out": str(root), "model": {"path": "mini"}, "curate": curate_settings})


def ground(seed: int) -> np.ndarray:
    """A smooth random picture, frame_HWC."""
    coarse = np.random.default_rng(seed).integers(40, 210, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (192, 128), interpolation=cv2.INTER_LINEAR)


def moving_square(seed: int = 0, num_frames: int = NUM_FRAMES, speed: float = 6) -> np.ndarray:
    video_THWC = np.repeat(ground(seed)[None], num_frames, axis=0)
    for t in range(num_frames):
        left = round(8 + speed * t)
        video_THWC[t, 40:80, left : left + 40] = (255, 255, 255)
    return video_THWC


def static(noise: float = 0.0) -> np.ndarray:
    video_THWC = np.repeat(ground(0)[None], NUM_FRAMES, axis=0).astype(np.float64)
    video_THWC += np.random.default_rng(0).normal(0, noise, video_THWC.shape)
    return video_THWC.round().clip(0, 255).astype(np.uint8)


def hard_cut() -> np.ndarray:
    video_THWC = moving_square(0)
    video_THWC[9:] = moving_square(5)[9:]
    return video_THWC


def test_motion_tells_still_pictures_from_slow_movement():
    assert motion(small_gray(static())) == 0
    assert motion(small_gray(static(noise=2))) < LIMITS.min_motion
    assert motion(small_gray(moving_square(speed=1))) > LIMITS.min_motion
    assert motion(small_gray(moving_square()[:1])) == 0


def test_motion_is_the_mean_change_over_half_a_clip():
    gray_THW = np.zeros((4, 2, 2), np.float32)
    gray_THW[:, 0, 0] = (0, 10, 40, 90)
    # Half a clip: |40 - 0| and |90 - 10|; a third: 10, 30, 50; each over four pixels.
    assert motion(gray_THW) == pytest.approx(60 / 4)


def test_motion_sees_what_comes_back_after_half_a_clip():
    video_THWC = moving_square(num_frames=32, speed=4)
    video_THWC[16:] = video_THWC[:16]
    assert motion(small_gray(video_THWC)) > LIMITS.min_motion


def test_psnr_by_hand():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr_db(black, black) == MAX_PSNR_DB
    assert psnr_db(black + 255, black) == pytest.approx(0)
    assert psnr_db(black, black + 16) == pytest.approx(10 * np.log10(255**2 / 256))
    assert psnr_db(black, black[:2]) is None


def test_cut_score_tells_cuts_from_movement_and_noise():
    assert cut_score(small_gray(hard_cut())) > LIMITS.max_cut_score
    assert cut_score(small_gray(moving_square())) < LIMITS.max_cut_score / 2
    assert cut_score(small_gray(static())) == 0
    random = np.random.default_rng(0)
    assert cut_score(small_gray(random.integers(0, 256, (NUM_FRAMES, 128, 192, 3), dtype=np.uint8))) < 2
    pause_then_move = np.concatenate([np.repeat(moving_square()[:1], 12, axis=0), moving_square()])
    assert cut_score(small_gray(pause_then_move)) < LIMITS.max_cut_score
    assert cut_score(small_gray(moving_square()[:2])) == 0


def test_each_kind_of_bad_clip_gets_its_reason(tmp_path):
    videos = [moving_square(), static(), hard_cut(), moving_square(1), moving_square(2), moving_square(3)]
    first_frames = [video[0] for video in videos]
    first_frames[3] = 255 - first_frames[3]
    jobs = write_generated_run(tmp_path, videos, first_frames)
    replan(tmp_path, jobs, 4, num_frames=NUM_FRAMES + 4)
    run = RunFolder(tmp_path)
    clip = run.clip_file(jobs[5].clip_id)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    result = curate(settings_of(tmp_path))
    assert result.metrics == {"num_clips": 6, "num_accepted": 1, "num_rejected": 5, "num_failed": 0}
    assert not result.partial
    records = read_journal(run.journal, "curate")
    reasons = [records[job.clip_id].reason for job in jobs]
    assert reasons[0] is None and records[jobs[0].clip_id].status == "ok"
    static_reasons, cut_reasons = reasons[1].split("; "), reasons[2].split("; ")
    assert static_reasons[0].startswith("static: motion 0.") and static_reasons[0].endswith("< 0.5")
    assert static_reasons[1] == "frozen: 100% of the clip stands still > 25%" and len(static_reasons) == 2
    assert cut_reasons[0].startswith("cut: score ") and cut_reasons[0].endswith("> 6")
    assert all(reason.startswith(("cut: ", "jump: ", "colors drift: ", "blurred: ")) for reason in cut_reasons)
    assert reasons[3].startswith("first frame differs: PSNR ") and reasons[3].endswith("dB < 20 dB")
    assert reasons[4] == "wrong length: 17 frames instead of 21"
    assert reasons[5].startswith("not decodable: ")
    table = pq.read_table(result.outputs["scores"]).to_pylist()
    assert [row["clip_id"] for row in table] == [job.clip_id for job in jobs]
    assert [row["verdict"] for row in table] == ["ok"] + ["rejected"] * 5
    assert [row["reasons"] for row in table] == reasons
    assert table[0]["num_frames"] == 17 and table[0]["min_motion"] == 0.5 and table[0]["first_frame_psnr_db"] > 25
    assert table[5]["motion"] is None and table[5]["wanted_num_frames"] == 17


def test_a_first_frame_that_cannot_be_read_fails_its_clip_alone(tmp_path):
    jobs = write_generated_run(tmp_path, [moving_square(), moving_square(1), moving_square(2)])
    run = RunFolder(tmp_path)
    missing, damaged = (run.first_frame_file(job.first_frame_sha256) for job in jobs[:2])
    whole = missing.read_bytes(), damaged.read_bytes()
    missing.unlink()
    damaged.write_bytes(b"no picture")
    result = curate(settings_of(tmp_path))
    assert result.partial
    assert result.metrics == {"num_clips": 3, "num_accepted": 1, "num_rejected": 0, "num_failed": 2}
    records = read_journal(run.journal, "curate")
    for job, path in zip(jobs, (missing, damaged), strict=False):
        record = records[job.clip_id]
        assert record.status == "failed" and path.name in record.error and "Traceback" in record.traceback
    assert [row["verdict"] for row in pq.read_table(result.outputs["scores"]).to_pylist()] == ["failed", "failed", "ok"]
    missing.write_bytes(whole[0])
    damaged.write_bytes(whole[1])
    again = curate(settings_of(tmp_path))
    assert again.metrics["num_accepted"] == 3 and not again.partial


def test_all_reasons_are_listed(tmp_path):
    write_generated_run(tmp_path, [static()], [255 - static()[0]])
    (record,) = [*read_after(tmp_path).values()]
    assert "static" in record.reason and "; first frame differs" in record.reason


def test_a_first_frame_of_another_size_is_a_difference(tmp_path):
    write_generated_run(tmp_path, [moving_square()], [moving_square()[0][:64]])
    (record,) = [*read_after(tmp_path).values()]
    assert record.reason == "first frame differs: its size is not that of the planned one"


def read_after(root, **limits):
    curate(settings_of(root, **limits))
    return read_journal(RunFolder(root).journal, "curate")


def test_new_thresholds_judge_again_and_equal_ones_add_nothing(tmp_path):
    (job,) = write_generated_run(tmp_path, [moving_square()])
    assert read_after(tmp_path)[job.clip_id].status == "ok"
    first = sorted((tmp_path / "journal").glob("curate-*"))
    before = [path.read_bytes() for path in first]
    read_after(tmp_path)
    assert [path.read_bytes() for path in sorted((tmp_path / "journal").glob("curate-*"))] == before
    assert read_after(tmp_path, min_motion=200.0)[job.clip_id].status == "rejected"
    assert read_after(tmp_path)[job.clip_id].status == "ok"


def test_a_clip_without_its_file_is_not_done(tmp_path):
    jobs = write_generated_run(tmp_path, [moving_square(), moving_square(1)])
    RunFolder(tmp_path).clip_file(jobs[0].clip_id).unlink()
    result = curate(settings_of(tmp_path))
    assert result.partial and result.metrics["num_clips"] == 1
    assert jobs[0].clip_id not in read_journal(RunFolder(tmp_path).journal, "curate")


def test_notes_hold_the_first_of_many_rejections_and_the_table_all(tmp_path, monkeypatch):
    monkeypatch.setattr(curate_module, "NUM_NOTES", 2)
    monkeypatch.setattr(score_table_module, "ROWS_AT_ONCE", 3)
    write_generated_run(tmp_path, [static()] * 5 + [moving_square()] * 2)
    result = curate(settings_of(tmp_path))
    assert len(result.notes) == 3 and result.notes[2].startswith("and 3 more")
    assert pq.read_table(result.outputs["scores"])["verdict"].to_pylist() == ["rejected"] * 5 + ["ok"] * 2


def test_only_generated_clips_are_judged(tmp_path):
    jobs = write_generated_run(tmp_path, [moving_square(), moving_square(1)])
    with Journal(tmp_path / "journal", "generate") as journal:
        journal.append(JournalRecord(jobs[0].clip_id, "generate", "failed", error="RuntimeError: x"))
    assert list(read_after(tmp_path)) == [jobs[1].clip_id]
    with Journal(tmp_path / "journal", "generate") as journal:
        journal.append(replace(JournalRecord(jobs[1].clip_id, "generate", "failed"), error="RuntimeError: x"))
    with pytest.raises(UserError, match="no generated clip"):
        curate(settings_of(tmp_path))


def test_real_demonstrations_pass_and_a_cut_between_them_does_not(real_demos):
    paths = sorted((real_demos / "videos").rglob("*.mp4"))[:2]
    grays = []
    for path in paths:
        video_THWC = read_video(path)
        grays.append(small_gray(video_THWC[resampled_indices(len(video_THWC), 20, 16)]))
    for gray_THW in grays:
        for start in range(0, len(gray_THW) - 92, 31):
            window_THW = gray_THW[start : start + 93]
            assert motion(window_THW) > LIMITS.min_motion
            assert cut_score(window_THW) < LIMITS.max_cut_score
    assert cut_score(np.concatenate([grays[0][:46], grays[1][:47]])) > LIMITS.max_cut_score
