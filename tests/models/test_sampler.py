"""Our sampler against the pipeline's own call: the same noise, the same clip."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.adapter import add_adapter
from dreamgen.models.cosmos_predict25.guided_velocity import BlockParts, text_keys_values, velocities
from dreamgen.models.cosmos_predict25.latents import decode, encode_conditioning
from dreamgen.models.cosmos_predict25.mini import build_mini
from dreamgen.models.cosmos_predict25.sampler import Guidance, sample_latents
from dreamgen.models.cosmos_predict25.solver import Stepper, step_table
from dreamgen.models.cosmos_predict25.step_skipping import StepSkipping, num_forwards, plan_passes
from dreamgen.models.cosmos_predict25.text import encode_text
from dreamgen.models.cosmos_predict25.velocity import velocity

HEIGHT, WIDTH, NUM_FRAMES, NUM_STEPS = 48, 64, 17, 6
SHAPE = (1, 16, 5, HEIGHT // 8, WIDTH // 8)
PROMPT, NEGATIVE = "push the red block", "blurry"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["base", "adapter"])
def pipe(request):
    sizes = read_yaml(configs_folder() / "models" / "mini.yaml")
    sizes["transformer"] |= {"num_layers": 2}
    pipe = build_mini(sizes)
    pipe.set_progress_bar_config(disable=True)
    if request.param == "adapter":
        for parameter in add_adapter(pipe.transformer, 4, 4, ["to_q", "to_k", "ff.net.2"], use_dora=False):
            torch.nn.init.normal_(parameter, std=0.05)
        pipe.transformer.requires_grad_(False)
    return pipe


def noise() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


def conditioning_frames(num: int) -> np.ndarray:
    return np.random.default_rng(num).integers(0, 255, (num, HEIGHT, WIDTH, 3), dtype=np.uint8)


def ours(
    pipe, num_conditioning: int, scale: float, num_steps: int = NUM_STEPS, step_skipping: StepSkipping = StepSkipping()
):
    text, negative = (text_keys_values(pipe.transformer, encode_text(pipe, prompt)) for prompt in (PROMPT, NEGATIVE))
    return sample_latents(
        pipe.transformer,
        step_table(pipe.scheduler, num_steps),
        noise(),
        encode_conditioning(pipe, conditioning_frames(num_conditioning)) if num_conditioning else None,
        text,
        Guidance(negative, scale) if scale > 1 else None,
        step_skipping,
        BlockParts(),
    )


@pytest.mark.parametrize("scale", [1.0, 7.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("num_conditioning", [1, 5, 0], ids=["image", "video", "text"])
def test_latents_and_pixels_are_the_pipelines(pipe, num_conditioning, scale):
    frames = [Image.fromarray(frame) for frame in conditioning_frames(num_conditioning)]
    condition = {1: {"image": frames and frames[0]}, 5: {"video": frames}, 0: {}}[num_conditioning]
    asked = {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "height": HEIGHT, "width": WIDTH, "num_frames": NUM_FRAMES,
        "num_inference_steps": NUM_STEPS, "guidance_scale": scale, **condition,
    }  # fmt: skip
    with torch.no_grad():
        wanted_BCTHW = pipe(**asked, latents=noise(), output_type="latent").frames
        found_BCTHW = ours(pipe, num_conditioning, scale)
        assert wanted_BCTHW.abs().max() > 1
        assert (found_BCTHW - wanted_BCTHW).abs().max() < 1e-4
        wanted_THWC = pipe(**asked, latents=noise(), output_type="np").frames[0]
    assert np.abs(decode(pipe, found_BCTHW).numpy() / 255.0 - wanted_THWC).max() < 0.5 / 255 + 1e-4


@pytest.mark.parametrize("num_steps", [1, 2, 3, 36])
def test_the_solvers_table_steps_as_the_scheduler_does(pipe, num_steps):
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(num_steps)
    sample, stepper = noise(), Stepper(step_table(pipe.scheduler, num_steps), noise())
    for index, timestep in enumerate(scheduler.timesteps):
        answer = torch.sin(3 * sample) + index
        sample = scheduler.step(answer, timestep, sample, return_dict=False)[0]
        stepper.step(index, answer)
        assert torch.allclose(stepper.sample, sample, atol=2e-5 * (1 + index))


def test_two_texts_at_once_are_two_forward_passes(pipe):
    mask_B1THW = torch.zeros(1, 1, *SHAPE[2:])
    mask_B1THW[:, :, 0] = 1
    times_BT = torch.tensor([[1e-4, 0.6, 0.6, 0.6, 0.6]])
    with torch.no_grad():
        texts = [encode_text(pipe, prompt) for prompt in (PROMPT, NEGATIVE)]
        keys = [text_keys_values(pipe.transformer, text_BLD) for text_BLD in texts]
        found = velocities(pipe.transformer, noise(), mask_B1THW, times_BT, keys, BlockParts())
        for text_BLD, answer in zip(texts, found, strict=True):
            wanted = velocity(pipe.transformer, noise(), mask_B1THW, times_BT, text_BLD)
            assert torch.allclose(answer, wanted, atol=1e-5)
    assert not torch.allclose(*found, atol=1e-3)


def test_step_skipping_leaves_out_the_passes_that_they_name():
    step_skipping = StepSkipping(whole_first=0.25, whole_last=0.1, velocity_every=2, guidance_every=2)
    passes = plan_passes(36, step_skipping)
    assert all(p.velocity and p.guidance for p in [*passes[:9], *passes[-4:]])
    between = passes[9:-4]
    assert [p.velocity for p in between[:4]] == [False, True, False, True]
    assert [p.guidance for p in between[:4]] == [False, False, False, True]
    assert num_forwards(36, step_skipping, True) == sum(p.velocity + p.guidance for p in passes) < 72
    assert num_forwards(36, StepSkipping(), True) == 72 and num_forwards(36, StepSkipping(), False) == 36
    assert StepSkipping.from_json(step_skipping.to_json()) == step_skipping and StepSkipping().to_json() == "{}"


def test_a_clip_with_skipped_steps_is_near_the_exact_one_and_nearer_with_fewer(pipe):
    exact = ours(pipe, 1, 3.0, num_steps=24)
    errors = [
        float((ours(pipe, 1, 3.0, 24, StepSkipping(0.2, 0.1, every, every)) - exact).norm() / exact.norm())
        for every in (2, 4)
    ]
    assert 0 < errors[0] < errors[1] < 0.5


def test_a_scheduler_of_another_kind_is_refused(pipe):
    other = copy.deepcopy(pipe.scheduler)
    other.register_to_config(prediction_type="epsilon")
    with pytest.raises(UserError, match="scheduler cannot be stepped"):
        step_table(other, 4)
