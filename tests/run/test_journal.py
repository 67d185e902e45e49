"""The journal is readable while it is written and after a kill; job ids hash what determines a clip."""

import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dreamgen.errors import UserError
from dreamgen.run.jobs import read_jobs, write_jobs
from dreamgen.run.journal import Journal, latest_records, read_journal
from dreamgen.run.records import NOT_IN_JOB_ID, Job, JournalRecord, job_id
from tests.fixtures.jobs import SAMPLED_PLAINLY

JOB = Job(
    clip_id="", first_frame_sha256="a" * 64, instruction="pick, the \"pear\"\nnow", prompt="p", negative_prompt="n",
    seed=1, height=32, width=32, num_frames=9, fps=16, num_inference_steps=2, guidance_scale=7.0, model="mini",
    model_sha256="b", adapter_sha256=None, dtype="float32", codec="h264", crf=18, gop=2, source="here",
    **SAMPLED_PLAINLY,
)  # fmt: skip


def test_the_last_record_of_a_clip_counts_across_files(tmp_path):
    with Journal(tmp_path, "generate") as journal:
        journal.append(JournalRecord("c1", "generate", "failed", error="E: x", time_s=1.0))
        journal.append(JournalRecord("c1", "generate", "ok", metrics={"num_frames": 9}, time_s=3.0))
        assert read_journal(tmp_path, "generate")["c1"].status == "ok"  # while it is open
    (tmp_path / "generate-20000101T000000-other-1.jsonl").write_text(
        JournalRecord("c1", "generate", "failed", time_s=2.0).to_json() + "\n"
    )
    assert read_journal(tmp_path, "generate")["c1"].metrics == {"num_frames": 9}
    assert read_journal(tmp_path, "curate") == {}


def test_the_clock_does_not_decide_which_record_is_the_latest(tmp_path):
    with Journal(tmp_path, "curate") as journal:
        journal.append(JournalRecord("c1", "curate", "ok", time_s=2e9))  # while the clock was years ahead
        journal.append(JournalRecord("c2", "curate", "ok", time_s=2e9))
        journal.append(JournalRecord("c2", "curate", "rejected", time_s=1.0))  # set back in between
    for verdict in ("rejected", "ok", "rejected"):
        with Journal(tmp_path, "curate") as journal:
            journal.append(JournalRecord("c1", "curate", verdict, time_s=1.0))
        assert {id: r.status for id, r in read_journal(tmp_path, "curate").items()} == {"c1": verdict, "c2": "rejected"}
        statuses = latest_records(tmp_path, "curate", ("status",))["status"].to_pylist()
        assert sorted(statuses) == sorted([verdict, "rejected"])


def test_a_line_cut_by_a_kill_is_passed_over(tmp_path):
    whole = JournalRecord("c1", "generate", "ok", time_s=1.0).to_json() + "\n"
    torn = JournalRecord("c2", "generate", "ok", time_s=1.0).to_json()[:25]
    (tmp_path / "generate-x.jsonl").write_text(whole + torn)
    assert set(read_journal(tmp_path, "generate")) == {"c1"}


def test_an_unused_journal_leaves_no_file(tmp_path):
    Journal(tmp_path, "label").close()
    assert list(tmp_path.iterdir()) == []


def test_job_ids_follow_what_determines_the_clip():
    base = job_id(asdict(JOB))
    assert len(base) == 20
    for name, value in asdict(JOB).items():
        other = replace(JOB, **{name: (value + 1 if isinstance(value, int | float) else f"{value}!")})
        assert (job_id(asdict(other)) == base) == (name in NOT_IN_JOB_ID), name


def test_jobs_round_trip(tmp_path):
    jobs = [replace(JOB, clip_id="x"), replace(JOB, clip_id="y", adapter_sha256="c")]
    write_jobs(tmp_path / "jobs.parquet", jobs)
    assert read_jobs(tmp_path / "jobs.parquet") == jobs
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(UserError, match="not a jobs table"):
        read_jobs(tmp_path / "bad.parquet")


def test_damaged_jobs_are_a_user_error(tmp_path):
    path = tmp_path / "jobs.parquet"
    write_jobs(path, [replace(JOB, clip_id=f"{number:020x}", seed=number) for number in range(200)])
    whole = path.read_bytes()
    refused = 0
    for start in range(4, len(whole) - 8, len(whole) // 40):
        path.write_bytes(whole[:start] + bytes(b ^ 0xFF for b in whole[start : start + 16]) + whole[start + 16 :])
        try:
            read_jobs(path)
        except UserError as error:
            refused += "dreamgen plan" in error.next_step
    assert refused > 10
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="not a jobs table"):
        read_jobs(path)


def test_unicode_line_breaks_stay_within_a_record(tmp_path):
    reason = "one\u2028two\u0085three"
    with Journal(tmp_path, "generate") as journal:
        journal.append(JournalRecord("c1", "generate", "rejected", reason=reason))
    assert read_journal(tmp_path, "generate")["c1"].reason == reason


def test_the_name_of_a_new_journal_is_synced(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def recording_fsync(descriptor):
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    with Journal(tmp_path / "journal", "generate"):
        assert set(synced) >= {str(tmp_path / "journal"), str(tmp_path)}
