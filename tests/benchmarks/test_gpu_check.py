"""`make gpu-check` on the CPU with the mini model, and what its table and exit status are made of."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_check_report import Check, ResumeCheck, exit_status
from gpu_check_steps import STAGES, clip_rates
from gpu_monitor import GpuMonitor, GpuUsage, parse_sample, query_command
from measured_commands import MeasuredCommands, Row

from dreamgen.run.jobs import write_jobs
from dreamgen.run.journal import Journal
from dreamgen.run.records import JournalRecord
from dreamgen.run.run_folder import RunFolder
from tests.fixtures.jobs import plain_job

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

TINY = ["--preset=mini", "--height=64", "--width=64", "--num_frames=9", "--num_inference_steps=2", "--num_steps=2",
        "--idm_num_steps=5"]  # fmt: skip


@pytest.mark.slow
def test_the_whole_job_runs_with_the_mini_model_and_resumes_to_the_same_bytes(tmp_path):
    out = tmp_path / "gpu_check.json"
    words = [*TINY, f"--work={tmp_path / 'work'}", f"--json={out}", "--limit_s=1500"]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu_check.py", *words], capture_output=True, text=True, timeout=1700
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    report = json.loads(out.read_text())
    assert [row["stage"] for row in report["rows"]] == list(STAGES)
    assert {row["status"] for row in report["rows"]} == {"ok"}
    assert {what: (item["num_compared"], item["num_equal"]) for what, item in report["resumed"].items()} == {
        "clips": (2, 2), "labels": (2, 2), "scores": (2, 2),
    }  # fmt: skip
    rates = {row["stage"]: row["clips_an_hour"] for row in report["rows"]}
    assert rates["run: generate"].keys() == {"exact"}
    assert set(rates["generate resumed"] or ()) <= {"exact", "turbo"}  # none of a level that the kill cut in two
    assert report["estimates"]["finetune lora: seconds a step"]["measured"] > 0
    assert "| generate resumed | ok |" in done.stdout


def test_rates_come_from_clips_that_one_worker_recorded_in_a_row(tmp_path):
    run = RunFolder(tmp_path / "run")
    jobs = [plain_job(seed, level="exact" if seed < 3 else "turbo") for seed in range(6)]
    write_jobs(run.jobs, jobs)
    #                 exact          | turbo
    records = [("a", 100), ("b", 104), ("b", 114), ("b", 115), ("c", 130), ("c", 132)]
    with Journal(run.journal, "generate") as journal:
        for job, (worker, time_s) in zip(jobs, records, strict=True):
            journal.append(JournalRecord(job.clip_id, "generate", "ok", worker=worker, time_s=time_s))
            run.clip_file(job.clip_id).parent.mkdir(parents=True, exist_ok=True)
            run.clip_file(job.clip_id).touch()
    assert clip_rates(run, num_workers=2) == {"exact": 720, "turbo": 3600}
    assert clip_rates(run, num_workers=2, start_s=114) == {"turbo": 3600}  # the clip before it is older
    assert clip_rates(run, num_workers=2, start_s=131) == {}


def test_a_command_that_fails_or_has_no_time_left_gets_a_row_that_says_so(tmp_path, capsys):
    with GpuMonitor() as monitor:
        commands = MeasuredCommands(tmp_path / "logs", monitor, 60, lambda: None)
        assert commands.run("good", ["-c", "print('fine')"]) is not None
        assert commands.run("bad", ["-c", "import sys; print('what went wrong'); sys.exit(7)"]) is None
        out_of_time = MeasuredCommands(tmp_path / "logs", monitor, 0, lambda: None)
        assert out_of_time.run("late", ["-c", "print('never')"]) is None
    assert (commands.rows["good"].status, commands.rows["bad"].status) == ("ok", "exit 7")
    assert out_of_time.rows["late"].status == "not run: time limit"
    assert "what went wrong" in capsys.readouterr().err
    assert "what went wrong" in (tmp_path / "logs" / "bad.log").read_text()


def test_a_command_is_killed_at_the_moment_that_is_given(tmp_path):
    marker = tmp_path / "begun"
    with GpuMonitor() as monitor:
        commands = MeasuredCommands(tmp_path / "logs", monitor, 60, lambda: None)
        waiting = commands.start("waits", ["-c", f"open({str(marker)!r}, 'w'); import time; time.sleep(60)"])
        assert commands.finish(waiting, "killed", marker.exists)


@pytest.mark.parametrize(
    ("statuses", "num_equal", "expected"),
    [
        (["ok", "ok"], 2, 0),
        (["ok", "exit 1"], 2, 1),
        (["ok", "ok"], 1, 1),
        (["ok", "not run: time limit"], 2, 3),
        (["ok", "time limit"], 2, 3),
    ],
)
def test_the_exit_status_tells_failures_from_a_lack_of_time(tmp_path, statuses, num_equal, expected):
    with GpuMonitor() as monitor:
        commands = MeasuredCommands(tmp_path, monitor, 60, lambda: None)
    commands.rows = {str(number): Row(str(number), status) for number, status in enumerate(statuses)}
    check = Check(None, 0, commands, resumed={"clips": ResumeCheck(2, num_equal)})
    assert exit_status(check) == expected


@pytest.mark.slow
def test_a_check_that_is_told_to_end_still_reports(tmp_path):
    out = tmp_path / "gpu_check.json"
    check = subprocess.Popen(
        [sys.executable, BENCHMARKS / "gpu_check.py", *TINY, f"--work={tmp_path / 'work'}", f"--json={out}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert check.stderr is not None
    assert check.stderr.readline() == "build model ...\n"
    check.send_signal(signal.SIGTERM)
    stdout, _ = check.communicate(timeout=300)
    assert check.returncode == 3
    rows = {row["stage"]: row["status"] for row in json.loads(out.read_text())["rows"]}
    assert rows["build model"] == "time limit" and rows["run"] == "not run: time limit"
    assert "| build model | time limit |" in stdout


def test_only_gpus_that_cuda_shows_are_read():
    assert "--id=1,3" in query_command("1,3")
    assert not any(word.startswith("--id") for word in query_command(None))


def test_gpu_readings_are_summarized_over_a_period():
    monitor = GpuMonitor()
    lines = ["0, 1024, 50", "1, 2048, 100", "0, [N/A], 3", "0, 40960, 100"]
    samples = [parse_sample(line, float(time_s)) for time_s, line in enumerate(lines)]
    monitor._samples = [sample for sample in samples if sample is not None]
    assert monitor.usage(0, 1) == GpuUsage(2.0, 75.0)
    assert monitor.usage(9, 10) == GpuUsage(None, None)
