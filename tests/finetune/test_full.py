"""Training all weights writes a transformer that takes the base model's place, in ours and in plain diffusers."""

from dataclasses import replace

import pytest
import torch
from diffusers import Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel

from dreamgen.errors import UserError
from dreamgen.models.adapter_files import adapter_sha256
from dreamgen.models.cosmos_predict25.loading import load_pipeline, load_transformer
from dreamgen.models.cosmos_predict25.mini import save_mini
from dreamgen.models.cosmos_predict25.safety import NoSafetyChecker
from dreamgen.models.world_model import WorldModelSource
from finetune import finetune
from tests.finetune.conftest import training_settings, write_training_set
from tests.finetune.test_train import curve, loss_on_fixed_draws
from tests.fixtures.world import tiny_sizes

FULL = {"method": "full", "num_steps": 20, "warmup_steps": 3, "learning_rate": 3e-3}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_weights_are_trained_and_dream(world, tmp_path, dtype):
    write_training_set(tmp_path)
    settings = training_settings(tmp_path, world, model={"dtype": dtype}, finetune=FULL)
    finetune(settings)
    assert sorted(path.name for path in (tmp_path / "adapter/transformer").iterdir()) == [
        "config.json", "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    source = WorldModelSource("tiny", str(world), None, "")
    before = load_transformer(source, settings.model).state_dict()
    after = load_pipeline(source, settings.model, adapter=tmp_path / "adapter").transformer
    assert not any(parameter.requires_grad for parameter in after.parameters()) and not after.training
    same = {name for name, value in after.state_dict().items() if torch.equal(value, before[name])}
    assert after.state_dict().keys() == before.keys() and same == {n for n in before if n.startswith("crossattn_proj.")}
    assert {value.dtype for value in after.state_dict().values()} == {getattr(torch, dtype)}
    if dtype == "float32":
        assert loss_on_fixed_draws(settings, tmp_path / "adapter") < 0.8 * loss_on_fixed_draws(settings, None)
        trained = CosmosTransformer3DModel.from_pretrained(tmp_path / "adapter", subfolder="transformer")
        pipe = Cosmos2_5_PredictBasePipeline.from_pretrained(
            world, transformer=trained, safety_checker=NoSafetyChecker()
        )
        plain = pipe.transformer.state_dict()
        assert all(torch.equal(plain[name], value) for name, value in after.state_dict().items())
    assert all(0 < loss < 10 for loss in curve(tmp_path))


def test_other_weights_have_another_hash_and_another_size_is_refused(world, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_training_set(tmp_path / name)
        settings = training_settings(tmp_path / name, world, finetune=FULL | {"num_steps": 2})
        finetune(replace(settings, seed=seed))
    hashes = {name: adapter_sha256(tmp_path / name / "adapter") for name in "abc"}
    assert hashes["a"] == hashes["b"] != hashes["c"]

    sizes = tiny_sizes()
    sizes["transformer"]["num_layers"] = 2
    save_mini(tmp_path / "larger", sizes)
    larger = WorldModelSource("larger", str(tmp_path / "larger"), None, "")
    with pytest.raises(UserError, match="not of the model's size") as caught:
        load_pipeline(larger, settings.model, adapter=tmp_path / "a/adapter")
    assert "num_layers is 1, not 2" in str(caught.value)

    weights = tmp_path / "b/adapter/transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        load_pipeline(WorldModelSource("tiny", str(world), None, ""), settings.model, adapter=tmp_path / "b/adapter")


def test_a_saved_pipeline_is_a_model_of_its_own(world, tmp_path):
    write_training_set(tmp_path)
    tune = {**FULL, "num_steps": 50, "max_minutes": 1e-6, "save_pipeline": True, "dropped_text": "negative_prompt"}
    result = finetune(training_settings(tmp_path, world, finetune=tune | {"text_dropout": 1.0}))
    assert result.metrics["num_steps"] == 1 and "the time was up after 1 of 50 steps" in result.notes
    assert "| optimizer steps | 1 |" in (result.outputs["adapter"] / "README.md").read_text()
    pipe = Cosmos2_5_PredictBasePipeline.from_pretrained(tmp_path / "adapter", safety_checker=NoSafetyChecker())
    trained = CosmosTransformer3DModel.from_pretrained(tmp_path / "adapter/transformer").state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in pipe.transformer.state_dict().items())
    settings = training_settings(tmp_path / "next", tmp_path / "adapter")
    loaded = load_pipeline(WorldModelSource("own", str(tmp_path / "adapter"), None, ""), settings.model)
    assert loaded.text_encoder is not None
