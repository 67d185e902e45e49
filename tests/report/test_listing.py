"""What the report's list is made from: verdicts and scores as columns, the clips chosen, and their curves."""

import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest

from dreamgen.config.loading import settings_from_dict
from dreamgen.extensions.score import SCORES
from dreamgen.report.clips import VERDICTS, choose_rows, iter_clips, iter_failures, read_clips
from dreamgen.report.curves import MAX_CURVES, curves_of, num_points, read_curves
from dreamgen.report.gather import gather
from dreamgen.report.listing import json_for_html, list_clips
from dreamgen.report.plots import distribution
from dreamgen.report.scores import NUM_WORST, limit_words, read_scores
from dreamgen.run.jobs import read_jobs, write_jobs
from dreamgen.run.journal import Journal
from dreamgen.run.records import JournalRecord
from tests.fixtures.runs import make_run
from tests.report.scored_run import NUM_FRAMES, make_scored_run, motion_of, write_ramps

NUM_CLIPS = 60


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_scored_run(tmp_path_factory.mktemp("listing") / "run", NUM_CLIPS)


@pytest.fixture(scope="module")
def view(run):
    return gather(run)


def column(view, name):
    return next(column for column in view.scores if column.name == name)


def details_of(listing):
    return [clip for pack in listing.packs for clip in json.loads(zlib.decompress(base64.b64decode(pack)))]


def test_verdicts_follow_from_the_latest_record_of_each_stage(tmp_path):
    run = make_run(tmp_path / "run", num_clips=5, rejected=1, failed=1)
    ids = [job.clip_id for job in read_jobs(run.jobs)]
    with Journal(run.journal, "reject") as journal:
        journal.append(JournalRecord(ids[1], "reject", "rejected", reason="rejected by hand"))
        journal.append(JournalRecord(ids[2], "reject", "rejected"))
        journal.append(JournalRecord(ids[2], "reject", "ok"))
    with Journal(run.journal, "label") as journal:
        journal.append(JournalRecord(ids[3], "label", "failed", error="ValueError: no"))
        journal.append(JournalRecord("0" * 20, "label", "failed", error="of no job"))
    jobs = read_jobs(run.jobs)
    write_jobs(run.jobs, [*jobs, replace(jobs[0], clip_id="f" * 20)])
    clips = read_clips(run)
    assert [VERDICTS[code] for code in clips.verdict_N] == [
        "accepted", "rejected", "accepted", "failed", "rejected", "failed", "waiting",
    ]  # fmt: skip
    assert clips.num_with("label", "ok", "rejected") == 4 and clips.num_with("label", "failed") == 1
    assert [(failure.job.clip_id, failure.record.stage) for failure in iter_failures(run, clips, 5)] == [
        (ids[3], "label"), (ids[5], "generate"),
    ]  # fmt: skip
    assert len([*iter_failures(run, clips, 1)]) == 1
    assert clips.models == {"mini-random"} and (clips.num_unchecked, clips.num_safety_known) == (5, 5)


def test_clips_are_read_in_batches_of_jobs(run, monkeypatch):
    clips = read_clips(run)
    monkeypatch.setattr("dreamgen.report.clips.BATCH", 7)
    rows = np.arange(1, NUM_CLIPS, 2)
    found = list(iter_clips(run, clips, rows))
    jobs = read_jobs(run.jobs)
    assert [clip.job for clip in found] == [jobs[row] for row in rows]
    assert all(clip.metrics["motion"] == motion_of(clip.row) for clip in found)
    assert [bool(clip.reasons) for clip in found] == [row % 3 == 0 for row in rows]


def test_a_clip_whose_id_is_no_plain_name_is_not_listed(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0)
    jobs = read_jobs(run.jobs)
    hostile = "../x"
    write_jobs(run.jobs, [jobs[0], replace(jobs[1], clip_id=hostile)])
    run.clip_file(jobs[0].clip_id).with_name(f"{hostile[3:]}.mp4").write_bytes(b"x")
    assert read_clips(run).is_shown_N.tolist() == [True, False]


