"""The fast step gives the plain step's velocity and gradients: kept or recomputed, compiled or not, LoRA or DoRA."""

import functools
import logging

import pytest
import torch

from dreamgen.config.training_settings import FinetuneSettings, LoraSettings
from dreamgen.models.cosmos_predict25.activation_checkpointing import training_block, training_blocks
from dreamgen.models.cosmos_predict25.adapter import add_adapter
from dreamgen.models.cosmos_predict25.checkpoint_policies import choose_policies, step_activations
from dreamgen.models.cosmos_predict25.dora import BASE_NORM, column_norm, use_closed_form
from dreamgen.models.cosmos_predict25.flow import flow_input, flow_loss, sample_noise
from dreamgen.models.cosmos_predict25.mini import build_mini
from dreamgen.models.cosmos_predict25.velocity import block_forward, project_text, velocity
from tests.fixtures.world import tiny_sizes

TARGETS = LoraSettings().target_modules
NUM_FRAMES, LATENT_PX = 3, 4


def trained_transformer(use_dora: bool):
    """An adapter away from its zero start, where half of the gradients would be zero."""
    transformer = build_mini(tiny_sizes()).transformer
    torch.manual_seed(0)
    parameters = add_adapter(transformer, 4, 12, TARGETS, use_dora)
    for parameter in parameters:
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.1)
    return transformer.train(), parameters


def inputs(transformer):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, NUM_FRAMES, LATENT_PX, LATENT_PX, generator=generator)
    mask = torch.zeros(1, 1, NUM_FRAMES, LATENT_PX, LATENT_PX)
    mask[:, :, 0] = 1
    timestep_BT = torch.tensor([[1e-4, 0.7, 0.7]])
    text = torch.randn(1, 512, transformer.config.crossattn_proj_in_channels, generator=generator)
    return latents, mask, timestep_BT, text


def gradients(transformer, parameters, run_block):
    latents, mask, timestep_BT, text = inputs(transformer)
    answer = velocity(transformer, latents, mask, timestep_BT, project_text(transformer, text).detach(), run_block)
    answer.square().mean().backward()
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
    for parameter in parameters:
        parameter.grad = None
    return answer.detach(), flat


def test_velocity_is_the_transformers_own(monkeypatch):
    transformer, _ = trained_transformer(use_dora=False)
    latents, mask, timestep_BT, text = inputs(transformer)
    wanted = transformer(
        hidden_states=latents,
        condition_mask=mask,
        timestep=timestep_BT[:, None, :, None, None],
        encoder_hidden_states=text,
        padding_mask=torch.zeros(1, 1, 8 * LATENT_PX, 8 * LATENT_PX),
        return_dict=False,
    )[0]
    found = velocity(transformer, latents, mask, timestep_BT, project_text(transformer, text))
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("policies", [["blocks"], ["attention"], ["all"], ["attention", "all"]], ids="+".join)
def test_what_a_block_keeps_changes_no_gradient(policies, use_dora):
    transformer, parameters = trained_transformer(use_dora)
    num_layers = len(transformer.transformer_blocks)
    answer, wanted = gradients(transformer, parameters, block_forward)
    use_closed_form(transformer)
    each = (policies * num_layers)[:num_layers]
    found_answer, found = gradients(transformer, parameters, training_blocks(each, compiled=False))
    assert torch.allclose(found_answer, answer, rtol=0, atol=1e-5)
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def losses_of_training(step, use_dora, num_steps=30):
    """Train from the same adapter on the same noise by diffusers' own step or by ours; benchmarks has 200 steps."""
    transformer, parameters = trained_transformer(use_dora)
    tune = FinetuneSettings(learning_rate=1e-2)
    if step == "plain":
        transformer.enable_gradient_checkpointing()
    else:
        use_closed_form(transformer)
    blocks = training_blocks(["attention"] * len(transformer.transformer_blocks), compiled=False)
    text = inputs(transformer)[3]
    clean = torch.linspace(-1, 1, 16).view(1, -1, 1, 1, 1).expand(1, 16, NUM_FRAMES, LATENT_PX, LATENT_PX)
    optimizer, losses = torch.optim.AdamW(parameters, lr=tune.learning_rate), []
    for number in range(num_steps):
        flow = flow_input(clean, sample_noise(0, clean.shape[1:], tune, [number]), tune.conditional_frame_timestep)
        latents, mask, timestep_BT = flow.hidden_states_BCTHW, flow.condition_mask_B1THW, flow.timestep_BT
        if step == "plain":
            padding = torch.zeros(1, 1, 8 * LATENT_PX, 8 * LATENT_PX)
            answer = transformer(
                latents,
                timestep_BT[:, None, :, None, None],
                text,
                condition_mask=mask,
                padding_mask=padding,
                return_dict=False,
            )[0]
        else:
            answer = velocity(transformer, latents, mask, timestep_BT, project_text(transformer, text), blocks)
        loss = flow_loss(answer, flow).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, tune.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_the_curves_of_the_plain_and_our_step_lie_on_each_other(use_dora):
    plain = losses_of_training("plain", use_dora)
    assert losses_of_training("fast", use_dora) == pytest.approx(plain, rel=1e-3)
    assert sum(plain[-10:]) < 0.9 * sum(plain[:10])  # it learns, so the weights did move


