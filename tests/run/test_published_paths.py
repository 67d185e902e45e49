"""Cards, provenance and the report name no folder of the machine."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.parquet as pq

from dreamgen.report import report
from dreamgen.run.jobs import read_jobs, write_jobs
from dreamgen.run.journal import Journal
from dreamgen.run.published_paths import published_paths
from dreamgen.run.records import JournalRecord
from export import export_datasets
from tests.export.test_mixture import run_like_the_demos
from tests.fixtures.demos import write_lerobot_v21
from tests.fixtures.runs import run_settings


def test_paths_lose_what_is_above_the_run_and_the_settings_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs" / "pick"
    shorten = published_paths(root, {"demos": "/data/demos", "plan": {"first_frames": "~/pairs", "seed": 3},
                                     "export": {"mix_with": ["/mnt/a b/real", "relative"]}})  # fmt: skip
    assert shorten(f"{root}/clips/ab/x.mp4 is damaged; --out {root}") == "pick/clips/ab/x.mp4 is damaged; --out pick"
    assert shorten("/data/demos/videos/a.mp4, frame 3") == "demos/videos/a.mp4, frame 3"
    assert shorten("'/mnt/a b/real'") == "'real'" and shorten("/home/me/pairs/x.png") == "pairs/x.png"
    assert shorten("/home/me/other") == "~/other" and shorten(f"({tmp_path}/x)") == "(./x)"
    for same in ("/data/demos2/a", "/x/data/demos", "s3://data/demos", f"{root}-2", "/etc/hosts", ""):
        assert shorten(same).replace("./runs", str(tmp_path / "runs")) == same


def test_provenance_and_report_of_a_run(tmp_path):
    demos = write_lerobot_v21(tmp_path / "real", num_episodes=2, num_frames=9, height=32, width=48)
    run = run_like_the_demos(tmp_path / "run", failed=1)
    formats = {"formats": ["lerobot-v3.0", "aloha"], "mix_with": str(demos)}
    settings = run_settings(run.root, demos=str(demos), export=formats)
    run.record(settings, ["export"])
    jobs = read_jobs(run.jobs)
    write_jobs(run.jobs, [replace(job, source=f"{run.train}/videos/a.mp4, first frame") for job in jobs])
    with Journal(run.journal, "curate") as journal:
        journal.append(JournalRecord.of_error(jobs[0].clip_id, "curate", OSError(f"{run.root}/clips: gone")))
    export_datasets(settings)
    report(settings)
    published = [path for path in (*run.datasets.rglob("*"), run.report) if path.is_file()]
    assert len(published) >= 20
    for path in published:
        assert str(tmp_path).encode() not in path.read_bytes(), path
    rows = pq.read_table(run.datasets / "aloha.provenance.parquet").to_pylist()
    assert str(tmp_path) not in str(rows) and rows[0]["source"] == "real"
    assert rows[-1]["source"] == "run/train/videos/a.mp4, first frame"
    assert "run/clips: gone" in run.report.read_text() and "<td>real</td>" in run.report.read_text()
