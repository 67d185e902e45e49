"""The mini model, a local folder and a hub id take one path, and loading errors are reported."""

import importlib.util
import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import Cosmos2_5_PredictBasePipeline

from dreamgen.config.settings import ModelSettings
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.adapter import add_adapter, save_adapter
from dreamgen.models.cosmos_predict25.before_loading import (
    DEFAULT_NEGATIVE_PROMPT,
    UnloadedCosmosPredict25,
    pipeline_negative_prompt,
)
from dreamgen.models.cosmos_predict25.loading import empty_transformer, load_pipeline
from dreamgen.models.cosmos_predict25.mini import build_mini, save_mini, save_pipeline
from dreamgen.models.cosmos_predict25.model import CosmosPredict25
from dreamgen.models.cosmos_predict25.safety import NoSafetyChecker, make_safety_checker
from dreamgen.models.cosmos_predict25.transformer_size import find_size, source_size
from dreamgen.models.devices import resolve_device, torch_dtype
from dreamgen.models.fingerprint import folder_fingerprint
from dreamgen.models.world_model import resolve_world_model
from dreamgen.run.run_folder import RunFolder
from tests.fixtures.world import make_world, tiny_sizes

MODEL = ModelSettings(path="mini-random", revision=None, dtype="float32", device="cpu", safety_checker=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "model")


def test_a_local_folder_is_loaded_whole_and_frozen(world, tmp_path):
    source = resolve_world_model(replace(MODEL, path=str(world)), RunFolder(tmp_path))
    assert (source.name, source.revision) == ("model", None)
    pipe = load_pipeline(source, MODEL)
    wanted = build_mini(tiny_sizes())
    for name in ("transformer", "vae", "text_encoder"):
        part = getattr(pipe, name)
        assert not part.training and not any(parameter.requires_grad for parameter in part.parameters())
        loaded, built = part.state_dict(), getattr(wanted, name).state_dict()
        assert loaded.keys() == built.keys()
        assert all(torch.equal(loaded[key], built[key]) for key in loaded)


def test_the_precision_is_the_settings(world):
    source = resolve_world_model(replace(MODEL, path=str(world)), RunFolder(world.parent))
    pipe = load_pipeline(source, replace(MODEL, dtype="bfloat16"))
    assert {pipe.transformer.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}
    assert torch_dtype("float32") is torch.float32


def test_an_adapter_is_fused_into_the_loaded_model(world, tmp_path):
    source = resolve_world_model(replace(MODEL, path=str(world)), RunFolder(tmp_path))
    plain = load_pipeline(source, MODEL)
    for parameter in add_adapter(plain.transformer, 4, 4, ["to_q"], use_dora=False):
        torch.nn.init.constant_(parameter, 0.1)
    save_adapter(plain.transformer, tmp_path)
    fused = load_pipeline(source, MODEL, adapter=tmp_path).transformer.state_dict()
    before = build_mini(tiny_sizes()).transformer.state_dict()
    assert fused.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], fused[name])}
    assert changed == {f"transformer_blocks.0.{attention}.to_q.weight" for attention in ("attn1", "attn2")}
    update = fused["transformer_blocks.0.attn1.to_q.weight"] - before["transformer_blocks.0.attn1.to_q.weight"]
    assert torch.allclose(update, torch.full_like(update, 4 * 0.1 * 0.1), atol=1e-6)


def test_a_subclass_loads_itself(world, tmp_path):
    class Mine(CosmosPredict25):
        pass

    source = resolve_world_model(replace(MODEL, path=str(world)), RunFolder(tmp_path))
    assert type(Mine.from_source(source, MODEL)) is Mine
    assert type(UnloadedCosmosPredict25.from_source(source, MODEL)) is CosmosPredict25


def test_a_transformer_that_is_not_known_whole_is_left_to_diffusers(world, tmp_path):
    source = resolve_world_model(replace(MODEL, path=str(world)), RunFolder(tmp_path))
    assert source_size(source) is not None
    config = json.loads((world / "transformer/config.json").read_text())
    known = [{**config, "img_context_dim_in": 8}, {key: config[key] for key in config if key != "adaln_lora_dim"}]
    for number, changed in enumerate(known):
        folder = tmp_path / f"model {number}"
        (folder / "transformer").mkdir(parents=True)
        (folder / "transformer/config.json").write_text(json.dumps(changed))
        assert source_size(replace(source, path=str(folder))) is None
    assert source_size(replace(source, path="runs/no such model")) is None


def test_a_saved_mini_model_needs_nothing_of_ours(world):
    index = json.loads((world / "model_index.json").read_text())
    assert "dreamgen" not in json.dumps(index) and index["safety_checker"] == [None, None]


def test_a_saved_pipeline_does_not_tell_where_it_was_loaded_from(world, tmp_path):
    pipe = Cosmos2_5_PredictBasePipeline.from_pretrained(world, safety_checker=NoSafetyChecker())
    save_pipeline(pipe, tmp_path / "again")
    texts = [file.read_text() for file in (tmp_path / "again").rglob("*.json")]
    assert len(texts) > 4 and not any(str(world.parent) in text for text in texts)
    again = Cosmos2_5_PredictBasePipeline.from_pretrained(tmp_path / "again", safety_checker=NoSafetyChecker())
    assert again.vae.config["z_dim"] == pipe.vae.config["z_dim"]


