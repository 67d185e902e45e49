"""The training step feeds the transformer exactly what the pipeline feeds it."""

import numpy as np
import pytest
import torch
from PIL import Image

from dreamgen.config.settings import FinetuneSettings, ModelSettings
from dreamgen.models.cosmos_predict25.flow import (
    NoiseSample,
    VelocityModel,
    flow_input,
    flow_loss,
    sample_noise,
    shifted_sigma,
)
from dreamgen.models.cosmos_predict25.latents import LatentScale, vae_means
from dreamgen.models.cosmos_predict25.loading import latent_statistics, load_pipeline
from dreamgen.models.cosmos_predict25.spec import latent_shape
from dreamgen.models.cosmos_predict25.text import encode_text
from dreamgen.models.cosmos_predict25.velocity import project_text
from dreamgen.models.world_model import WorldModelSource
from finetune.inputs import EncodedPrompts
from tests.finetune.conftest import HEIGHT, NUM_FRAMES, WIDTH
from tests.fixtures.demos import make_episode

PROMPT = "The robot arm is performing a task. push the square"
TUNE = FinetuneSettings()
INPUTS = {"hidden_states", "condition_mask", "timestep", "padding_mask", "encoder_hidden_states"}


def source(world):
    return WorldModelSource("tiny", str(world), None, "")


def load(world, dtype="float32"):
    model = ModelSettings(path=str(world), revision=None, dtype=dtype, device="cpu", safety_checker=False)
    return load_pipeline(source(world), model)


@pytest.fixture(scope="module")
def pipe(world):
    return load(world)


@pytest.fixture(scope="module")
def video_THWC():
    return make_episode(0, NUM_FRAMES, 16, HEIGHT, WIDTH).video_THWC


