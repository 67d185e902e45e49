"""Label: a row a frame for every clip that can be read, and only for those that have none yet."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dreamgen.errors import UserError
from dreamgen.label.stage import label
from dreamgen.models.idm.model import InverseDynamics
from dreamgen.run.journal import Journal, read_journal
from dreamgen.run.records import JournalRecord
from dreamgen.run.run_folder import RunFolder
from finetune.inverse_dynamics import finetune_idm
from tests.finetune.square_world import NUM_FRAMES, square_episode, square_settings, write_square_training_set
from tests.generate.clips import write_generated_run


@pytest.fixture(scope="module")
def idm(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("idm") / "run"
    write_square_training_set(root)
    finetune_idm(square_settings(root))
    return root / "idm"


@pytest.fixture
def run(tmp_path, idm):
    shutil.copytree(idm, tmp_path / "idm")
    jobs = write_generated_run(tmp_path, [square_episode(1000 + number, NUM_FRAMES)[0] for number in range(3)])
    return RunFolder(tmp_path), jobs


def rows_of(run, job, column):
    return np.array(pq.read_table(run.label_file(job.clip_id))[column].to_pylist(), np.float32)


def test_recovers_the_trajectory_of_rendered_clips(run):
    run, jobs = run
    result = label(square_settings(run.root))
    assert result.metrics["num_labelled"] == 3 and not result.partial
    held_out = json.loads((run.idm / "config.json").read_text())["held_out"]["action"]
    assert result.metrics["idm_held_out_mae"] == held_out["mae"]
    for number, job in enumerate(jobs):
        _, action_TA, state_TS = square_episode(1000 + number, NUM_FRAMES)
        guess_TA, guess_TS = rows_of(run, job, "action"), rows_of(run, job, "observation.state")
        assert guess_TA.shape == action_TA.shape and guess_TS.shape == state_TS.shape
        assert np.abs(guess_TA[:, :2] - action_TA[:, :2]).mean() < 3  # pixels; places spread over forty
        assert (guess_TA[:, 3] == action_TA[:, 3]).mean() > 0.8
        assert set(np.unique(guess_TA[:, 3])) <= {-3.0, 3.0} and (guess_TA[:, 2] == 1.5).all()
    record = read_journal(run.journal, "label")[jobs[0].clip_id]
    assert record.status == "ok" and record.metrics["num_frames"] == NUM_FRAMES
    assert record.metrics["action_mean_abs_change"] == pytest.approx(
        np.abs(np.diff(rows_of(run, jobs[0], "action"), axis=0)).mean()
    )
    assert str(pq.read_schema(run.label_file(jobs[0].clip_id)).field("action").type).startswith("list<")


def test_running_again_does_only_what_is_not_done(run):
    run, jobs = run
    settings = square_settings(run.root)
    label(settings)
    assert label(settings).metrics["num_labelled"] == 0
    run.label_file(jobs[1].clip_id).unlink()
    again = label(settings)
    assert (again.metrics["num_labelled"], again.metrics["num_already_done"]) == (1, 2)
    assert run.label_file(jobs[1].clip_id).is_file()


def test_another_model_labels_again(run):
    run, _ = run
    settings = square_settings(run.root)
    label(settings)
    other = InverseDynamics.load(run.idm)
    with torch.no_grad():
        other.networks[0].output.bias += 1
    other.save(run.idm)
    assert label(settings).metrics["num_labelled"] == 3


def test_a_damaged_clip_fails_alone_and_is_tried_again(run):
    run, jobs = run
    clip = run.clip_file(jobs[0].clip_id)
    whole = clip.read_bytes()
    clip.write_bytes(b"this is no video")
    result = label(square_settings(run.root))
    assert result.partial and (result.metrics["num_labelled"], result.metrics["num_failed"]) == (2, 1)
    record = read_journal(run.journal, "label")[jobs[0].clip_id]
    assert record.status == "failed" and record.error.startswith("UserError") and "Traceback" in record.traceback
    assert not run.label_file(jobs[0].clip_id).exists()
    clip.write_bytes(whole)
    again = label(square_settings(run.root))
    assert not again.partial and again.metrics["num_labelled"] == 1
    assert read_journal(run.journal, "label")[jobs[0].clip_id].status == "ok"


def test_asking_for_states_or_for_none_labels_again(run):
    run, jobs = run
    for predict_state, columns in ((False, ["action"]), (True, ["action", "observation.state"]), (False, ["action"])):
        settings = square_settings(run.root, predict_state=predict_state)
        assert label(settings).metrics["num_labelled"] == 3
        assert all(pq.read_schema(run.label_file(job.clip_id)).names == columns for job in jobs)
        assert label(settings).metrics["num_labelled"] == 0


def test_no_states_where_not_asked_for(run):
    run, jobs = run
    label(square_settings(run.root, predict_state=False))
    assert pq.read_schema(run.label_file(jobs[0].clip_id)).names == ["action"]


def test_only_generated_clips_are_labelled(run):
    run, jobs = run
    with Journal(run.journal, "generate") as journal:
        journal.append(JournalRecord(jobs[2].clip_id, "generate", "rejected", reason="guardrail"))
    assert label(square_settings(run.root)).metrics["num_labelled"] == 2
    assert not run.label_file(jobs[2].clip_id).exists()


def test_says_what_to_do_first(tmp_path, idm):
    settings = square_settings(tmp_path)
    with pytest.raises(UserError, match=r"jobs\.parquet") as caught:
        label(settings)
    assert "dreamgen plan" in str(caught.value)
    write_generated_run(tmp_path, [square_episode(1, NUM_FRAMES)[0]])
    with pytest.raises(UserError, match="idm") as caught:
        label(settings)
    assert "dreamgen label" in str(caught.value)
    shutil.copytree(idm, tmp_path / "idm")
    shutil.rmtree(tmp_path / "journal")
    with pytest.raises(UserError, match="no generated clip") as caught:
        label(settings)
    assert "dreamgen generate" in str(caught.value)


def test_refuses_clips_at_another_rate(tmp_path, idm):
    shutil.copytree(idm, tmp_path / "idm")
    write_generated_run(tmp_path, [square_episode(1, NUM_FRAMES)[0]], fps=8)
    with pytest.raises(UserError, match="frame rate"):
        label(square_settings(tmp_path))