@pytest.mark.slow
def test_a_block_is_one_graph_for_the_compiler():
    transformer, parameters = trained_transformer(use_dora=True)
    use_closed_form(transformer)
    answer, wanted = gradients(transformer, parameters, block_forward)
    torch._dynamo.reset()
    compiled = torch.compile(block_forward, backend="aot_eager", dynamic=False, fullgraph=True)
    found_answer, found = gradients(transformer, parameters, compiled)
    assert torch.allclose(found_answer, answer, atol=1e-5)
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.slow
def test_compiled_checkpointing_prints_nothing(monkeypatch, caplog):
    logger = logging.getLogger("torch._higher_order_ops.wrap")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._logging._internal.warning_once.cache_clear()
    transformer, parameters = trained_transformer(use_dora=False)
    _, found = gradients(transformer, parameters, training_block("attention", compiled=True))
    assert found.norm() > 0
    assert not [record for record in caplog.records if record.name == logger.name]


@pytest.mark.parametrize("policies", [["all"], ["attention", "all"], ["blocks"]], ids="+".join)
def test_graphs_are_replayed_for_gradients_only(policies, monkeypatch):
    modes, compiled = [], torch.compile

    def without_inductor(run, mode=None, **options):
        eager = compiled(run, backend="aot_eager", **options)

        def counted(*arguments):
            modes.append(mode)
            return eager(*arguments)

        return counted

    transformer, parameters = trained_transformer(use_dora=False)
    num_layers = len(transformer.transformer_blocks)
    wanted_answer, wanted = gradients(transformer, parameters, block_forward)
    monkeypatch.setattr(torch, "compile", without_inductor)
    torch._dynamo.reset()
    blocks = training_blocks((policies * num_layers)[:num_layers], compiled=True, cuda_graphs=True)
    answer, found = gradients(transformer, parameters, blocks)
    assert torch.allclose(answer, wanted_answer, atol=1e-5) and torch.allclose(found, wanted, atol=1e-4)
    assert modes == ["reduce-overhead"] * num_layers
    modes.clear()
    with torch.no_grad():
        latents, mask, timestep_BT, text = inputs(transformer)
        answer = velocity(transformer, latents, mask, timestep_BT, project_text(transformer, text), blocks)
    assert torch.allclose(answer, wanted_answer, atol=1e-5)
    assert modes == [None] * num_layers
    assert training_blocks(["all"], compiled=False, cuda_graphs=True) == [block_forward]


def test_the_column_norm_is_that_of_the_dense_update():
    generator = torch.Generator().manual_seed(0)
    weight, low, high = (torch.randn(*s, generator=generator) for s in ((24, 40), (4, 40), (24, 4)))
    wanted = (weight.double() + 0.5 * high.double() @ low.double()).norm(dim=1)
    found = column_norm(weight, weight.square().sum(dim=1), low, high, 0.5)
    assert torch.allclose(found.double(), wanted, rtol=1e-6)


def test_the_closed_form_leaves_nothing_in_the_saved_adapter():
    transformer, _ = trained_transformer(use_dora=True)
    before = set(transformer.state_dict())
    assert use_closed_form(transformer) > 0
    assert set(transformer.state_dict()) == before
    assert use_closed_form(transformer) == 0
    assert any(hasattr(module, BASE_NORM) for module in transformer.modules())


def test_more_memory_keeps_more():
    num_layers, unit_gib, takes = 28, 0.1187, step_activations(compiled=True, use_dora=False)
    need = takes.working * unit_gib
    assert choose_policies(num_layers, unit_gib, 5.0, 5.0, takes) == ["blocks"] * num_layers
    middle = 5.0 + need + num_layers * takes.attention * unit_gib + 0.1
    assert choose_policies(num_layers, unit_gib, 5.0, middle, takes) == ["attention"] * num_layers
    assert choose_policies(num_layers, unit_gib, 5.0, 1000.0, takes) == ["all"] * num_layers
    counts = [choose_policies(num_layers, unit_gib, 5.0, gib, takes).count("all") for gib in range(10, 120, 5)]
    assert counts == sorted(counts)
    assert 0 < choose_policies(num_layers, unit_gib, 5.0, 72.0, takes).count("all") < num_layers
