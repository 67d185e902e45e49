"""Adapters as other programs write them: each is applied as its trainer meant it, or refused by name before it runs."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamgen.errors import UserError
from dreamgen.models.adapter_files import WEIGHTS_NAME, adapter_sha256
from dreamgen.models.cosmos_predict25.adapter import (
    _check_applied,
    add_adapter,
    check_adapter_fits,
    linear_layers,
    load_adapter,
    save_adapter,
)
from dreamgen.models.cosmos_predict25.adapter_layouts import read_adapter
from dreamgen.models.cosmos_predict25.mini import build_mini
from tests.fixtures.world import make_world, tiny_sizes
from tests.models.test_adapter import plain_pipeline, run, trained

RANK, LAYERS = 4, ("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.ff.net.2")
PEFT_CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": ["to_q", "net.2"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "model")


@pytest.fixture(scope="module")
def factors():
    """Random A and B of each layer."""
    layers, generator = linear_layers(build_mini(tiny_sizes()).transformer), torch.Generator().manual_seed(0)
    return {
        name: (
            0.1 * torch.randn(RANK, layers[name].in_features, generator=generator),
            0.1 * torch.randn(layers[name].out_features, RANK, generator=generator),
        )
        for name in LAYERS
    }


def keyed(factors, prefix, low="lora_A.weight", high="lora_B.weight"):
    return {f"{prefix}{name}.{end}": value for name, pair in factors.items()
            for end, value in zip((low, high), pair, strict=True)}  # fmt: skip


def write(folder, tensors, name=WEIGHTS_NAME, metadata=None, config=None):
    folder.mkdir(exist_ok=True)
    save_file({key: value.clone() for key, value in tensors.items()}, folder / name, metadata)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def layout(tensors, **more):
    return {"tensors": tensors, **more}


def scale_in_model(world, folder, factors):
    """Fuse an adapter; return the factor of B A by which each layer's weight has changed."""
    pipe = plain_pipeline(world)
    pipe.transformer.requires_grad_(False)
    before = {name: pipe.transformer.get_submodule(name).weight.clone() for name in factors}
    load_adapter(pipe, folder, fuse=True)
    scales = []
    for name, (low, high) in factors.items():
        change, update = pipe.transformer.get_submodule(name).weight - before[name], high @ low
        scale = float((change * update).sum() / update.square().sum())
        assert torch.allclose(change, scale * update, atol=1e-5)
        scales.append(round(scale, 4))
    return scales


def metadata_of(**values):
    return {"lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in values.items()})}


def test_common_layouts_change_the_weights_by_their_own_scale(world, factors, tmp_path):
    q, plain = LAYERS[0], keyed(factors, "transformer.")
    named = keyed(factors, "transformer.", "lora_A.default_0.weight", "lora_B.default_0.weight")
    peft, of_pipeline = keyed(factors, "base_model.model."), keyed(factors, "base_model.model.transformer.")
    saved_by_peft = {"name": "adapter_model.safetensors", "config": PEFT_CONFIG}
    of_a_layer = metadata_of(lora_alpha=8, alpha_pattern={"to_q": 2})
    layouts = {
        "diffusers": (layout(plain), [1, 1]),
        "no_prefix": (layout(keyed(factors, "")), [1, 1]),
        "default_0": (layout(named), [1, 1]),
        "alpha_in_metadata": (layout(plain, metadata=metadata_of(r=RANK, lora_alpha=16)), [4, 4]),
        "alpha_of_a_layer": (layout(plain, metadata=of_a_layer), [0.5, 2]),
        "rslora": (layout(plain, metadata=metadata_of(lora_alpha=16, use_rslora=True)), [8, 8]),
        "alpha_tensors": (layout(plain | {f"transformer.{q}.alpha": torch.tensor(2.0)}), [0.5, 1]),
        "peft": (layout(peft, **saved_by_peft), [4, 4]),
        "peft_of_a_pipeline": (layout(of_pipeline, **saved_by_peft), [4, 4]),
        "diffusers_beside_a_configuration": (layout(plain, config=PEFT_CONFIG), [4, 4]),
        "another_name": (layout(plain, name="mine.safetensors"), [1, 1]),
    }
    found = {
        name: scale_in_model(world, write(tmp_path / name, **parts), factors) for name, (parts, _) in layouts.items()
    }
    assert found == {name: scales for name, (_, scales) in layouts.items()}
    file = tmp_path / "another_name/mine.safetensors"
    assert scale_in_model(world, file, factors) == [1, 1]
    assert adapter_sha256(file) == adapter_sha256(tmp_path / "another_name") == adapter_sha256(tmp_path / "diffusers")
    plain, configured = tmp_path / "diffusers", tmp_path / "diffusers_beside_a_configuration"
    assert adapter_sha256(plain) != adapter_sha256(configured)  # the configuration changes the clips


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_dora_of_peft_gives_the_trained_models_output(world, tmp_path, prefix):
    transformer = trained("dora")
    path = save_adapter(transformer, tmp_path)
    weights = load_file(path)
    path.unlink()
    renamed = {
        key.replace("transformer.transformer_blocks", f"{prefix}transformer_blocks"): value
        for key, value in weights.items()
    }
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 12, "use_dora": True, "target_modules": ["to_q"]}
    write(tmp_path, renamed, "adapter_model.safetensors", config=config)
    pipe = plain_pipeline(world)
    load_adapter(pipe, tmp_path, fuse=False)
    assert torch.allclose(run(pipe.transformer), run(transformer), atol=1e-5)


