"""status: counts, rate, time left and kinds of trouble, from the journal alone."""

from __future__ import annotations

import json
import time

import pytest

from dreamgen.cli.main import main
from dreamgen.config.settings import Settings
from dreamgen.errors import UserError
from dreamgen.run.jobs import write_jobs
from dreamgen.run.journal import Journal, latest_records
from dreamgen.run.lease import Lease, hold
from dreamgen.run.records import JournalRecord
from dreamgen.run.run_folder import RunFolder
from dreamgen.run.shard import Shard
from dreamgen.status import WINDOW_S, rate_of, status
from tests.fixtures.jobs import plain_job


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """Twenty jobs: six done on two hosts, two rejected, three failed, and a record of a job that is none of them."""
    run = RunFolder(tmp_path / "run")
    jobs = [plain_job(seed) for seed in range(20)]
    write_jobs(run.jobs, jobs)
    now_s = time.time()
    with Journal(run.journal, "generate") as journal:
        for number, job in enumerate(jobs[:11]):
            status, more = "ok", {}
            if number in (6, 7):
                status, more = "rejected", {"reason": f"motion 0.{number} < 0.5"}
            if number > 7:
                status, more = "failed", {"error": "RuntimeError: x" if number == 8 else "UserError: y"}
            worker = f"node-{number % 2}:{100 + number}"
            more |= {"worker": worker, "time_s": now_s - 100 + number * 10}
            journal.append(JournalRecord(job.clip_id, "generate", status, **more))
        journal.append(JournalRecord("f" * 20, "generate", "ok", time_s=now_s))
    return run


def test_counts_rate_and_kinds(run):
    with hold(run.journal, "generate", Shard()):
        metrics = status(Settings(out=str(run.root))).metrics
    assert metrics | {"num_jobs": 20, "num_done": 6, "num_rejected": 2, "num_failed": 3, "num_left": 12} == metrics
    assert metrics["failures"] == {"UserError": 2, "RuntimeError": 1}
    assert metrics["rejections"] == {"motion # < #": 2}
    assert set(metrics["clips_per_hour_of_node"]) == {"node-0", "node-1"}
    assert metrics["clips_per_hour"] == pytest.approx(11 / 100 * 3600, rel=0.1)
    assert metrics["eta_s"] == pytest.approx(12 / 11 * 100, rel=0.1)
    assert [driver["shard"] for driver in metrics["drivers"]] == ["0/1"]


def test_a_job_at_rest_has_its_last_rate_and_no_end(run):
    records = latest_records(run.journal, "generate", ("worker",))
    rate = rate_of(records, [], now_s=time.time() + 10 * WINDOW_S)
    assert not rate.is_now and rate.clips_per_hour == pytest.approx(12 / 100 * 3600, rel=0.1)
    late = Lease("generate", "0/1", begun_s=time.time() - 50)  # began after clips of an earlier driver
    assert rate_of(records, [late]).clips_per_hour == pytest.approx(12 / 100 * 3600, rel=0.1)
    assert rate_of(records.slice(0, 0), []).clips_per_hour == 0


def test_the_command_prints_text_and_json(run, capsys):
    before = sorted(run.root.rglob("*"))
    assert main(["status", "--out", str(run.root)]) == 0
    text = capsys.readouterr().out
    assert "num_done=6" in text and "40.0 % is done" in text and "failed: UserError: 2" in text and "no driver" in text
    assert main(["status", "--out", str(run.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["figures"]["failures"] == {"UserError": 2, "RuntimeError": 1}
    assert sorted(run.root.rglob("*")) == before  # it only reads


def test_nothing_planned_is_an_error(tmp_path):
    with pytest.raises(UserError, match="does not exist yet") as caught:
        status(Settings(out=str(tmp_path)))
    assert "dreamgen plan" in caught.value.next_step
