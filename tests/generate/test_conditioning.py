"""Clips that begin with five frames, with text alone, and long ones made of several; levels as jobs carry them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamgen.curate.verdict import curate_clip
from dreamgen.data.clip_context import ClipContext
from dreamgen.data.conditioning_frames import read_conditioning_frames
from dreamgen.data.video import probe, read_video, write_video
from dreamgen.errors import UserError
from dreamgen.generate.clip import generate_clip, make_clip
from dreamgen.models.cosmos_predict25.model import noise_for
from dreamgen.models.cosmos_predict25.step_skipping import StepSkipping, level_step_skipping
from dreamgen.plan.stage import plan
from dreamgen.run.jobs import read_jobs
from dreamgen.run.run_folder import RunFolder
from tests.fixtures.world import HEIGHT, WIDTH, clip_generator, frame, make_world, tiny_settings, write_pairs

NUM_FRAMES = 9


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("conditions")
    make_world(base / "world")
    write_pairs(base / "pairs")
    for name, num_frames in (("long", 7), ("short", 3)):
        video_THWC = np.stack([frame(index) for index in range(num_frames)])
        write_video(base / "videos" / f"{name}.mp4", video_THWC, 16, crf=1)
        (base / "videos" / f"{name}.txt").write_text("go on", encoding="utf-8")
    return base


def planned(base, out, source=None, **wanted):
    settings = tiny_settings(out, base / "world", source and base / source, plan=wanted)
    settings = replace(settings, video=replace(settings.video, num_frames=NUM_FRAMES))
    return settings, plan(settings), RunFolder.of(settings)


def test_a_clip_goes_on_from_the_first_five_frames_of_a_video(base, tmp_path):
    settings, result, run = planned(base, tmp_path / "run", "videos", condition="video")
    assert result.metrics["num_jobs"] == 1 and any("too short to condition on" in note for note in result.notes)
    (job,) = read_jobs(run.jobs)
    conditioning_THWC = read_conditioning_frames(run, job)
    assert conditioning_THWC.shape == (5, HEIGHT, WIDTH, 3) and job.num_conditioning_frames == 5
    np.testing.assert_array_equal(conditioning_THWC, read_video(base / "videos" / "long.mp4")[:5])
    generator = clip_generator(settings, run)
    assert make_clip(generator, job).status == "ok"
    likened = curate_clip(ClipContext(run, job), settings.curate, {}).metrics
    assert likened["num_frames"] == likened["wanted_num_frames"] == NUM_FRAMES
    assert likened["first_frame_psnr_db"] is not None


def test_a_clip_from_text_alone_needs_no_picture(base, tmp_path):
    wanted = {"condition": "text", "instructions": ["wave", "nod"], "num_seeds": 2}
    settings, result, run = planned(base, tmp_path / "run", **wanted)
    assert result.metrics["num_jobs"] == 4 and result.metrics["num_first_frames"] == 0
    jobs = read_jobs(run.jobs)
    assert {job.first_frame_sha256 for job in jobs} == {None} and not run.first_frames.exists()
    generator = clip_generator(settings, run)
    assert [make_clip(generator, job).status for job in jobs] == ["ok"] * 4
    record = curate_clip(ClipContext(run, jobs[0]), settings.curate, {})
    assert record.metrics["first_frame_psnr_db"] is None and "first frame" not in (record.reason or "")


@pytest.mark.parametrize("overlap", [1, 5])
def test_a_long_clip_is_joined_without_a_repeated_frame(base, tmp_path, overlap):
    settings, _, run = planned(base, tmp_path / "run", "pairs", num_chunks=3, chunk_overlap=overlap)
    job = read_jobs(run.jobs)[0]
    assert job.num_frames == 3 * NUM_FRAMES - 2 * overlap and job.frames_a_chunk == NUM_FRAMES
    generator = clip_generator(settings, run)
    assert make_clip(generator, job).status == "ok"
    assert probe(run.clip_file(job.clip_id)).num_frames == job.num_frames
    video_THWC = generate_clip(generator, job)[0].numpy()

    # By hand: the second chunk begins with the first one's last frames, which the clip holds once.
    model, text_of = generator.model, generator.text_of(job)
    first_THWC = model.sample(job, 0, read_conditioning_frames(run, job), text_of).video_THWC
    second_THWC = model.sample(job, 1, first_THWC[-overlap:], text_of).video_THWC
    start = NUM_FRAMES - overlap
    np.testing.assert_array_equal(video_THWC[:start], first_THWC[:start])
    np.testing.assert_array_equal(video_THWC[start : 2 * start], second_THWC[:start])
    assert not torch.equal(noise_for(job, 0), noise_for(job, 1))


def test_levels_stand_in_the_job_and_in_its_id(base, tmp_path):
    jobs = {}
    for level, fp8 in (("exact", False), ("balanced", False), ("turbo", True)):
        settings, _, run = planned(base, tmp_path / level, "pairs", level=level, fp8=fp8, num_inference_steps=12)
        jobs[level] = read_jobs(run.jobs)[0]
        assert StepSkipping.from_json(jobs[level].step_skipping) == level_step_skipping(level, fp8)
    assert len({job.clip_id for job in jobs.values()}) == 3
    generator = clip_generator(settings, run)
    # The same noise for all: only the level differs.
    alike = [replace(job, clip_id=jobs["exact"].clip_id) for job in jobs.values()]
    exact, balanced, turbo, again = (generate_clip(generator, job)[0].float() for job in (*alike, alike[0]))
    assert torch.equal(exact, again)  # nothing of a level is left behind
    assert 0 < (balanced - exact).abs().mean() < 40 and 0 < (turbo - exact).abs().mean() < 40


def test_chunks_that_cannot_be_joined_are_refused(base, tmp_path):
    settings = tiny_settings(tmp_path, base / "world", base / "pairs", plan={"num_chunks": 2, "chunk_overlap": 5})
    with pytest.raises(UserError, match="chunk_overlap"):
        plan(settings)  # the tiny clip has five frames