def test_dora_that_was_not_trained_is_refused_and_magnitudes_alone_are_enough(world, tmp_path):
    for name, factor, says in (("untrained", 1.0, "changes nothing"), ("magnitudes", 1.2, None)):
        transformer = build_mini(tiny_sizes()).transformer
        add_adapter(transformer, 3, 12, ["to_q"], use_dora=True)
        for key, parameter in transformer.named_parameters():
            if "magnitude" in key:
                parameter.data.mul_(factor)
        (tmp_path / name).mkdir()
        save_adapter(transformer, tmp_path / name)
        pipe = plain_pipeline(world)
        before = pipe.transformer.get_submodule(LAYERS[0]).weight.detach().clone()
        if says:
            with pytest.raises(UserError, match=says):
                load_adapter(pipe, tmp_path / name, fuse=True)
        else:
            load_adapter(pipe, tmp_path / name, fuse=True)
            assert torch.allclose(pipe.transformer.get_submodule(LAYERS[0]).weight, factor * before, atol=1e-5)


def test_layouts_that_cannot_be_applied_are_refused_by_name(factors, tmp_path):
    transformer, plain = build_mini(tiny_sizes()).transformer, keyed(factors, "transformer.")
    kohya = {f"lora_unet_{name.replace('.', '_')}.{part}": value for name, pair in factors.items()
             for part, value in zip(("lora_down.weight", "lora_up.weight"), pair, strict=True)}  # fmt: skip
    first, one = next(iter(plain)), torch.ones(4, 64)
    two = {key.replace("lora_A.weight", "lora_A.a.weight").replace("lora_B.weight", "lora_B.b.weight"): value
           for key, value in plain.items()}  # fmt: skip
    for name, says, parts in (
        ("kohya", "Kohya", layout(kohya, name="lora.safetensors")),
        ("cosmos", "Cosmos Predict's own", layout({"net.blocks.0.self_attn.q_proj.lora_A.default.weight": one})),
        ("comfy", "ComfyUI", layout({"diffusion_model.blocks.0.q.lora_A.weight": one})),
        ("lokr", "LyCORIS", layout({"transformer.x.lokr_w1": one})),
        ("two", "several adapters", layout(two)),
        ("half", "has no lora_", layout({key: value for key, value in plain.items() if key != first})),
        ("loha", "not LoRA or DoRA", layout(plain, config=PEFT_CONFIG | {"peft_type": "LOHA"})),
        ("bias", "bias=all", layout(plain, config=PEFT_CONFIG | {"bias": "all"})),
        ("nonsense", "alpha is not a number", layout(plain, config=PEFT_CONFIG | {"lora_alpha": "16"})),
        ("contradiction", "describe different", layout(plain, metadata=metadata_of(lora_alpha=8), config=PEFT_CONFIG)),
        ("zero", "changes nothing", layout({key: value * ("lora_A" in key) for key, value in plain.items()})),
        ("nan", "not finite", layout(plain | {first: plain[first] * torch.nan})),
    ):
        with pytest.raises(UserError, match=says):
            check_adapter_fits(transformer, write(tmp_path / name, **parts))
    (tmp_path / "pickle").mkdir()
    torch.save(plain, tmp_path / "pickle/pytorch_lora_weights.bin")
    write(tmp_path / "several", plain, "a.safetensors")
    write(tmp_path / "several", plain, "b.safetensors")
    for name, says in (("pickle", "may run any code"), ("several", r"a\.safetensors, b\.safetensors")):
        with pytest.raises(UserError, match=says):
            check_adapter_fits(transformer, tmp_path / name)


def test_weights_that_do_not_reach_the_model_are_noticed(world, factors, tmp_path):
    pipe = plain_pipeline(world)
    folder = write(tmp_path / "whole", keyed(factors, ""))
    adapter = read_adapter(folder, linear_layers(pipe.transformer))
    load_adapter(pipe, folder, fuse=False)
    module = pipe.transformer.get_submodule(LAYERS[0])
    _check_applied(pipe.transformer, adapter, "dreamgen")
    module.scaling["dreamgen"] *= 2
    with pytest.raises(UserError, match="scaled by 2, not 1"):
        _check_applied(pipe.transformer, adapter, "dreamgen")
    module.scaling["dreamgen"] /= 2
    module.lora_B["dreamgen"].weight.data.zero_()
    with pytest.raises(UserError, match=r"1 of its 4 tensors: transformer_blocks\.0\.attn1\.to_q\.lora_B"):
        _check_applied(pipe.transformer, adapter, "dreamgen")


def test_a_whole_network_with_a_tensor_missing_is_refused(tmp_path):
    transformer = build_mini(tiny_sizes()).transformer
    save_adapter(transformer, tmp_path)
    check_adapter_fits(transformer, tmp_path)
    (file,) = (tmp_path / "transformer").glob("*.safetensors")
    weights = load_file(file)
    del weights["proj_out.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"such as proj_out\.weight"):
        check_adapter_fits(transformer, tmp_path)