@pytest.fixture(scope="module")
def encode(world):
    scale = LatentScale(*latent_statistics(source(world)))
    return lambda pipe, video_THWC: scale(vae_means(pipe.vae, torch.from_numpy(video_THWC)[None]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("conditional_frame_timestep", [1e-4, -1.0])
@pytest.mark.parametrize("num_conditioned", [1, 2])
def test_the_transformer_gets_what_the_pipeline_gives_it(
    world, encode, video_THWC, num_conditioned, conditional_frame_timestep, dtype
):
    pipe = load(world, dtype)
    clean_BCTHW = encode(pipe, video_THWC)
    noise_BCTHW = torch.randn(clean_BCTHW.shape, generator=torch.Generator().manual_seed(0))
    num_steps = 3
    pipe.scheduler.set_timesteps(num_steps)
    flows = [
        flow_input(
            clean_BCTHW,
            NoiseSample(sigma[None], torch.tensor([num_conditioned]), [False], noise_BCTHW),
            conditional_frame_timestep,
        )
        for sigma in pipe.scheduler.sigmas[:num_steps]
    ]
    calls = []
    pipe.transformer.register_forward_hook(lambda _, args, named, out: calls.append((named, out)), with_kwargs=True)

    frames = [Image.fromarray(frame_HWC) for frame_HWC in video_THWC]
    given = {"image": frames[0]} if num_conditioned == 1 else {"video": frames[:5]}

    def at_the_training_latents(pipe, step, time, tensors):
        # The sampler's own path is left: at each sigma it continues from the latents that training would see there.
        return {"latents": flows[min(step + 1, num_steps - 1)].hidden_states_BCTHW}

    pipe(
        **given, prompt=PROMPT, height=HEIGHT, width=WIDTH, num_frames=NUM_FRAMES, num_inference_steps=num_steps,
        guidance_scale=0.0, latents=flows[0].hidden_states_BCTHW, output_type="latent",
        num_latent_conditional_frames=num_conditioned, conditional_frame_timestep=conditional_frame_timestep,
        callback_on_step_end=at_the_training_latents, callback_on_step_end_tensor_inputs=["latents"],
    )  # fmt: skip
    assert len(calls) == num_steps

    text_BLD, model = encode_text(pipe, PROMPT), VelocityModel(pipe.transformer)
    for flow, (wanted, (wanted_BCTHW,)) in zip(flows, calls, strict=True):
        close(flow.hidden_states_BCTHW.to(pipe.transformer.dtype), wanted["hidden_states"])
        close(flow.condition_mask_B1THW.to(pipe.transformer.dtype), wanted["condition_mask"])
        assert wanted["timestep"].dtype == torch.float32 and wanted["padding_mask"].abs().max() == 0
        conditioning_BT = (
            wanted["timestep"].flatten()[None] if wanted["timestep"].ndim == 5 else wanted["timestep"][:, None]
        )
        close(flow.timestep_BT, conditioning_BT.expand_as(flow.timestep_BT))
        close(text_BLD, project_text(pipe.transformer, wanted["encoder_hidden_states"]))
        assert not wanted.keys() - INPUTS - {"return_dict"}
        with torch.no_grad():
            inputs = flow.hidden_states_BCTHW, flow.condition_mask_B1THW, flow.timestep_BT, text_BLD
            velocity_BCTHW = model(*inputs)
        error = (velocity_BCTHW - wanted_BCTHW.float()).norm() / wanted_BCTHW.float().norm()
        assert error <= (1e-6 if dtype == "float32" else 1e-2)


def close(got, wanted):
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    assert torch.allclose(got.float(), wanted.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_conditioned", [1, 2])
def test_clean_latents_are_the_pipelines_own_conditioning_latents(pipe, encode, video_THWC, num_conditioned):
    clean_BCTHW = encode(pipe, video_THWC)
    num_conditioning = 4 * (num_conditioned - 1) + 1
    conditioning_BCTHW = pipe.video_processor.preprocess_video([Image.fromarray(f) for f in video_THWC], HEIGHT, WIDTH)
    conditioning_BCTHW[:, :, num_conditioning:] = conditioning_BCTHW[:, :, num_conditioning - 1 : num_conditioning]
    _, wanted_BCTHW, _, _ = pipe.prepare_latents(
        conditioning_BCTHW,
        1,
        16,
        HEIGHT,
        WIDTH,
        num_conditioning,
        NUM_FRAMES,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    assert torch.allclose(clean_BCTHW[:, :, :num_conditioned], wanted_BCTHW[:, :, :num_conditioned], rtol=0, atol=1e-6)
    assert not torch.allclose(clean_BCTHW[:, :, num_conditioned:], wanted_BCTHW[:, :, num_conditioned:], atol=1e-3)


def test_the_flow_runs_from_clean_to_noise_along_its_target(pipe, encode, video_THWC):
    clean_BCTHW = encode(pipe, video_THWC)
    noise = sample_noise(0, clean_BCTHW.shape[1:], TUNE, [0])
    flow = flow_input(clean_BCTHW, noise, 1e-4)
    num_conditioned = int(noise.num_conditioned_B[0])
    assert torch.equal(flow.hidden_states_BCTHW[:, :, :num_conditioned], clean_BCTHW[:, :, :num_conditioned])
    ahead_BCTHW = flow.hidden_states_BCTHW + (1 - noise.sigma_B) * flow.target_BCTHW
    back_BCTHW = flow.hidden_states_BCTHW - noise.sigma_B * flow.target_BCTHW
    loss_mask = slice(num_conditioned, None)
    assert torch.allclose(ahead_BCTHW[:, :, loss_mask], noise.noise_BCTHW[:, :, loss_mask], atol=1e-5)
    assert torch.allclose(back_BCTHW[:, :, loss_mask], clean_BCTHW[:, :, loss_mask], atol=1e-5)


def test_the_loss_counts_each_sample_over_the_frames_it_was_not_given():
    clean_BCTHW = torch.randn(2, 16, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    noise = NoiseSample(torch.tensor([0.3, 0.7]), torch.tensor([1, 2]), [False, False], torch.ones_like(clean_BCTHW))
    flow = flow_input(clean_BCTHW, noise, 1e-4)
    velocity_BCTHW = torch.zeros_like(clean_BCTHW, requires_grad=True)
    loss_B = flow_loss(velocity_BCTHW, flow)
    wanted = [flow.target_BCTHW[0, :, 1:].square().mean(), flow.target_BCTHW[1, :, 2:].square().mean()]
    assert torch.allclose(loss_B, torch.stack(wanted))
    loss_B.sum().backward()
    assert velocity_BCTHW.grad[0, :, 1:].abs().min() > 0
    assert velocity_BCTHW.grad[0, :, :1].abs().max() == 0
    assert velocity_BCTHW.grad[1, :, :2].abs().max() == 0


def test_draws_belong_to_their_sample_and_not_to_its_batch():
    together = sample_noise(3, (16, 3, 2, 2), TUNE, [7, 8])
    apart = [sample_noise(3, (16, 3, 2, 2), TUNE, [index]) for index in (7, 8)]
    assert torch.equal(together.noise_BCTHW, torch.cat([noise.noise_BCTHW for noise in apart]))
    assert torch.equal(together.sigma_B, torch.cat([noise.sigma_B for noise in apart]))
    assert together.num_conditioned_B.tolist() == [int(noise.num_conditioned_B[0]) for noise in apart]
    assert not torch.equal(together.noise_BCTHW[0], together.noise_BCTHW[1])
    other = sample_noise(4, (16, 3, 2, 2), TUNE, [7, 8])
    assert not torch.equal(together.noise_BCTHW, other.noise_BCTHW)


def test_draws_follow_the_recipes_distributions():
    noise = sample_noise(0, (1, 3, 1, 1), TUNE, range(4000))
    # The median of a monotonic function is the function of the median: t = 1/2 gives 5/6.
    assert float(noise.sigma_B.median()) == pytest.approx(5 / 6, abs=0.015)
    assert (noise.num_conditioned_B == 1).float().mean() == pytest.approx(0.5, abs=0.03)
    assert set(noise.num_conditioned_B.tolist()) == {1, 2}
    assert np.mean(noise.drop_text) == pytest.approx(0.2, abs=0.03)
    assert noise.noise_BCTHW.std() == pytest.approx(1, abs=0.05)
    assert shifted_sigma(torch.tensor(0.0), 1.0) == 0.5


def test_a_frame_is_always_left_to_learn():
    noise = sample_noise(0, (16, 2, 2, 2), TUNE, range(20))
    assert set(noise.num_conditioned_B.tolist()) == {1}


def test_text_is_encoded_once_and_dropped_text_is_zero_before_the_projection(pipe):
    encoded = []
    handle = pipe.text_encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    texts = EncodedPrompts(lambda prompt: encode_text(pipe, prompt), torch.device("cpu"))
    text_BLD = texts([PROMPT, "another", PROMPT, None])
    handle.remove()
    assert len(encoded) == 2
    with torch.no_grad():
        wanted_BLD, _ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)
        projected_BLD, zero_BLD = (
            project_text(pipe.transformer, x) for x in (wanted_BLD, torch.zeros_like(wanted_BLD))
        )
    assert torch.equal(text_BLD[0], projected_BLD[0]) and torch.equal(text_BLD[2], projected_BLD[0])
    assert torch.equal(text_BLD[3], zero_BLD[0]) and not torch.equal(text_BLD[3], text_BLD[0])
    assert not text_BLD.requires_grad


def test_prompts_beyond_the_memory_limit_are_read_again():
    read = []
    texts = EncodedPrompts(lambda prompt: read.append(prompt) or torch.ones(1, 2, 3), torch.device("cpu"), ram_gib=0.0)
    assert torch.equal(texts([PROMPT]), texts([PROMPT])) and read == [PROMPT, PROMPT]


def test_a_latent_has_the_shape_that_noise_is_drawn_in(pipe, encode, video_THWC):
    assert latent_shape(NUM_FRAMES, HEIGHT, WIDTH) == encode(pipe, video_THWC).shape[1:]
    assert latent_shape(93, 432, 768) == (16, 24, 54, 96)
