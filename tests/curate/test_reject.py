"""Rejections by hand: what they take out of the datasets, that curate does not undo them, and that a person can."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from dreamgen.cli.main import main
from dreamgen.curate.reject import reject
from dreamgen.errors import UserError
from dreamgen.report.clips import iter_clips, read_clips
from dreamgen.run.jobs import accepted_clips
from dreamgen.run.journal import Journal
from dreamgen.run.made_from import stale_outputs
from dreamgen.run.records import JournalRecord
from export import export_datasets
from tests.fixtures.runs import make_run, run_settings


def ids_of(run):
    return [clip.job.clip_id for clip in accepted_clips(run)]


def test_a_rejected_clip_leaves_the_datasets_whatever_curate_says(tmp_path):
    run = make_run(tmp_path / "run", num_clips=4, rejected=0)
    settings = run_settings(run.root, export={"formats": ["robomimic"]})
    export_datasets(settings)
    first, second, *others = ids_of(run)
    (tmp_path / "rejected.txt").write_text(f"# by Ann\n{run.clip_file(second)}\n")
    named = {"clips": [first[:8]], "file": str(tmp_path / "rejected.txt"), "reason": "a hand"}
    result = reject(run_settings(run.root, reject=named))
    assert result.metrics == {"num_changed": 2, "num_as_before": 0, "num_rejected": 2}
    assert "--overwrite --resume" in result.notes[0]
    with Journal(run.journal, "curate") as journal:  # as curate, run again
        journal.append(JournalRecord(clip_id=first, stage="curate", status="ok"))
    assert ids_of(run) == others
    assert [entry.output for entry in stale_outputs(run, settings)] == ["datasets/robomimic"]
    export_datasets(settings, resume=True, overwrite=True)
    assert pq.read_table(run.datasets / "robomimic.provenance.parquet")["clip_id"].to_pylist() == others
    clips = read_clips(run)
    rows = np.arange(len(clips))
    reasons = {c.job.clip_id: c.reasons for c in iter_clips(run, clips, rows) if c.verdict == "rejected"}
    assert set(reasons) == {first, second} and "rejected by hand: a hand" in str(reasons[first])

    again = reject(run_settings(run.root, reject=named))
    assert again.metrics == {"num_changed": 0, "num_as_before": 2, "num_rejected": 2}
    reject(run_settings(run.root, reject={"clips": [first], "undo": True}))
    assert set(ids_of(run)) == {first, *others}


def test_names_that_are_no_clip_are_refused_together(tmp_path):
    run = make_run(tmp_path / "run", num_clips=4, rejected=0)
    before = ids_of(run)
    with pytest.raises(UserError) as caught:
        reject(run_settings(run.root, reject={"clips": ["zzz", "", before[0]]}))
    assert "no clip zzz" in str(caught.value) and "is the beginning of 4 clips" in str(caught.value)
    with pytest.raises(UserError, match="no clip is named"):
        reject(run_settings(run.root))
    assert ids_of(run) == before


def test_the_command_takes_clips_before_its_settings(tmp_path, capsys):
    run = make_run(tmp_path / "run", num_clips=3, rejected=0)
    first, second, third = ids_of(run)
    assert main(["reject", first, second, "--out", str(run.root), "--reason=hand"]) == 0
    assert ids_of(run) == [third] and "num_rejected=2" in capsys.readouterr().out


def test_the_report_can_write_such_a_list(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0)
    main(["report", str(run.root)])
    page = run.report.read_text()
    assert all(f'"{clip}"' in page for clip in ids_of(run))
    assert "data-save" in page and "rejected.txt" in page
