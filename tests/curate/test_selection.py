"""Best of N, balance and near-duplicates: which of the clips that are good enough are left out."""

from dataclasses import replace

import numpy as np
import pytest
import yaml

from dreamgen.config.settings import CurateSettings
from dreamgen.curate.selection import Candidate, clip_quality, deselected, signature_of
from dreamgen.curate.stage import curate
from dreamgen.errors import UserError
from dreamgen.extensions.score import SCORES
from dreamgen.pipeline import run_stage
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder
from tests.curate.test_curate import moving_square, settings_of, static
from tests.finetune.square_world import square_settings, write_square_training_set
from tests.generate.clips import write_generated_run

METRICS = [score for _, score in SCORES.items()]
GRAY = np.random.default_rng(0).uniform(0, 255, (9, 64, 64))


def candidate(job, number, instruction="push", frame="a", **values):
    named = replace(job, clip_id=str(number), instruction=instruction, first_frame_sha256=frame)
    return Candidate(named, values, signature_of(GRAY + number * 2))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return write_generated_run(tmp_path_factory.mktemp("job"), [static()[:2]])[0]


def test_the_best_of_each_first_frame_and_instruction_are_accepted(job):
    clips = [candidate(job, n, frame="ab"[n % 2], motion=n, noise=1.0) for n in range(6)]
    out = deselected(clips, CurateSettings(best_of=2), METRICS)
    assert sorted(out) == ["0", "1"] and out["0"].startswith("not among the best 2 of its first frame and instruction")
    assert sorted(deselected(clips, CurateSettings(best_of=1, best_by="noise"), METRICS)) == ["2", "3", "4", "5"]
    with pytest.raises(UserError, match="best_by names no metric: beauty, joy"):
        deselected(clips, CurateSettings(best_of=1, best_by="beauty,noise, joy"), METRICS)


def test_the_named_metrics_rank_and_all_do_where_none_of_them_was_measured(job):
    uncertainty, difference = [0.3, 0.1, 0.2], [2.0, 3.0, 1.0]
    clips = [
        candidate(job, n, motion=-n, noise=n, label_uncertainty=uncertainty[n], demonstration_difference=difference[n])
        for n in range(3)
    ]
    values = [one.values for one in clips]
    assert clip_quality(values, "noise", METRICS).tolist() == [0, -1, -2]
    assert clip_quality(values, "label_uncertainty,demonstration_difference", METRICS).tolist() == [0.25, 0.5, 0.75]
    assert sorted(deselected(clips, CurateSettings(best_of=1), METRICS)) == ["0", "1"]
    bare = [{"motion": one["motion"], "noise": one["noise"]} for one in values]
    assert clip_quality(bare, CurateSettings().best_by, METRICS).tolist() == [1, 0.5, 0]


def test_a_run_refuses_unknown_metrics_before_it_reads_a_clip(tmp_path, monkeypatch):
    write_generated_run(tmp_path, [moving_square()])
    monkeypatch.setattr("dreamgen.curate.stage.process_clips", lambda *_: pytest.fail("clips were read"))
    with pytest.raises(UserError, match="best_by names no metric: beauty"):
        curate(settings_of(tmp_path, best_share=0.5, best_by="beauty"))


def test_the_best_share_of_all_clips_is_accepted(job):
    clips = [candidate(job, n, frame=str(n), noise=float(n)) for n in range(10)]
    out = deselected(clips, CurateSettings(best_share=0.7, best_by="noise"), METRICS)
    assert sorted(out) == ["7", "8", "9"]
    assert out["9"] == "not in the best 70%: rank 10 of 10, quality -9"
    assert not deselected(clips, CurateSettings(best_share=1), METRICS)


def test_all_metrics_count_by_their_ranks_in_the_good_direction(job):
    pairs = [(1, 9.0), (3, 1.0), (2, 2.0)]  # motion: more is better; noise: less is better
    clips = [candidate(job, n, motion=m, noise=s) for n, (m, s) in enumerate(pairs)]
    assert sorted(deselected(clips, CurateSettings(best_of=1), METRICS)) == ["0", "2"]


def test_balance_bounds_the_ratio_between_instructions(job):
    clips = [candidate(job, n, "push" if n < 6 else "pull", frame=str(n), motion=-n, noise=0) for n in range(8)]
    out = deselected(clips, CurateSettings(balance=1.5), METRICS)
    assert sorted(out) == ["3", "4", "5"]
    assert out["5"].startswith("balance: 6 clips of its instruction, 3 are accepted; rank 6")


def test_near_duplicates_of_an_earlier_clip_are_left_out(job):
    clips = [candidate(job, n) for n in (0, 1, 2)]
    twin = replace(clips[1], job=replace(job, clip_id="twin", instruction="push"))
    elsewhere = replace(clips[1], job=replace(job, clip_id="elsewhere", instruction="pull"))
    out = deselected([*clips, twin, elsewhere], CurateSettings(min_difference=0.5), METRICS)
    assert out == {"twin": "near-duplicate of 1: difference 0.00 < 0.5"}


def test_a_run_leaves_out_siblings_and_takes_them_back_without_reading_a_clip(tmp_path):
    jobs = write_generated_run(tmp_path, [moving_square(), moving_square(speed=5), moving_square(), static()])
    first = curate(settings_of(tmp_path))
    assert first.metrics["num_accepted"] == 3
    result = curate(settings_of(tmp_path, min_difference=0.05))
    records = read_journal(RunFolder(tmp_path).journal, "curate")
    assert result.metrics["num_accepted"] == 2
    assert records[jobs[2].clip_id].reason.startswith(f"near-duplicate of {jobs[0].clip_id}: difference 0.00")
    assert records[jobs[3].clip_id].reason.startswith("static"), "what is bad anyhow keeps its own reasons"
    assert curate(settings_of(tmp_path)).metrics["num_accepted"] == 3


def test_calibrate_writes_a_preset_that_accepts_the_demonstrations(tmp_path):
    write_square_training_set(tmp_path, num_episodes=8, num_frames=34)
    settings = square_settings(tmp_path)
    (result,) = run_stage(
        "curate", replace(settings, curate=CurateSettings(calibrate_through_vae=False)), calibrate=True
    )
    limits = yaml.safe_load(result.outputs["thresholds"].read_text())["curate"]
    assert result.metrics["num_clips"] == 16 and result.metrics["num_recordings"] == 8
    assert limits["max_flow_speed"] > 0 and set(limits) <= {s.threshold.setting for _, s in SCORES.items()}
    assert result.metrics["rejected_low"] <= result.metrics["rejected"] <= result.metrics["rejected_high"]
    assert any("95 % interval" in note for note in result.notes)


def test_calibrate_needs_a_few_clips(tmp_path):
    write_square_training_set(tmp_path, num_episodes=2, num_frames=20)
    settings = replace(square_settings(tmp_path), curate=CurateSettings(calibrate_through_vae=False))
    with pytest.raises(UserError, match="too few real clips to calibrate on"):
        curate(settings, calibrate=True)
