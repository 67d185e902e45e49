"""Labels that our model did not make: taken from a folder, or found in the run, and never overwritten."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreamgen.cli.main import main
from dreamgen.config.command_tokens import read_tokens
from dreamgen.config.loading import settings_from_dict
from dreamgen.errors import UserError
from dreamgen.label.external import label_without_model, needs_no_model
from dreamgen.label.stage import clips_to_label
from dreamgen.pipeline import run_stage
from dreamgen.run.files import sha256_of_file
from dreamgen.run.jobs import generated_jobs, read_jobs
from dreamgen.run.journal import read_journal
from dreamgen.run.made_from import stale_outputs
from tests.fixtures.runs import make_run, random_vectors, run_settings, write_label

ROWS, DIMS = 9, (5, 4)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", num_clips=3, rejected=0)


def ids_of(run):
    return [job.clip_id for job in read_jobs(run.jobs)]


def theirs(folder, *clips, rows=ROWS, seed=77):
    folder.mkdir(exist_ok=True)
    for number, clip in enumerate(clips):
        write_label(folder / f"{clip}.parquet", *random_vectors(seed + number, rows, *DIMS))
    return folder


def test_a_folder_of_labels_replaces_those_of_our_model_and_is_told(run, tmp_path):
    first, second, third = ids_of(run)
    folder = theirs(tmp_path / "theirs", first, second)
    (folder / "README.txt").write_text("labels")
    settings = run_settings(run.root, label={"from": str(folder), "labeled_by": "their model"})
    result = label_without_model(settings)
    assert (result.metrics["num_labelled"], result.metrics["num_already_done"]) == (2, 1) and not result.partial
    for clip in (first, second):
        record, file = read_journal(run.journal, "label")[clip], run.label_file(clip)
        assert pq.read_table(file).equals(pq.read_table(folder / f"{clip}.parquet").cast(pq.read_schema(file)))
        assert record.metrics["labeled_by"] == "their model"
        assert record.metrics["label_sha256"] == sha256_of_file(file)
        assert record.metrics["label_source_sha256"] == sha256_of_file(folder / f"{clip}.parquet")
    before = {clip: run.label_file(clip).read_bytes() for clip in (first, second, third)}
    assert label_without_model(settings).metrics["num_labelled"] == 0
    jobs = generated_jobs(run, "label")
    left = clips_to_label(run, jobs, {"idm_sha256": "of a new model", "has_state": True})
    assert [job.clip_id for job in left] == [third]  # a new model of ours relabels its own clips only
    assert {clip: run.label_file(clip).read_bytes() for clip in before} == before
    theirs(folder, first, seed=99)  # they have labeled again
    assert label_without_model(settings).metrics["num_labelled"] == 1


def test_files_that_something_else_wrote_are_recorded_and_stay(run, tmp_path):
    first, _, third = ids_of(run)
    settings = run_settings(run.root)
    run_stage("label", run_settings(run.root, label={"from_folder": str(theirs(tmp_path / "theirs", third))}))
    for clip in (first, third):  # a record of an older version has no hash; the other one has
        table = pa.table({"action": [[float(row)] * 5 for row in range(ROWS)]})
        run.label_file(clip).unlink()
        pq.write_table(table, run.label_file(clip))
    changed = run.label_file(third).read_bytes()
    label_without_model(settings)
    record = read_journal(run.journal, "label")[third]
    assert record.metrics["labeled_by"] == "unknown" and record.metrics["label_sha256"] == sha256_of_file(
        run.label_file(third)
    )
    folder = theirs(tmp_path / "more", third)
    result = label_without_model(run_settings(run.root, label={"from_folder": str(folder)}))
    assert run.label_file(third).read_bytes() == changed
    assert any("keep the label file that was found" in note for note in result.notes)


def test_a_file_that_does_not_fit_its_clip_fails_it_and_is_kept(run):
    first = ids_of(run)[0]
    for path in run.journal.glob("label-*"):
        path.unlink()
    write_label(run.label_file(first), *random_vectors(1, 4, *DIMS))
    content = run.label_file(first).read_bytes()
    result = label_without_model(run_settings(run.root))
    assert result.metrics["num_failed"] == 1 and "4 rows" in result.notes[0]
    assert run.label_file(first).read_bytes() == content
    assert clips_to_label(run, generated_jobs(run, "label"), {"idm_sha256": "x"}).rows.tolist() == []


def test_with_labels_for_every_clip_no_model_is_trained(run, tmp_path):
    folder = theirs(tmp_path / "theirs", *ids_of(run))
    assert not (run.train / "trajectories").exists()
    results = run_stage("label", run_settings(run.root, label={"from_folder": str(folder)}))
    assert [result.stage for result in results] == ["label"] and results[0].metrics["num_labelled"] == 3
    assert needs_no_model(run_settings(run.root))
    assert run_stage("label", run_settings(run.root))[-1].metrics["num_already_done"] == 3


def test_the_command_knows_the_setting_by_the_name_that_python_reserves(run, tmp_path, capsys):
    folder = theirs(tmp_path / "theirs", *ids_of(run))
    assert main(["label", "--out", str(run.root), f"--label.from={folder}", "--model.path=mini-random",
                 "--video.height=32", "--video.width=48", "--video.num_frames=9", "--model.dtype=float32",
                 "--model.safety_checker=false"]) == 0  # fmt: skip
    assert "num_labelled=3" in capsys.readouterr().out
    given, _ = read_tokens(["--label.from=x"], None, ())
    assert given == {"label": {"from_folder": "x"}}
    assert settings_from_dict({"label": {"from": "x"}}).label.from_folder == "x"
    assert main(["label", "--help"]) == 0 and "--label.from " in capsys.readouterr().out


def test_labels_of_other_dimensions_and_empty_folders_are_refused(run, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    with pytest.raises(UserError, match="has no label"):
        label_without_model(run_settings(run.root, label={"from_folder": str(folder)}))
    write_label(folder / f"{ids_of(run)[0]}.parquet", np.zeros((ROWS, 7), np.float32), None)
    result = label_without_model(run_settings(run.root, label={"from_folder": str(folder)}))
    assert result.metrics["num_failed"] == 1 and result.partial
    assert "wrong length" in result.notes[0] or "no column" in result.notes[0]


def test_labels_that_were_replaced_make_datasets_out_of_date(run, tmp_path):
    first, second, _ = ids_of(run)
    settings = run_settings(run.root, export={"formats": ["lerobot-v3.0"]})
    given = {"label": {"from_folder": str(theirs(tmp_path / "theirs", first, second))}}
    label_without_model(run_settings(run.root, **given))
    run_stage("export", settings)
    assert [stale.output for stale in stale_outputs(run, settings)] == []
    theirs(tmp_path / "theirs", second, seed=5)
    label_without_model(run_settings(run.root, **given))
    (stale,) = stale_outputs(run, settings)
    assert stale.output == "datasets/lerobot-v3.0" and "1 of its clips have been labeled again" in stale.reasons


def test_progress_is_shown_only_where_there_are_labels_of_others(run, tmp_path, capsys):
    first, *_ = ids_of(run)
    label_without_model(run_settings(run.root))
    assert "labels of others" not in capsys.readouterr().err
    label_without_model(run_settings(run.root, label={"from": str(theirs(tmp_path / "theirs", first))}))
    assert "label: labels of others 3/3 clips" in capsys.readouterr().err
    run.label_file(first).unlink()
    pq.write_table(pa.table({"action": [[float(row)] * 5 for row in range(ROWS)]}), run.label_file(first))
    label_without_model(run_settings(run.root))
    assert "label: labels of others 3/3 clips" in capsys.readouterr().err