def test_mini_is_built_once_in_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamgen.models.cosmos_predict25.mini.read_yaml", lambda _: tiny_sizes())
    run = RunFolder(tmp_path)
    first = resolve_world_model(MODEL, run)
    stamp = (run.model / "model_index.json").stat().st_mtime_ns
    assert resolve_world_model(MODEL, run) == first and first.name == "mini-random"
    assert (run.model / "model_index.json").stat().st_mtime_ns == stamp


def test_mini_is_the_shipped_model_where_the_package_has_one(world, tmp_path, monkeypatch):
    monkeypatch.setattr("dreamgen.models.cosmos_predict25.spec.SHIPPED_MINI", tmp_path / "absent")
    monkeypatch.setattr("dreamgen.models.cosmos_predict25.mini.read_yaml", lambda _: tiny_sizes())
    run, mini = RunFolder(tmp_path / "run"), replace(MODEL, path="mini")
    assert resolve_world_model(mini, run).name == "mini-random"
    monkeypatch.setattr("dreamgen.models.cosmos_predict25.spec.SHIPPED_MINI", world)
    shipped = resolve_world_model(mini, RunFolder(tmp_path / "new"))
    assert (shipped.name, shipped.path, shipped.sha256) == ("mini", str(world), folder_fingerprint(world))
    assert not (tmp_path / "new").exists(), "it is used where it is"
    assert find_size(mini).num_layers == tiny_sizes()["transformer"]["num_layers"]
    assert resolve_world_model(MODEL, run).path == str(run.model)


def test_the_fingerprint_follows_weights_and_configuration(world, tmp_path):
    save_mini(tmp_path / "same", tiny_sizes())
    assert folder_fingerprint(tmp_path / "same") == folder_fingerprint(world)
    save_mini(tmp_path / "seed", tiny_sizes() | {"seed": 1})
    assert folder_fingerprint(tmp_path / "seed") != folder_fingerprint(world)
    config = tmp_path / "same/scheduler/scheduler_config.json"
    config.write_text(config.read_text().replace("200.0", "80.0"))
    assert folder_fingerprint(tmp_path / "same") != folder_fingerprint(world)


def test_a_hub_model_is_named_by_id_and_revision(tmp_path):
    source = resolve_world_model(ModelSettings(path="owner/name", revision="r1"), RunFolder(tmp_path))
    assert source.name == source.sha256 == "owner/name@r1" and source.revision == "r1"


@pytest.mark.parametrize("path", ["./absent", "/absent/model", "owner/name/more", "absent"])
def test_a_path_that_is_not_there_is_refused(path, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        resolve_world_model(replace(MODEL, path=path), RunFolder(tmp_path))


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model_index\.json"):
        resolve_world_model(replace(MODEL, path=str(tmp_path)), RunFolder(tmp_path))


def test_a_model_that_cannot_be_had_is_told_without_a_traceback(tmp_path):
    source = resolve_world_model(ModelSettings(path="owner/name", revision=None), RunFolder(tmp_path))
    with pytest.raises(UserError, match="could not be loaded"):
        load_pipeline(source, MODEL)


def test_a_guardrail_that_is_wanted_and_missing_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="cosmos_guardrail"):
        make_safety_checker(True)


def test_a_device_that_is_none_is_refused():
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="not a device"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        assert resolve_device("auto").type == "cpu"
        with pytest.raises(UserError, match="requests a GPU, but torch sees none"):
            resolve_device("cuda:0")


def test_the_pipeline_class_is_the_real_one(world):
    source = resolve_world_model(replace(MODEL, path=str(world)), RunFolder(world.parent))
    assert type(load_pipeline(source, MODEL)) is Cosmos2_5_PredictBasePipeline


@pytest.mark.parametrize("entry", [["cosmos_guardrail", "CosmosSafetyChecker"], ["builtins", "function"], [None, None]])
def test_a_model_that_names_a_checker_which_is_not_installed_still_loads(world, tmp_path, entry):
    folder = tmp_path / "guarded"
    shutil.copytree(world, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "safety_checker": entry}))
    settings = replace(MODEL, path=str(folder))
    pipe = load_pipeline(resolve_world_model(settings, RunFolder(tmp_path / "run")), settings)
    assert isinstance(pipe.safety_checker, NoSafetyChecker)


def test_damaged_weights_are_told_without_a_traceback(world, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(world, folder)
    weights = next((folder / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    settings = replace(MODEL, path=str(folder))
    with pytest.raises(UserError, match="could not be loaded"):
        load_pipeline(resolve_world_model(settings, RunFolder(tmp_path / "run")), settings)


def test_an_empty_transformer_has_the_shapes_and_no_weights(world, tmp_path):
    settings = replace(MODEL, path=str(world))
    source = resolve_world_model(settings, RunFolder(tmp_path / "run"))
    empty, whole = empty_transformer(source), load_pipeline(source, settings).transformer
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in whole.named_parameters()}
    assert all(p.is_meta for p in empty.parameters())


def test_the_default_negative_prompt_is_the_pipelines_own():
    from diffusers.pipelines.cosmos import pipeline_cosmos2_5_predict

    assert DEFAULT_NEGATIVE_PROMPT == pipeline_cosmos2_5_predict.DEFAULT_NEGATIVE_PROMPT


def test_it_is_imported_where_the_source_of_the_pipeline_is_not_found(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert pipeline_negative_prompt() == DEFAULT_NEGATIVE_PROMPT
