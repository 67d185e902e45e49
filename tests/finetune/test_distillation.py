"""Guidance is folded into an adapter: the teacher's two passes, what is learned, resuming, and what refuses what."""

from dataclasses import replace

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from dreamgen.data.video import read_video
from dreamgen.errors import Problems, UserError
from dreamgen.models.adapter_choice import choose_adapter
from dreamgen.models.adapter_files import WEIGHTS_NAME, distilled_guidance
from dreamgen.models.cosmos_predict25.before_loading import DEFAULT_NEGATIVE_PROMPT
from dreamgen.models.cosmos_predict25.flow import VelocityModel, flow_input, sample_noise
from dreamgen.models.cosmos_predict25.guidance_distillation import guided_velocity
from dreamgen.models.cosmos_predict25.latents import LatentScale, vae_means
from dreamgen.models.cosmos_predict25.loading import latent_statistics, load_pipeline
from dreamgen.models.cosmos_predict25.text import encode_text
from dreamgen.models.cosmos_predict25.training import CosmosTraining
from dreamgen.models.world_model import resolve_world_model
from dreamgen.pipeline import run_all
from dreamgen.plan.stage import plan
from dreamgen.run.run_folder import RunFolder
from finetune import finetune
from finetune.distillation import check_distillation, check_model, fixed_by_teacher, teacher_prompt
from finetune.windows import read_training_set
from tests.finetune.conftest import training_settings, write_training_set
from tests.finetune.curves import curve
from tests.finetune.test_resume import stopped
from tests.fixtures.world import write_pairs

SCALE = 3.0


def settings_of(folder, world, **tune):
    if not (folder / "train").exists():
        write_training_set(folder)
    return training_settings(folder, world, finetune={"distill_guidance": SCALE, **tune})


@pytest.fixture(scope="module", params=["lora", "dora"])
def trained(request, world, tmp_path_factory):
    """An adapter that was trained on clips: what guidance is to be folded into. Its method and folder."""
    folder = tmp_path_factory.mktemp(request.param)
    write_training_set(folder)
    tune = {"method": request.param, "num_steps": 8, "learning_rate": 3e-2}
    finetune(training_settings(folder, world, finetune=tune))
    return request.param, folder / "adapter"


def step_inputs(settings, num_samples=6):
    """Noised latents of a training clip, its text and the negative one; the model's adapter is not trained."""
    run = RunFolder.of(settings)
    source = resolve_world_model(settings.model, run)
    pipe, clip = load_pipeline(source, settings.model), read_training_set(run, settings.video)[0]
    scale = LatentScale(*latent_statistics(source))
    encoded_B = vae_means(pipe.vae, torch.from_numpy(read_video(clip.path))[None]).repeat(num_samples, 1, 1, 1, 1)
    noise = sample_noise(99, encoded_B.shape[1:], settings.finetune, range(num_samples))
    flow = flow_input(scale(encoded_B), noise, settings.finetune.conditional_frame_timestep)
    text_BLD, negative_1LD = encode_text(pipe, clip.prompt), encode_text(pipe, DEFAULT_NEGATIVE_PROMPT)
    return encoded_B, noise, flow, text_BLD.expand(num_samples, -1, -1), negative_1LD


@torch.no_grad()
def predict(settings, adapter, flow, text_BLD):
    """One pass with an adapter fused into the weights, as clips are generated."""
    source = resolve_world_model(settings.model, RunFolder.of(settings))
    model = VelocityModel(load_pipeline(source, settings.model, adapter=adapter).transformer)
    return model(flow.hidden_states_BCTHW, flow.condition_mask_B1THW, flow.timestep_BT, text_BLD)


def error(velocity_BCTHW, target_BCTHW, flow):
    """The mean squared error of each sample over the frames that are not given."""
    squared = (velocity_BCTHW - target_BCTHW).square().mean(dim=(1, 3, 4))
    counted = flow.loss_mask_B1T11[:, 0, :, 0, 0]
    return (squared * counted).sum(1) / counted.sum(1)


def loaded(settings):
    source = resolve_world_model(settings.model, RunFolder.of(settings))
    model = CosmosTraining(source, settings, torch.device("cpu"))
    return model, model.make_trainable()


def test_at_scale_1_the_target_is_the_prediction_for_the_prompt():
    prompted, negative = torch.randn(2, 1, 4, 2, 3, 3)
    assert torch.equal(guided_velocity(prompted, negative, 1.0), prompted)
    assert torch.equal(guided_velocity(prompted, negative, 0.5), prompted)
    assert torch.equal(guided_velocity(prompted, negative, 2.0), prompted + 2 * (prompted - negative))


