"""An adapter means the same in training, in a plain diffusers pipeline and fused; one that does not fit is refused."""

import json

import pytest
import torch
from diffusers import Cosmos2_5_PredictBasePipeline
from safetensors import safe_open

from dreamgen.errors import UserError
from dreamgen.models.adapter_files import WEIGHTS_NAME, adapter_sha256
from dreamgen.models.cosmos_predict25.adapter import add_adapter, check_adapter_fits, load_adapter, save_adapter
from dreamgen.models.cosmos_predict25.mini import build_mini
from dreamgen.models.cosmos_predict25.safety import NoSafetyChecker
from tests.fixtures.world import make_world, tiny_sizes

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
RANK, ALPHA = 3, 12  # unlike, so that a lost alpha shows


def run(transformer, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    with torch.no_grad():
        return transformer(
            hidden_states=normal(1, 16, 3, 4, 6),
            condition_mask=torch.zeros(1, 1, 3, 4, 6, dtype=dtype),
            timestep=torch.full((1, 1, 3, 1, 1), 0.7),
            encoder_hidden_states=normal(1, 8, transformer.config.crossattn_proj_in_channels),
            padding_mask=torch.zeros(1, 1, 32, 48, dtype=dtype),
            return_dict=False,
        )[0].float()


def trained(method, seed=0):
    """A transformer with an adapter whose every weight has moved, as training moves it."""
    transformer = build_mini(tiny_sizes()).transformer
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parameters = add_adapter(transformer, RANK, ALPHA, TARGETS, use_dora=method == "dora")
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return transformer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "model")


def plain_pipeline(world):
    return Cosmos2_5_PredictBasePipeline.from_pretrained(world, safety_checker=NoSafetyChecker())


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_fresh_adapter_changes_nothing_and_alone_is_trained(method):
    transformer = build_mini(tiny_sizes()).transformer
    before = run(transformer)
    parameters = add_adapter(transformer, RANK, ALPHA, TARGETS, use_dora=method == "dora")
    assert torch.allclose(run(transformer), before, atol=1e-6)
    trainable = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    assert len(parameters) == len(trainable) == (30 if method == "dora" else 20)
    assert all(".lora_" in name for name in trainable)
    assert {name.split(".lora_")[0] for name in trainable} == {
        f"transformer_blocks.0.{layer}"
        for layer in (
            "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v",
            "attn2.to_out.0", "ff.net.0.proj", "ff.net.2",
        )
    }  # fmt: skip


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_are_float32_on_a_bfloat16_base(method):
    transformer = build_mini(tiny_sizes()).transformer.to(torch.bfloat16)
    parameters = add_adapter(transformer, RANK, ALPHA, TARGETS, use_dora=method == "dora")
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    frozen = [parameter for parameter in transformer.parameters() if not parameter.requires_grad]
    assert {parameter.dtype for parameter in frozen} == {torch.bfloat16}


def test_a_layer_name_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match="target_modules"):
        add_adapter(build_mini(tiny_sizes()).transformer, RANK, ALPHA, ["to_q", "to_query"], use_dora=False)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_plain_diffusers_gives_the_trained_models_output(method, world, tmp_path):
    transformer = trained(method)
    wanted = run(transformer)
    save_adapter(transformer, tmp_path)

    pipe = plain_pipeline(world)
    base = run(pipe.transformer)
    pipe.load_lora_weights(str(tmp_path), weight_name=WEIGHTS_NAME)
    assert torch.allclose(run(pipe.transformer), wanted, atol=1e-6)
    assert not torch.allclose(base, wanted, atol=0.05)
    if method == "dora":  # the norms had a part in it
        for name, parameter in pipe.transformer.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.data.mul_(1.5)
        assert not torch.allclose(run(pipe.transformer), wanted, atol=0.05)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("fuse", [True, False])
def test_load_adapter_gives_the_trained_models_output(method, fuse, world, tmp_path):
    transformer = trained(method)
    save_adapter(transformer, tmp_path)
    pipe = plain_pipeline(world)
    load_adapter(pipe, tmp_path, fuse=fuse)
    assert torch.allclose(run(pipe.transformer), run(transformer), atol=1e-5)
    assert any("lora" in name for name, _ in pipe.transformer.named_parameters()) is not fuse


def test_the_file_carries_its_configuration(tmp_path):
    path = save_adapter(trained("dora"), tmp_path)
    with safe_open(path, framework="pt") as stream:
        assert stream.metadata()["format"] == "pt"
        config = json.loads(stream.metadata()["lora_adapter_metadata"])
        keys = list(stream.keys())
    wanted = {"r": RANK, "lora_alpha": ALPHA, "use_dora": True, "target_modules": sorted(TARGETS)}
    assert {name: config[f"transformer.{name}"] for name in wanted} == wanted
    assert all(key.startswith("transformer.transformer_blocks.0.") for key in keys)


def test_equal_adapters_are_equal_files(tmp_path):
    equal = [trained("lora"), trained("lora")] * 4  # often, as a random order would be right now and then
    hashes = []
    for index, transformer in enumerate([*equal, trained("lora", seed=1)]):
        folder = tmp_path / str(index)
        folder.mkdir()
        save_adapter(transformer, folder)
        hashes.append(adapter_sha256(folder))
    assert len(set(hashes[:-1])) == 1 and hashes[-1] != hashes[0]


def test_an_adapter_of_another_size_is_refused_by_its_layers(tmp_path):
    save_adapter(trained("dora"), tmp_path)
    sizes = tiny_sizes()
    sizes["transformer"]["num_attention_heads"] = 3
    with pytest.raises(UserError) as caught:
        check_adapter_fits(build_mini(sizes).transformer, tmp_path)
    assert "transformer_blocks.0.attn1.to_k.lora_A.weight has shape [3, 64]" in str(caught.value)
    assert "96 -> 96" in str(caught.value)

    sizes = tiny_sizes()
    deeper = build_mini(sizes | {"transformer": sizes["transformer"] | {"num_layers": 2}}).transformer
    add_adapter(deeper, RANK, ALPHA, TARGETS, use_dora=False)
    (tmp_path / "deeper").mkdir()
    save_adapter(deeper, tmp_path / "deeper")
    with pytest.raises(UserError, match=r"no linear layer transformer_blocks\.1\.attn1\.to_k"):
        check_adapter_fits(build_mini(tiny_sizes()).transformer, tmp_path / "deeper")


def test_a_file_that_is_no_adapter_is_refused(world, tmp_path):
    pipe = plain_pipeline(world)
    with pytest.raises(UserError, match="no adapter in"):
        load_adapter(pipe, tmp_path, fuse=True)
    path = save_adapter(trained("lora"), tmp_path)
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:50], b"", b"PK\x03\x04 not safetensors"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            load_adapter(pipe, tmp_path, fuse=True)
    path.write_bytes((world / "transformer/diffusion_pytorch_model.safetensors").read_bytes())
    with pytest.raises(UserError, match="not a part of a LoRA"):
        load_adapter(pipe, tmp_path, fuse=True)
    assert not any("lora" in name for name, _ in pipe.transformer.named_parameters())
    assert path.name == WEIGHTS_NAME
