"""generate: noise, clips, verdicts and resuming in this process; then the same on Ray."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import save_file

from dreamgen.cluster.faults import is_gpu_fault
from dreamgen.data.images import write_png
from dreamgen.data.video import probe
from dreamgen.errors import UserError
from dreamgen.generate import stage as generate_stage
from dreamgen.generate.clip import generate_clip, make_clip
from dreamgen.generate.clip_generator import ClipGenerator
from dreamgen.generate.clip_status import STAGE, remove_half_written, todo
from dreamgen.generate.stage import generate
from dreamgen.models.adapter_files import WEIGHTS_NAME, adapter_sha256
from dreamgen.models.cosmos_predict25.model import noise_for
from dreamgen.models.cosmos_predict25.safety import NoSafetyChecker
from dreamgen.run.jobs import read_jobs, write_jobs
from dreamgen.run.journal import Journal, read_journal
from dreamgen.run.records import Job, JournalRecord, job_id
from dreamgen.run.run_folder import RunFolder
from dreamgen.run.shard import Shard
from tests.fixtures.leftovers import OTHER_HOST, leftover
from tests.fixtures.local_ray import start_ray
from tests.fixtures.world import (
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    clip_generator,
    frame,
    make_world,
    planned_run,
    tiny_settings,
    write_pairs,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("generate")
    make_world(base / "world")
    write_pairs(base / "pairs")
    return base


def settings_for(base: Path, out: Path, **sections):
    # Enough steps that a clip takes a moment, for the tests that disturb it.
    plan = {"num_seeds": 2, "num_inference_steps": 20} | sections.pop("plan", {})
    return tiny_settings(out, base / "world", base / "pairs", plan=plan, **sections)


@pytest.fixture(scope="module")
def generator(base) -> ClipGenerator:
    settings = settings_for(base, base / "plain")
    return clip_generator(settings, planned_run(settings))


@pytest.fixture(scope="module")
def plain(generator) -> RunFolder:
    """Six clips, made one after another without Ray."""
    run = generator.run
    with Journal(run.journal, STAGE) as journal:
        for job in read_jobs(run.jobs):
            journal.append(make_clip(generator, job))
    return run


def at(generator: ClipGenerator, run: RunFolder) -> ClipGenerator:
    """Return a generator of the same model that works in another run."""
    return ClipGenerator(generator.model, run)


@pytest.fixture(scope="module")
def cluster():
    start_ray(3)
    yield
    ray.shutdown()


def clips_of(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.clips.glob("*/*.mp4") if not path.name.startswith(".")}


def test_noise_hangs_on_the_id_alone(plain):
    first, second = read_jobs(plain.jobs)[:2]
    noise_BCTHW = noise_for(first)
    assert noise_BCTHW.shape == (1, 16, 2, HEIGHT // 8, WIDTH // 8) and noise_BCTHW.dtype == torch.float32
    assert torch.equal(noise_BCTHW, noise_for(replace(first, source="elsewhere")))
    assert not torch.equal(noise_BCTHW, noise_for(second))
    torch.manual_seed(1)
    assert torch.equal(noise_BCTHW, noise_for(first))


def test_plain_clips(plain):
    jobs, records = read_jobs(plain.jobs), read_journal(plain.journal, STAGE)
    assert set(records) == {job.clip_id for job in jobs} and todo(plain, jobs) == []
    for job in jobs:
        record = records[job.clip_id]
        assert record.status == "ok" and record.metrics["safety_checker"] is False
        info = probe(plain.root / record.file)
        assert (info.num_frames, info.height, info.width, info.fps) == (NUM_FRAMES, HEIGHT, WIDTH, 16)
        assert record.metrics["num_bytes"] == info.path.stat().st_size
    assert len(set(clips_of(plain).values())) == len(jobs)


def test_clip_is_what_the_pipeline_makes_rounded(plain, generator):
    job = read_jobs(plain.jobs)[0]
    video_THWC = generate_clip(generator, job)[0].numpy()
    expected_THWC = generator.model.pipe(
        image=frame(0), prompt=job.prompt, negative_prompt=job.negative_prompt, height=HEIGHT, width=WIDTH,
        num_frames=NUM_FRAMES, num_inference_steps=job.num_inference_steps, guidance_scale=job.guidance_scale,
        latents=noise_for(job), output_type="np",
    ).frames[0]  # fmt: skip
    assert video_THWC.dtype == np.uint8
    # Rounding in float32 may tip a value at the middle between two levels, and no other.
    assert np.abs(video_THWC - np.round(expected_THWC * 255)).max() <= 1
    assert np.mean(video_THWC == np.round(expected_THWC * 255)) > 0.999


def test_record_without_file_and_file_without_record_are_not_done(base, plain, tmp_path):
    run = RunFolder(shutil.copytree(plain.root, tmp_path / "run"))
    jobs = read_jobs(run.jobs)
    lost, cut, failed, rejected, *kept = jobs
    run.clip_file(lost.clip_id).unlink()
    run.clip_file(cut.clip_id).write_bytes(run.clip_file(cut.clip_id).read_bytes()[:100])
    with Journal(run.journal, STAGE) as journal:
        journal.append(JournalRecord(failed.clip_id, STAGE, "failed", error="RuntimeError: x"))
        journal.append(JournalRecord(rejected.clip_id, STAGE, "rejected", reason="unsafe"))
    run.clip_file(rejected.clip_id).unlink()
    assert todo(run, jobs) == [lost, cut, failed]
    with max(run.journal.glob("*.jsonl")).open("a", encoding="utf-8") as stream:
        stream.write('{"clip_id": "' + kept[0].clip_id)  # cut short by a kill
    assert todo(run, jobs) == [lost, cut, failed]
    shutil.rmtree(run.journal)
    assert todo(run, jobs) == jobs
    preview = generate(settings_for(base, run.root), dry_run=True)
    assert preview.metrics["num_left"] == 6 and any("--generate.limit 1" in note for note in preview.notes)
    assert not run.journal.exists()


def test_nothing_left_needs_no_ray(base, plain):
    assert not ray.is_initialized()
    result = generate(settings_for(base, plain.root))
    assert not ray.is_initialized() and not result.partial
    assert result.metrics == {"num_jobs": 6, "num_done": 6, "num_rejected": 0, "num_failed": 0, "num_left": 0}


def test_dry_run_estimates_from_clips_of_this_run(base, plain, tmp_path):
    run = RunFolder(shutil.copytree(plain.root, tmp_path / "run"))
    settings = settings_for(base, run.root, plan={"num_seeds": 4})
    planned_run(settings)
    before = sorted(run.root.rglob("*"))
    metrics = generate(settings, dry_run=True).metrics
    assert metrics["num_left"] == 6 and metrics["disk_gib"] >= 0 and metrics["cpu_hours"] >= 0
    assert sorted(run.root.rglob("*")) == before


def test_changed_first_frame_fails_with_the_reason(plain, generator, tmp_path):
    run = RunFolder(shutil.copytree(plain.root, tmp_path / "run"))
    job = read_jobs(run.jobs)[0]
    shutil.rmtree(run.clips)
    write_png(run.first_frame_file(job.first_frame_sha256), frame(7))
    record = make_clip(at(generator, run), job)
    assert record.status == "failed" and "is not the first frame that was planned" in record.error
    assert record.error.startswith("UserError: ") and "read_conditioning_frames" in record.traceback
    run.first_frame_file(job.first_frame_sha256).unlink()
    assert "does not exist" in make_clip(at(generator, run), job).error
    assert not run.clip_file(job.clip_id).exists()


class RefusesTheWordBlock(NoSafetyChecker):
    """A guardrail as the real one answers: False for a prompt, None for a clip."""

    def check_text_safety(self, prompt):
        return "block" not in prompt

    def check_video_safety(self, video_THWC):
        return None


def test_guardrail_rejects_prompts_and_clips(plain, generator, tmp_path):
    run = RunFolder(shutil.copytree(plain.root, tmp_path / "run"))
    shutil.rmtree(run.clips)
    shutil.rmtree(run.journal)
    jobs = read_jobs(run.jobs)
    pipe = generator.model.pipe
    guard = pipe.safety_checker
    pipe.safety_checker = RefusesTheWordBlock()
    try:
        records = [make_clip(at(generator, run), job) for job in jobs[:2]]
    finally:
        pipe.safety_checker = guard
    assert [record.status for record in records] == ["rejected", "rejected"]
    assert records[0].reason == "the guardrail found the prompt unsafe"
    assert records[1].reason == "the guardrail found the clip unsafe"
    with Journal(run.journal, STAGE) as journal:
        for record in records:
            journal.append(record)
    assert todo(run, jobs) == jobs[2:] and clips_of(run) == {}


def test_half_written_clips_and_texts_of_dead_processes_of_this_host_are_removed(tmp_path):
    run = RunFolder(tmp_path)
    clip, text = run.clips / "ab" / f"{'ab' * 10}.mp4", run.texts / "cd" / f"{'cd' * 32}.safetensors"
    stale = [leftover(clip), leftover(text)]
    kept = [leftover(path, **of) for path in (clip, text) for of in ({"pid": os.getpid()}, {"host": OTHER_HOST})]
    kept.append(leftover(clip))
    os.utime(kept[-1])  # a moment ago
    kept += [clip.with_name(".notes.tmp.mp4"), clip]
    for path in kept[-2:]:
        path.write_bytes(b"whole")
    assert remove_half_written(run) == 2
    assert not any(path.exists() for path in stale) and all(path.exists() for path in kept)


@pytest.mark.parametrize(
    ("error", "is_fault"),
    [
        ("AcceleratorError: an illegal memory access", True),
        ("RuntimeError: CUDA error: device-side assert triggered", True),
        ("OutOfMemoryError: CUDA out of memory.", False),
        ("ValueError: too small", False),
    ],
)
def test_gpu_faults(error, is_fault):
    assert is_gpu_fault(JournalRecord("a" * 20, STAGE, "failed", error=error)) is is_fault


def test_numbered_gpu_is_refused_before_ray_starts(base, tmp_path):
    settings = settings_for(base, tmp_path / "run")
    planned_run(settings)
    with pytest.raises(UserError, match="takes its GPUs from Ray"):
        generate(replace(settings, model=replace(settings.model, device="cuda:1")))
    assert not ray.is_initialized() and list(RunFolder.of(settings).journal.iterdir()) == []


def test_jobs_of_another_model_are_not_generated_by_this_one(base, tmp_path):
    settings = settings_for(base, tmp_path / "run")
    planned_run(settings)
    with pytest.raises(UserError, match="planned for another model") as caught:
        generate(replace(settings, model=replace(settings.model, dtype="bfloat16")))
    assert "dreamgen plan --out" in caught.value.next_step


def kill_the_worker_after_its_first_clip(run: RunFolder, killed: list[str]) -> None:
    while not killed:
        for record in read_journal(run.journal, STAGE).values():
            killed.append(record.worker)
            os.kill(int(record.worker.split(":")[1]), signal.SIGKILL)
        time.sleep(0.01)


@pytest.mark.slow
def test_three_workers_make_the_clips_of_none(base, plain, cluster, tmp_path):
    settings = settings_for(base, tmp_path / "run", generate={"num_workers": 3, "max_attempts": 2})
    run = planned_run(settings)
    tampered = read_jobs(run.jobs)[2]
    original = run.first_frame_file(tampered.first_frame_sha256).read_bytes()
    write_png(run.first_frame_file(tampered.first_frame_sha256), frame(7))

    result = generate(replace(settings, generate=replace(settings.generate, limit=4)))
    assert result.partial and result.metrics | {"num_done": 3, "num_failed": 1, "num_left": 2} == result.metrics
    assert any("is not the first frame that was planned" in note for note in result.notes)
    records = read_journal(run.journal, STAGE)
    assert records[tampered.clip_id].attempt == 2 and "read_conditioning_frames" in records[tampered.clip_id].traceback
    assert ray.is_initialized()  # it was running before, so it is left running

    run.first_frame_file(tampered.first_frame_sha256).write_bytes(original)
    first_part = {path: path.stat().st_mtime_ns for path in run.clips.glob("*/*.mp4")}
    again = generate(replace(settings, generate=replace(settings.generate, num_workers=1)))
    assert not again.partial and again.metrics["num_done"] == 6
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in first_part.items())
    assert clips_of(run) == clips_of(plain)


@pytest.mark.slow
def test_who_loses_the_lease_is_not_done_while_clips_are_left(base, cluster, tmp_path):
    settings = settings_for(base, tmp_path / "run", generate={"num_workers": 1})
    run = planned_run(settings)
    result = generate_stage._generate(settings, run, Shard(), lambda: bool(read_journal(run.journal, STAGE)))
    assert result.partial and result.metrics["num_done"] and result.metrics["num_left"]  # exit status 3
    assert any("another driver took over these clips" in note for note in result.notes)


@pytest.mark.slow
def test_worker_that_dies_is_replaced_and_its_clip_made(base, plain, cluster, tmp_path):
    settings = settings_for(base, tmp_path / "run")
    run = planned_run(settings)
    killed: list[str] = []
    killer = threading.Thread(target=kill_the_worker_after_its_first_clip, args=(run, killed), daemon=True)
    killer.start()
    result = generate(settings)
    killer.join()
    assert not result.partial and clips_of(run) == clips_of(plain)
    records = read_journal(run.journal, STAGE).values()
    assert sorted(record.attempt for record in records) == [1, 1, 1, 1, 1, 2]
    workers = {record.worker for record in records}
    assert len(workers) == 2 and killed[0] in workers


def test_adapter_that_does_not_fit_stops_before_any_clip(base, cluster, tmp_path):
    settings = settings_for(base, tmp_path / "run")
    run = planned_run(settings)
    run.adapter.mkdir(parents=True)
    save_file({"transformer.no_such_layer.lora_A.weight": torch.zeros(2, 8)}, run.adapter / WEIGHTS_NAME)
    # As if it had been planned for: plan itself refuses such an adapter.
    adapter = {"adapter": "adapter", "adapter_sha256": adapter_sha256(run.adapter)}
    values = [asdict(job) | adapter for job in read_jobs(run.jobs)]
    write_jobs(run.jobs, [Job(**(job | {"clip_id": job_id(job)})) for job in values])
    with pytest.raises(UserError, match="does not fit the model") as caught:
        generate(settings)
    assert type(caught.value) is UserError
    assert list(run.journal.iterdir()) == [] and not run.clips.exists()


def test_more_workers_than_room_is_said(base, cluster, tmp_path):
    settings = settings_for(base, tmp_path / "run", generate={"cpus_per_worker": 4.0})
    planned_run(settings)
    with pytest.raises(UserError, match="room for 0 of 1 workers"):
        generate(settings)


def test_ids_of_jobs_are_those_of_their_content(plain):
    for job in read_jobs(plain.jobs):
        assert job.clip_id == job_id(asdict(job))