@pytest.mark.parametrize(
    ("accepted", "rejected", "waiting", "max_clips", "expected"),
    [
        (30, 10, 0, 8, (6, 2)),
        (100, 1, 0, 10, (9, 1)),
        (3, 2, 5, 24, (3, 2)),
        (0, 50, 0, 4, (0, 4)),
        (5, 5, 0, 0, (0, 0)),
        (9, 9, 0, 1, (1, 0)),
        (700_000, 300_000, 0, 10_000, (7000, 3000)),
    ],
)
def test_clips_are_chosen_in_their_share(accepted, rejected, waiting, max_clips, expected):
    codes = [VERDICTS.index(verdict) for verdict in ("accepted", "rejected", "waiting")]
    verdict_N = np.repeat(codes, (accepted, rejected, waiting))
    rows = choose_rows(verdict_N, verdict_N != codes[2], max_clips)
    assert (np.diff(rows) > 0).all(), "in planned order, none twice"
    assert tuple(np.sum(verdict_N[rows] == code) for code in codes[:2]) == expected
    shown = rows[verdict_N[rows] == codes[0]]
    if len(shown) > 1:
        assert (shown[0], shown[-1]) == (0, accepted - 1), "spread over the plan"


def test_scores_come_from_the_records_and_their_words_from_the_registries(view):
    assert [score.name for score in view.scores] == ["motion", "first_frame_psnr_db", "cut_score", "likes"]
    motion, psnr, cut, likes = view.scores
    assert motion.value_N.tolist() == [motion_of(n) for n in range(NUM_CLIPS)]
    assert (motion.direction, motion.limits, motion.about) == ("min", (0.5,), SCORES.get("motion").summary)
    assert motion.is_missed_N.tolist() == [n % 3 == 0 for n in range(NUM_CLIPS)]
    assert limit_words(motion, 0.5) == "min 0.5"
    assert (psnr.label, psnr.unit, np.isnan(psnr.value_N).sum()) == ("first frame PSNR", "dB", NUM_CLIPS // 5)
    assert (cut.direction, int(cut.is_missed_N.sum())) == ("max", sum(1.0 + n / 10 > 6.0 for n in range(NUM_CLIPS)))
    assert (likes.direction, likes.about, likes.limits) == (None, "", ()), "its package is not installed"


def test_the_worst_clips_lie_beyond_the_threshold(view):
    everyone = np.ones(NUM_CLIPS, bool)
    assert column(view, "motion").worst_rows(everyone) == [3 * n for n in range(NUM_WORST)]
    assert column(view, "cut_score").worst_rows(everyone) == [NUM_CLIPS - 1 - n for n in range(NUM_WORST)]
    assert column(view, "likes").worst_rows(everyone) == [], "which end is the bad one is not known"
    assert column(view, "motion").worst_rows(np.arange(NUM_CLIPS) > 3, 2) == [6, 9], "of those that can be shown"


def test_changed_thresholds_are_told_apart(tmp_path):
    run = make_scored_run(tmp_path / "run", 4)
    with Journal(run.journal, "curate") as journal:
        metrics = {"motion": 1.0, "min_motion": 1.5, "sharpness": float("nan"), "flag": True}
        journal.append(JournalRecord(read_jobs(run.jobs)[1].clip_id, "curate", "rejected", metrics=metrics))
    motion, *_ = read_scores(run, read_clips(run))
    assert motion.limits == (0.5, 1.5) and motion.is_missed_N.tolist() == [True, True, False, True]
    listing = list_clips(gather(run), 10, str)
    score = next(score for score in listing.index["scores"] if score["name"] == "motion")
    assert score["limits"] == ["min 0.5", "min 1.5"] and score["limit"] == [0, 1, 0, 0]
    assert score["values"] == [motion_of(0), 1.0, motion_of(2), motion_of(3)] and score["missed"] == [0, 1, 3]
    assert "flag" not in [score["name"] for score in listing.index["scores"]]
    sharpness = next(score for score in listing.index["scores"] if score["name"] == "sharpness")
    assert sharpness["values"] == [None] * 4, "not a number is no value"


def test_the_list_has_the_worst_clips_beside_the_chosen_ones(view):
    listing = list_clips(view, 6, str)
    worst = {row for score in view.scores for row in score.worst_rows(view.clips.is_shown_N)}
    assert worst < set(listing.rows.tolist()) and len(listing.rows) <= 6 + len(worst)
    for score, words in zip(view.scores, listing.index["scores"], strict=True):
        assert listing.rows[words["worst"]].tolist() == score.worst_rows(view.clips.is_shown_N)
    assert len(list_clips(view, 0, str).rows) == 0
    assert len(list_clips(view, 1000, str).rows) == NUM_CLIPS


def test_each_clip_is_listed_with_its_own_values(view, monkeypatch):
    monkeypatch.setattr("dreamgen.report.listing.CLIPS_A_PACK", 7)
    listing, jobs = list_clips(view, 1000, str), read_jobs(view.run.jobs)
    index, details = listing.index, details_of(listing)
    assert len(listing.packs) == -(-NUM_CLIPS // 7) and index["clipsAPack"] == 7
    for n, job in enumerate(jobs):
        assert (index["ids"][n], index["seeds"][n]) == (job.clip_id, str(job.seed))
        assert index["instructions"][index["instruction"][n]] == job.instruction
        assert index["shapes"][index["shape"][n]] == (job.width, job.height, job.num_frames, job.fps)
        assert index["scores"][0]["values"][n] == motion_of(n)
        assert details[n]["notes"] == {"likes": f"note <{n}>"}
        assert details[n]["reasons"] == ([f"motion {motion_of(n)} is below min_motion 0.5"] if n % 3 == 0 else [])
    assert index["scores"][0]["missed"] == list(range(0, NUM_CLIPS, 3))
    assert index["scores"][0]["limits"] == ["min 0.5"] and index["scores"][0]["limit"] is None


def test_what_a_script_element_holds_cannot_end_it():
    hostile = ["</script><script>alert(1)", "<!--", "&lt;", "\u2028\ud800", "方"]
    text = json_for_html(hostile)
    assert json.loads(text) == hostile and text.isascii() and not set("<>&") & set(text)


def test_curves_keep_the_values_within_a_step(tmp_path):
    write_ramps(tmp_path / "a.parquet")
    curves = read_curves(tmp_path / "a.parquet", 240)
    assert curves is not None
    assert (curves["rows"], curves["dims"]) == (NUM_FRAMES, [0, 1]), "the third rests"
    for row, (first, last) in enumerate([(0.0, 1.0), (3.0, 1.0)]):
        low, high = curves["low"][row], curves["high"][row]
        values = low + np.cumsum(curves["steps"][row]) / 255 * (high - low)
        assert np.abs(values - np.linspace(first, last, NUM_FRAMES)).max() <= (high - low) / 255
    std = np.array(curves["std_steps"][0]) / 255 * curves["std_high"][0]
    assert np.abs(std - np.linspace(0, 0.5, len(std))).max() < 0.5 / 255 + 1e-6
    write_ramps(tmp_path / "b.parquet", with_std=False)
    assert "std_steps" not in (read_curves(tmp_path / "b.parquet", 240) or {})
    assert read_curves(tmp_path / "missing.parquet", 240) is None


def test_curves_are_of_the_dimensions_that_move_most():
    action_TA = np.zeros((20, 44))
    for dim in range(30, 42):
        action_TA[:, dim] = np.linspace(0, dim / 100, 20)
    curves = curves_of(action_TA, None, 10)
    assert curves["dims"] == list(range(42 - MAX_CURVES, 42)) and {len(steps) for steps in curves["steps"]} == {10}
    assert curves_of(np.ones((20, 3)), np.ones((20, 3)), 10)["dims"] == []
    assert curves_of(action_TA[:1] + np.eye(1, 44), None, 10)["dims"] == [], "a single frame does not move"


def test_ten_thousand_clips_have_fewer_points_each():
    assert num_points(1) == num_points(24) == 240
    assert 60 <= num_points(10_000) < 93
    assert num_points(10**6) == 32


def test_distributions_count_every_clip_and_show_the_threshold(view):
    plot = str(distribution(column(view, "motion"), view.clips))
    assert plot.count('class="mark"') == 1 and "rect" in plot and "accepted" in plot and "rejected" in plot
    empty = replace(column(view, "motion"), value_N=np.full(NUM_CLIPS, np.nan))
    assert "No clip has a value" in distribution(empty, view.clips)
    same = replace(empty, value_N=np.full(NUM_CLIPS, 3.0), limit_N=np.full(NUM_CLIPS, -1e9))
    assert 'x1="1.0"' in distribution(same, view.clips), "a threshold far away is drawn at the end"


def test_settings_of_earlier_reports_load():
    assert settings_from_dict({"report": {"max_clips": 24}}).report.max_clips == 24


def test_a_plan_without_jobs_is_no_error(tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    write_jobs(run.jobs, [])
    assert len(read_clips(run)) == 0 and gather(run).first_job is None
