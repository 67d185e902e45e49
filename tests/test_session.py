"""A user's session from demonstrations to datasets and back: each command does what is needed."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pyarrow.parquet as pq
import pytest

from dreamgen.cli.main import main
from dreamgen.data.video import write_video
from dreamgen.run.files import sha256_of_file
from dreamgen.run.jobs import read_jobs
from dreamgen.run.journal import read_journal
from dreamgen.run.run_folder import RunFolder
from tests.fixtures.demos import write_lerobot_v21
from tests.fixtures.local_ray import own_ray
from tests.fixtures.runs import lenient, moving_square

# The mini preset cut down to what proves that the commands fit together.
SMALL = [
    "--config_path=mini", "--model.path=mini-random", "--video.height=64", "--video.width=64", "--video.num_frames=9",
    "--finetune.num_steps=1", "--finetune.tracker=none", "--idm.num_steps=10", "--idm.image_px=32", "--idm.horizon=4",
    "--plan.num_inference_steps=1", "--plan.num_first_frames=2", "--generate.num_workers=1",
    *(f"--curate.{name}={limit}" for name, limit in lenient().items()),
    "--export.formats=[lerobot-v3.0]", "--export.num_workers=1",
]  # fmt: skip
WITH_SETTINGS = ("prepare", "finetune", "plan", "generate", "label", "curate", "import", "export")


class Session:
    """Types commands in one run folder, and reads what they say."""

    def __init__(self, root):
        self.run = RunFolder(root)

    def __call__(self, command, *words, status=0):
        preset = SMALL if command in WITH_SETTINGS else []
        with redirect_stdout(io.StringIO()) as out:
            folders = [str(word) for word in words if not str(word).startswith("--")]
            options = [str(word) for word in words if str(word).startswith("--")]
            typed = [command, *folders, *preset, *options, "--out", str(self.run.root), "--json"]
            assert main(typed) == status, out.getvalue()
        return json.loads(out.getvalue())[-1] if out.getvalue() else {}

    def figures(self, command, *words, **how):
        return self(command, *words, **how)["figures"]

    def provenance(self):
        return {row["clip_id"]: row for row in pq.read_table(
            self.run.datasets / "lerobot-v3.0.provenance.parquet").to_pylist()}  # fmt: skip

    def stale(self):
        return {entry["output"]: entry["command"] for entry in self.figures("status")["stale"]}

    def clips(self):
        return {path.stem: path.stat().st_mtime_ns for path in self.run.clips.glob("*/*.mp4")}

    def labels(self):
        return {path.stem: path.stat().st_mtime_ns for path in self.run.labels.glob("*/*.parquet")}


@pytest.fixture
def two_cpus():
    with own_ray(2):
        yield


@pytest.mark.slow
def test_each_command_does_what_is_needed_and_provenance_is_right_at_the_end(two_cpus, tmp_path, capsys):
    demos = write_lerobot_v21(tmp_path / "demos", num_episodes=3, num_frames=16)
    own = Session(tmp_path / "run")
    own("prepare", f"--demos={demos}")
    own("finetune")
    assert own.figures("plan")["num_new"] == 2
    assert own.figures("generate")["num_done"] == 2
    assert own.figures("label")["num_labelled"] == 2
    assert own.figures("curate")["num_accepted"] == 2
    assert own.figures("export")["episodes"] == 2 and own.stale() == {}
    first_clips, first_labels, first_adapter = (
        own.clips(),
        own.labels(),
        sha256_of_file(next(own.run.adapter.glob("*.safetensors"))),
    )

    # Other thresholds: verdicts without a new label; the dataset is out of date until it is replaced.
    scores = {clip: record.metrics["cut_score"] for clip, record in read_journal(own.run.journal, "curate").items()}
    kept, dropped = sorted(scores, key=lambda clip: scores[clip])
    limit = (scores[kept] + scores[dropped]) / 2
    assert own.figures("curate", f"--max_cut_score={limit}")["num_rejected"] == 1
    assert "--overwrite" in own.stale()["datasets/lerobot-v3.0"]
    own("export", status=2)
    assert set(own.provenance()) == {kept, dropped}
    assert own.figures("export", "--overwrite")["episodes"] == 1 and set(own.provenance()) == {kept}
    assert own.stale() == {} and own.clips() == first_clips and own.labels() == first_labels
    own("curate")

    # More seeds, by the whole run again: plan adds, and nothing that is done is done again.
    assert main(["run", "--resume", "--out", str(own.run.root), "--plan.num_seeds=2", "--overwrite"]) == 0
    assert len(own.clips()) == len(own.labels()) == len(own.provenance()) == 4 and own.stale() == {}
    assert first_clips.items() <= own.clips().items() and first_labels.items() <= own.labels().items()
    assert own.figures("label")["num_labelled"] == 0

    # Clips of another generator, one with its label: the model labels the other one.
    for number in range(2):
        write_video(tmp_path / f"theirs/take_{number}.mp4", moving_square(number, 9, 64, 64), 16)
        (tmp_path / f"theirs/take_{number}.txt").write_text(f"take {number}")
    action_TA = np.full((9, 3), 0.5, np.float32)
    np.savez(tmp_path / "theirs/take_0.npz", action=action_TA, state=action_TA)
    theirs = [tmp_path / "theirs", f"--labels={tmp_path / 'theirs'}", "--generator=wan", "--labeled_by=teleop"]
    assert own.figures("import", *theirs)["num_imported"] == 2
    assert own.figures("import", *theirs)["num_imported"] == 0
    assert own.figures("generate")["num_left"] == 0
    assert own.figures("label")["num_labelled"] == 1
    assert "dreamgen curate" in own.stale()["scores"]
    assert own.figures("curate")["num_clips"] == 6
    jobs = read_jobs(own.run.jobs)
    take_0, take_1 = (job.clip_id for job in jobs if job.is_imported)

    # One is rejected by hand and stays so; the rest is exported in place of the old dataset.
    own("reject", dropped, "--reason=blurred")
    own("curate")
    assert own.figures("export", "--overwrite")["episodes"] == 5
    rows = own.provenance()
    assert set(rows) == {job.clip_id for job in jobs} - {dropped}
    idm = f"inverse-dynamics model {sha256_of_file(own.run.idm / 'model.safetensors')[:12]}"
    for job in jobs:
        if job.clip_id == dropped:
            continue
        row = rows[job.clip_id]
        assert row["model"] == ("wan" if job.is_imported else job.model) and row["instruction"] == job.instruction
        assert row["adapter_sha256"] == (None if job.is_imported else first_adapter)
        assert row["seed"] == (None if job.is_imported else job.seed)
        assert row["labeled_by"] == ("teleop" if job.clip_id == take_0 else idm)
        assert (row["idm_held_out"] is None) == (job.clip_id == take_0)
        assert row["label_sha256"] == sha256_of_file(own.run.label_file(job.clip_id))
    assert rows[take_1]["labeled_by"] == idm and own.stale() == {}
    figures = own.figures("report")
    assert (figures["accepted"], figures["rejected"], figures["failed"]) == (5, 1, 0)
    assert sha256_of_file(next(own.run.adapter.glob("*.safetensors"))) == first_adapter

    # A change that finished work does not survive names the command that makes it again.
    for change, command in (("--prepare.fit=pad", "dreamgen prepare"), ("--finetune.lora.rank=2", "dreamgen finetune"),
                            ("--seed=4", "another --out")):  # fmt: skip
        capsys.readouterr()
        assert main(["run", "--resume", "--out", str(own.run.root), change]) == 2
        assert command in capsys.readouterr().err
