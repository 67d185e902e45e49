"""A distilled student is just another model folder: few steps and no guidance, from its own preset."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import yaml
from diffusers import CosmosTransformer3DModel, UniPCMultistepScheduler

from dreamgen.config.loading import parse_settings
from dreamgen.generate.clip import generate_clip, make_clip
from dreamgen.models.cosmos_predict25.model import noise_for
from dreamgen.plan.stage import plan
from dreamgen.run.jobs import read_jobs
from dreamgen.run.run_folder import RunFolder
from tests.fixtures.world import (
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    clip_generator,
    frame,
    make_world,
    tiny_settings,
    write_pairs,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_student(teacher, folder):
    """Save other weights, and a solver of the first order, in the classes and the layout that the teacher came in."""
    shutil.copytree(teacher, folder)
    transformer = CosmosTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    transformer.save_pretrained(folder / "transformer")
    scheduler = UniPCMultistepScheduler.from_pretrained(folder, subfolder="scheduler", solver_order=1)
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def preset_of(model, folder, **sampling):
    """Write a model's preset: where it lies and how it is sampled."""
    video = {"height": HEIGHT, "width": WIDTH, "num_frames": NUM_FRAMES}
    model = {"path": str(model), "dtype": "float32", "device": "cpu", "safety_checker": False}
    folder.with_suffix(".yaml").write_text(yaml.safe_dump({"model": model, "video": video, "plan": sampling}))
    return str(folder.with_suffix(".yaml"))


def planned(preset, out, pairs):
    settings, _ = parse_settings(["--config_path", preset, "--out", str(out), "--plan.first_frames", str(pairs)], None)
    plan(settings)
    run = RunFolder.of(settings)
    return settings, run, list(read_jobs(run.jobs))


@pytest.mark.parametrize("num_steps", [1, 4])
def test_a_student_dreams_in_few_steps_without_guidance(tmp_path, num_steps):
    teacher, pairs = make_world(tmp_path / "teacher"), write_pairs(tmp_path / "pairs", num_frames=2)
    student = make_student(teacher, tmp_path / "student")
    preset = preset_of(student, tmp_path / "preset", num_inference_steps=num_steps, guidance_scale=1.0)
    settings, run, jobs = planned(preset, tmp_path / "run", pairs)
    assert {(job.num_inference_steps, job.guidance_scale) for job in jobs} == {(num_steps, 1.0)}

    generator = clip_generator(settings, run)
    assert len(list(run.texts.rglob("*.safetensors"))) == 2  # the negative prompt is not encoded
    num_passes = []
    generator.model.pipe.transformer.patch_embed.register_forward_hook(lambda *_: num_passes.append(1))
    video_THWC = generate_clip(generator, jobs[0])[0].numpy()
    assert len(num_passes) == num_steps
    expected_THWC = generator.model.pipe(
        image=frame(0), prompt=jobs[0].prompt, height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES,
        num_inference_steps=num_steps, guidance_scale=1.0, latents=noise_for(jobs[0]), output_type="np",
    ).frames[0]  # fmt: skip
    assert np.abs(video_THWC - np.round(expected_THWC * 255)).max() <= 1
    assert make_clip(generator, jobs[1]).status == "ok"

    # It is another model to the clips' ids, so its clips stand beside its teacher's in one run.
    base = tiny_settings(tmp_path / "run", teacher, pairs, plan={"num_inference_steps": num_steps})
    assert plan(base).metrics["num_new"] == 2