def test_the_loss_of_an_untrained_adapter_is_what_guidance_adds(world, tmp_path):
    settings = settings_of(tmp_path, world)
    encoded_B, noise, flow, text_BLD, negative_1LD = step_inputs(settings)
    prompted, negative = (predict(settings, None, flow, text) for text in (text_BLD, negative_1LD.expand_as(text_BLD)))
    model, parameters = loaded(settings)
    trained_before = {name for name, value in model.network.named_parameters() if value.requires_grad}
    loss_B = model.distillation_loss(model.forward_module, encoded_B, text_BLD, negative_1LD, noise)
    assert loss_B.detach() == pytest.approx(error(SCALE * prompted, SCALE * negative, flow), rel=1e-3)
    assert loss_B.min() > 0 and len(loss_B) == 6
    loss_B.mean().backward()
    assert trained_before == {name for name, value in model.network.named_parameters() if value.requires_grad}
    assert len(trained_before) == len(parameters) and any(value.grad.any() for value in parameters)
    assert all(value.grad is None for value in model.network.parameters() if not value.requires_grad)


def test_the_teacher_keeps_the_adapter_that_the_student_starts_from(trained, world, tmp_path):
    method, adapter = trained
    settings = settings_of(tmp_path, world, method=method, init_adapter=str(adapter))
    encoded_B, noise, flow, text_BLD, negative_1LD = step_inputs(settings)
    prompted, negative = (
        predict(settings, adapter, flow, text) for text in (text_BLD, negative_1LD.expand_as(text_BLD))
    )
    wanted = error(SCALE * prompted, SCALE * negative, flow)
    model, parameters = loaded(settings)

    def loss_B():
        return model.distillation_loss(model.forward_module, encoded_B, text_BLD, negative_1LD, noise).detach()

    assert loss_B() == pytest.approx(wanted, rel=1e-2)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        student = model.forward_module(flow.hidden_states_BCTHW, flow.condition_mask_B1THW, flow.timestep_BT, text_BLD)
    target = guided_velocity(prompted, negative, SCALE)  # the teacher has not moved with the student
    assert loss_B() == pytest.approx(error(student, target, flow), rel=1e-2)
    assert not torch.allclose(loss_B(), wanted, rtol=0.05)
    active = {tuple(module.active_adapters) for module in model.network.modules() if isinstance(module, BaseTunerLayer)}
    assert active == {("dreamgen",)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_student_comes_nearer_to_the_two_passes(dtype, world, tmp_path):
    tune = {"num_steps": 40, "warmup_steps": 3, "learning_rate": 3e-2, "batch_size": 2, "validation_clips": 1}
    settings = settings_of(tmp_path, world, validate_every=40, **tune)
    settings = replace(settings, model=replace(settings.model, dtype=dtype))
    result = finetune(settings)
    assert "--plan.guidance_scale=1" in result.notes[-1]
    rows = [line.split(",") for line in (tmp_path / "finetune/validation.csv").read_text().splitlines()[1:]]
    before, after = (sum(float(loss) for step, _, loss in rows if step == wanted) for wanted in ("0", "40"))
    assert after < 0.7 * before
    if dtype == "float32":
        _, _, flow, text_BLD, negative_1LD = step_inputs(settings)
        base, negative = (predict(settings, None, flow, text) for text in (text_BLD, negative_1LD.expand_as(text_BLD)))
        target = guided_velocity(base, negative, SCALE)
        student = predict(settings, tmp_path / "adapter", flow, text_BLD)
        assert error(student, target, flow).mean() < 0.7 * error(base, target, flow).mean()


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_a_distillation_that_is_stopped_and_resumed_is_as_if_never_stopped(
    cache, trained, world, tmp_path, monkeypatch
):
    method, adapter = trained
    tune = {"method": method, "init_adapter": str(adapter), "num_steps": 5, "cache": cache, "num_workers": 0}
    finetune(settings_of(tmp_path / "whole", world, **tune))
    settings = settings_of(tmp_path / "parts", world, **tune)
    assert stopped(monkeypatch, settings, 3).metrics["step"] == 3
    finetune(settings, resume=True)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")  # to the last bit
    whole, parts = (load_file(tmp_path / name / "adapter" / WEIGHTS_NAME) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() == load_file(adapter / WEIGHTS_NAME).keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_resumed_distillation_keeps_its_teacher(trained, world, tmp_path, monkeypatch):
    method, adapter = trained
    settings = settings_of(tmp_path, world, method=method, init_adapter=str(adapter))
    stopped(monkeypatch, settings, 2)
    for path, changes in (
        ("finetune.distill_guidance", {"finetune": replace(settings.finetune, distill_guidance=4.0)}),
        ("negative prompt", {"plan": replace(settings.plan, negative_prompt="blurry")}),
        ("finetune.init_adapter", {"finetune": replace(settings.finetune, init_adapter=None)}),
    ):
        with pytest.raises(UserError, match="other settings or data") as caught:
            finetune(replace(settings, **changes), resume=True)
        assert path in str(caught.value)


def test_the_adapter_says_what_is_folded_in_and_plan_refuses_to_guide_it(world, tmp_path):
    settings = settings_of(tmp_path, world, num_steps=1)
    finetune(settings)
    assert distilled_guidance(tmp_path / "adapter") == SCALE
    card = (tmp_path / "adapter/README.md").read_text()
    assert "| guidance | scale 3 is folded in" in card and "guidance_scale=1.0" in card
    pairs = write_pairs(tmp_path / "pairs", 1)
    wanted = replace(settings, plan=replace(settings.plan, first_frames=str(pairs), guidance_scale=7.0))
    with pytest.raises(UserError, match="guidance is folded into the adapter") as caught:
        plan(wanted)
    assert "--plan.guidance_scale=1" in str(caught.value) and "scale 3" in str(caught.value)
    blend = f"{tmp_path / 'adapter'}:0.5,{tmp_path / 'adapter'}:0.5"
    with pytest.raises(UserError, match="folded"):
        plan(replace(wanted, plan=replace(wanted.plan, adapter=blend)))
    result = plan(replace(wanted, plan=replace(wanted.plan, guidance_scale=1.0)))
    assert result.metrics["num_new"] == 1 and any("scale 3 is folded" in note for note in result.notes)
    assert plan(replace(wanted, plan=replace(wanted.plan, adapter="base"))).metrics["num_new"] == 1
    choice = choose_adapter(str(tmp_path / "adapter"), RunFolder(tmp_path))
    assert choice is not None and list(choice.distilled().values()) == [SCALE]


def test_a_training_on_clips_starts_from_an_adapter_and_says_so(trained, world, tmp_path):
    method, adapter = trained
    write_training_set(tmp_path)
    tune = {"method": method, "init_adapter": str(adapter), "num_steps": 1, "learning_rate": 1e-12}
    settings = training_settings(tmp_path, world, finetune=tune)
    finetune(settings)
    before, after = (load_file(folder / WEIGHTS_NAME) for folder in (adapter, tmp_path / "adapter"))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert distilled_guidance(tmp_path / "adapter") is None
    card = (tmp_path / "adapter/README.md").read_text()
    assert "| starts from |" in card and str(adapter.parent.parent) not in card


def test_what_cannot_be_distilled_is_refused(trained, world, tmp_path):
    method, adapter = trained
    other = {"lora": "dora", "dora": "lora"}[method]
    settings = settings_of(tmp_path, world, method=other, init_adapter=str(adapter))
    lora = replace(settings.finetune.lora, rank=3, alpha=5, target_modules=["to_q"])
    with pytest.raises(UserError) as caught:
        finetune(replace(settings, finetune=replace(settings.finetune, lora=lora)))
    for text in (f"--finetune.method={method}", "--finetune.lora.rank=4", "--finetune.lora.alpha=8", "target_modules"):
        assert text in str(caught.value)
    with pytest.raises(UserError, match="low-rank"):
        finetune(settings_of(tmp_path, world, method="full"))
    with pytest.raises(UserError, match="no adapter in"):
        finetune(settings_of(tmp_path, world, init_adapter=str(tmp_path / "nothing")))
    finetune(settings_of(tmp_path / "once", world, num_steps=1))
    with pytest.raises(UserError, match="folded into finetune.init_adapter already"):
        finetune(settings_of(tmp_path, world, init_adapter=str(tmp_path / "once/adapter")))
    assert not (tmp_path / "adapter").exists()


def test_a_run_that_would_guide_its_own_student_does_not_start(world, tmp_path):
    settings = settings_of(tmp_path, world)
    with pytest.raises(UserError, match="plan must not guide it again"):
        run_all(settings, resume=True)


def test_a_model_without_guidance_is_refused(tmp_path, world):
    class Plain:
        can_distill = False

    settings = settings_of(tmp_path, world)
    with pytest.raises(UserError, match="cannot start from an adapter"):
        check_model(Plain(), settings)  # pyright: ignore[reportArgumentType]
    check_model(Plain(), training_settings(tmp_path, world))  # pyright: ignore[reportArgumentType]


def test_the_teachers_negative_prompt_is_the_one_of_plan(tmp_path, world):
    settings = settings_of(tmp_path, world)
    assert teacher_prompt(settings) == DEFAULT_NEGATIVE_PROMPT
    own = replace(settings, plan=replace(settings.plan, negative_prompt="blurry"))
    assert teacher_prompt(own) == "blurry" and "blurry" in fixed_by_teacher(own).values()
    assert teacher_prompt(training_settings(tmp_path, world)) is None
    check_distillation(settings, problems := Problems())
    assert not problems.errors
