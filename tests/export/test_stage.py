"""The export stage: what it refuses, what it leaves out, and the provenance that it keeps."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from dreamgen.data.video import read_video, write_video
from dreamgen.errors import UserError
from dreamgen.run.files import read_json, write_json
from dreamgen.run.jobs import accepted_clips, read_jobs
from dreamgen.run.journal import Journal
from dreamgen.run.made_from import record_made, stale_outputs
from dreamgen.run.records import JournalRecord
from export import export_datasets
from export.check import check
from export.staging import REPLACED, STAGING_FOLDER, sweep
from tests.fixtures.runs import ADAPTER_SHA256, make_run, random_vectors, run_settings, write_label


def test_provenance_tells_where_each_episode_came_from(exported):
    clips = accepted_clips(exported)
    for name in ("lerobot-v3.0", "lerobot-v2.1", "robomimic"):
        rows = pq.read_table(exported.datasets / f"{name}.provenance.parquet").to_pylist()
        assert [row["clip_id"] for row in rows] == [clip.job.clip_id for clip in clips]
        for number, (row, clip) in enumerate(zip(rows, clips, strict=True)):
            assert row["episode_index"] == number
            assert (row["instruction"], row["prompt"], row["seed"]) == (
                clip.job.instruction,
                clip.job.prompt,
                clip.job.seed,
            )
            assert row["adapter_sha256"] == ADAPTER_SHA256 and row["guidance_scale"] == 1.5
            assert row["safety_checker"] is False and row["dreamgen_version"]
            assert json.loads(row["idm_held_out"])["held_out_mae"] == 0.0625
            assert {f"score_{name}": value for name, value in clip.scores.items()}.items() <= row.items()


def test_an_existing_dataset_is_refused_and_resume_writes_the_rest(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0)
    export_datasets(run_settings(run.root, export={"formats": ["robomimic"]}))
    before = (run.datasets / "robomimic/data.hdf5").read_bytes()
    both = run_settings(run.root, export={"formats": ["robomimic", "lerobot-v3.0"]})
    with pytest.raises(UserError, match="already exists") as refused:
        export_datasets(both)
    assert "--resume" in str(refused.value) and not (run.datasets / "lerobot-v3.0").exists()
    result = export_datasets(both, resume=True)
    assert (run.datasets / "robomimic/data.hdf5").read_bytes() == before
    assert check(run.datasets / "lerobot-v3.0") == []
    assert any("left as it is" in note for note in result.notes)
    again = export_datasets(both, resume=True)
    assert set(again.outputs) == {"robomimic", "lerobot-v3.0"} and not again.partial


def test_a_dataset_is_replaced_when_the_new_one_is_whole_and_only_if_it_is_ours(tmp_path):
    run = make_run(tmp_path / "run", num_clips=3, rejected=0)
    names = {"formats": ["robomimic", "lerobot-v3.0"]}
    settings = run_settings(run.root, export=names)
    export_datasets(settings)
    assert stale_outputs(run, settings) == []
    clip = accepted_clips(run)[0].job.clip_id
    with Journal(run.journal, "curate") as journal:  # as curate with another threshold
        journal.append(JournalRecord(clip_id=clip, stage="curate", status="rejected", reason="too still", metrics={}))
    found = {entry.output: entry for entry in stale_outputs(run, settings)}
    assert set(found) == {"datasets/robomimic", "datasets/lerobot-v3.0"}
    assert found["datasets/robomimic"].reasons == ("it holds 2 of 2 accepted clips and 1 others",)
    assert found["datasets/robomimic"].command == f"dreamgen export --out {run.root} --overwrite"
    kept = export_datasets(settings, resume=True)
    assert kept.partial and any("--overwrite replaces it" in note for note in kept.notes)
    result = export_datasets(settings, resume=True, overwrite=True)
    assert not result.partial and result.metrics["episodes"] == 2 and stale_outputs(run, settings) == []
    for name in names["formats"]:
        assert check(run.datasets / name) == []
        assert clip not in pq.read_table(run.datasets / f"{name}.provenance.parquet")["clip_id"].to_pylist()
    files = {path: path.stat().st_mtime_ns for path in run.datasets.rglob("*") if path.is_file()}
    export_datasets(settings, resume=True, overwrite=True)  # nothing is out of date
    assert files == {path: path.stat().st_mtime_ns for path in run.datasets.rglob("*") if path.is_file()}

    smaller = run_settings(run.root, export={**names, "height": 16, "width": 24})
    reasons = [reason for entry in stale_outputs(run, smaller) for reason in entry.reasons]
    assert reasons == ["export.height was None and is 16", "export.width was None and is 24"] * 2
    export_datasets(run_settings(run.root, export={**names, "name": "small", "height": 16, "width": 24}))
    assert sorted(path.name for path in run.datasets.iterdir() if path.is_dir()) == [
        "lerobot-v3.0", "lerobot-v3.0-small", "robomimic", "robomimic-small"
    ]  # fmt: skip
    assert check(run.datasets / "lerobot-v3.0-small") == []

    (run.datasets / "robomimic.provenance.parquet").unlink()
    with pytest.raises(UserError, match="only datasets that this run wrote"):
        export_datasets(settings, overwrite=True)


def test_a_replacement_that_is_killed_between_its_renames_is_put_back(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0)
    settings = run_settings(run.root, export={"formats": ["robomimic"]})
    export_datasets(settings)
    before = (run.datasets / "robomimic/data.hdf5").read_bytes()
    staging = run.datasets / STAGING_FOLDER
    staging.mkdir()
    (staging / "lock").touch()
    (run.datasets / "robomimic").rename(staging / f"robomimic{REPLACED}")
    sweep(run.datasets)
    assert (run.datasets / "robomimic/data.hdf5").read_bytes() == before and not staging.exists()


def test_what_was_trained_on_another_training_set_is_out_of_date(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=0)
    settings = run_settings(run.root)
    run.adapter.mkdir(exist_ok=True)
    for stage in ("finetune", "finetune_idm"):
        record_made(run, stage, settings)
    assert [entry.output for entry in stale_outputs(run, settings)] == []
    features = read_json(run.train / "features.json")
    write_json(run.train / "features.json", features | {"robot_type": "another"})
    assert [entry.output for entry in stale_outputs(run, settings)] == ["adapter", "idm"]
    (run.idm / "model.safetensors").write_bytes(b"another model")
    stale = {entry.output: entry.reasons for entry in stale_outputs(run, settings)}
    assert set(stale) <= {"adapter", "idm", "labels"}


def test_clips_that_disagree_are_left_out_and_the_others_go_on(tmp_path):
    run = make_run(tmp_path / "run", num_clips=7, rejected=0)
    clips = accepted_clips(run)
    write_label(clips[1].label, *random_vectors(1, 8, 5, 4))  # a row too few
    write_label(clips[2].label, *random_vectors(1, 9, 6, 4))  # another number of dimensions
    action_TA, state_TS = random_vectors(1, 9, 5, 4)
    action_TA[3, 2] = np.nan
    write_label(clips[3].label, action_TA, state_TS)
    write_video(clips[4].video, read_video(clips[4].video)[:-1], 16)  # a frame too few
    clips[5].label.unlink()
    result = export_datasets(run_settings(run.root))
    assert result.partial and result.metrics["episodes"] == 2 and result.metrics["left_out"] == 5
    for clip, words in zip(clips[1:6], ("8 label rows", "6", "row 3", "8 frames", "cannot be read"), strict=True):
        note = next(note for note in result.notes if clip.job.clip_id in note)
        assert words in note
    again = f"dreamgen label --out {run.root} --resume"
    assert f"remove {clips[1].label}, then {again}" in result.notes[0]
    assert f"do:      {again}" in result.notes[4], "nothing to remove"
    for name in ("lerobot-v3.0", "lerobot-v2.1", "robomimic"):
        assert check(run.datasets / name) == []
        rows = pq.read_table(run.datasets / f"{name}.provenance.parquet").to_pylist()
        assert [row["clip_id"] for row in rows] == [clips[0].job.clip_id, clips[6].job.clip_id]


def test_a_damaged_clip_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", num_clips=3, rejected=0)
    clips = accepted_clips(run)
    clips[0].video.write_bytes(clips[0].video.read_bytes()[:300])
    write_video(clips[1].video, read_video(clips[1].video), 15)  # right frames, wrong rate
    result = export_datasets(run_settings(run.root, export={"formats": ["lerobot-v3.0"]}))
    assert result.metrics == {"episodes": 1, "frames": 9, "tasks": 1, "left_out": 2}
    assert "damaged" in result.notes[0] and "1/16" in result.notes[1]


def test_all_clips_left_out_is_an_error(tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    accepted_clips(run)[0].label.unlink()
    with pytest.raises(UserError, match="none of 1 accepted clips"):
        export_datasets(run_settings(run.root))
    assert not run.datasets.exists()


def test_no_accepted_clip_names_the_threshold(tmp_path):
    run = make_run(tmp_path / "run", num_clips=3, rejected=3, failed=2)
    with pytest.raises(UserError, match="no clip was accepted") as refused:
        export_datasets(run_settings(run.root))
    text = str(refused.value)
    assert "2 generate failed" in text and "3 curate rejected" in text
    assert "3 x motion # is below min_motion #" in text and "curate.min_motion=0.5 rejected 3" in text


def test_rejected_clips_that_could_not_be_measured_do_not_hide_the_reasons(tmp_path):
    run = make_run(tmp_path / "run", num_clips=2, rejected=2)
    with Journal(run.journal, "curate") as journal:
        metrics = {"motion": None, "first_frame_psnr_db": None, "cut_score": None}
        clip_id = read_jobs(run.jobs)[0].clip_id
        journal.append(JournalRecord(clip_id, "curate", "rejected", reason="not decodable: x", metrics=metrics))
    with pytest.raises(UserError, match="1 x not decodable: x"):
        export_datasets(run_settings(run.root))


@pytest.mark.parametrize(
    "camera", ["ego_view", "observation.images.", "observation.images.../../x", "observation.images.a/b"]
)
def test_camera_names_that_cannot_be_features_are_refused(tmp_path, camera):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    with pytest.raises(UserError, match=r"export\.camera"):
        export_datasets(run_settings(run.root, export={"camera": camera}))
    assert not run.datasets.exists()


def test_names_that_do_not_fit_the_labels_are_refused(tmp_path):
    run = make_run(tmp_path / "run", num_clips=1, rejected=0)
    features = read_json(run.train / "features.json")
    write_json(run.train / "features.json", {**features, "action_names": ["a", "b"]})
    with pytest.raises(UserError, match=r"features\.json"):
        export_datasets(run_settings(run.root))


def test_bytes_repeat(tmp_path):
    runs = [make_run(tmp_path / name, num_clips=2, rejected=0) for name in ("a", "b")]
    for run in runs:
        export_datasets(run_settings(run.root))
    files = [sorted(p.relative_to(run.datasets) for p in run.datasets.rglob("*") if p.is_file()) for run in runs]
    assert files[0] == files[1]
    for name in files[0]:
        assert (runs[0].datasets / name).read_bytes() == (runs[1].datasets / name).read_bytes(), name
