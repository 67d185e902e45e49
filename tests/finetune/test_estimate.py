"""Memory by formula and as autograd saves it; what cannot fit is refused before loading; a dry run tells it all."""

import gc
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import CosmosTransformer3DModel

from dreamgen.config.loading import configs_folder, read_yaml, settings_from_dict
from dreamgen.config.settings import Settings
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.activation_checkpointing import training_block
from dreamgen.models.cosmos_predict25.adapter import add_adapter
from dreamgen.models.cosmos_predict25.checkpoint_policies import POLICIES, CheckpointPolicy, step_activations
from dreamgen.models.cosmos_predict25.dora import use_closed_form
from dreamgen.models.cosmos_predict25.spec import NUM_TEXT_TOKENS, latent_shape
from dreamgen.models.cosmos_predict25.training_cost import policies_for
from dreamgen.models.cosmos_predict25.training_memory import GIB, activation_gib, estimate_memory, fixed_gib
from dreamgen.models.cosmos_predict25.transformer_size import (
    TransformerSize,
    find_size,
    training_flops,
)
from dreamgen.models.cosmos_predict25.velocity import velocity
from finetune.estimate import (
    EFFICIENCY,
    EFFICIENCY_NOT_COMPILED,
    check_memory,
    count,
    describe,
    seconds_a_step,
    training_cost,
)
from finetune.windows import TrainingClip, Window

H100_GIB = 79.2  # what an 80 GB card has
TINY = {"num_attention_heads": 2, "attention_head_dim": 32, "adaln_lora_dim": 8, "text_embed_dim": 32}


def tiny_config(num_layers: int) -> dict:
    config = read_yaml(configs_folder() / "models" / "mini.yaml")["transformer"] | TINY
    config |= {"num_layers": num_layers, "encoder_hidden_states_channels": 32, "crossattn_proj_in_channels": 64}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}


def tiny_settings(method: str, dtype: str) -> Settings:
    return settings_from_dict(
        {
            "model": {"path": "mini-random", "dtype": dtype},
            "video": {"height": 256, "width": 384, "num_frames": 9},
            "finetune": {"method": method, "lora": {"rank": 4, "alpha": 4}},
        }
    )


def shape_of(settings: Settings) -> tuple[int, ...]:
    return latent_shape(settings.video.num_frames, settings.video.height, settings.video.width)


def storages() -> dict[int, int]:
    """Return the address and bytes of every tensor's memory that is alive."""
    gc.collect()
    with torch.no_grad():
        found = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
        return {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in found}


def left_behind(settings: Settings, level: CheckpointPolicy, num_layers: int) -> int:
    """Count the bytes that a forward pass leaves alive for the backward pass, not compiled."""
    tune, shape = settings.finetune, shape_of(settings)
    torch.manual_seed(0)
    model = CosmosTransformer3DModel(**tiny_config(num_layers)).to(torch.bfloat16)
    add_adapter(model, tune.lora.rank, tune.lora.alpha_or_rank, tune.lora.target_modules, tune.method == "dora")
    use_closed_form(model)
    latents, mask = torch.randn(1, *shape).bfloat16(), torch.zeros(1, 1, *shape[1:]).bfloat16()
    timestep, text = torch.rand(1, shape[1]), torch.randn(1, NUM_TEXT_TOKENS, 32).bfloat16()
    before = storages()
    # What autograd saves lies in C++, where no collector sees it: the hook keeps a tensor of the same memory instead.
    # What a checkpoint saves for itself (its input, the attentions' outputs) is seen as it is.
    hooks = torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16), hooks:
        answer = velocity(model, latents, mask, timestep, text, training_block(level, compiled=False))
    after = storages()
    assert answer.requires_grad  # its graph holds what is counted
    return sum(num_bytes for address, num_bytes in after.items() if address not in before)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("level", POLICIES)
def test_what_blocks_keep_uncompiled_is_what_a_forward_pass_leaves_behind(method, level):
    settings = tiny_settings(method, "bfloat16")
    unit = activation_gib(TransformerSize.from_config(tiny_config(1)), settings) * GIB
    a_block = (left_behind(settings, level, 2) - left_behind(settings, level, 1)) / unit
    eager = step_activations(compiled=False, use_dora=method == "dora")
    assert 0.9 * eager.kept(level) < a_block <= eager.kept(level)


# GiB on an H200, compiled: benchmarks/results/finetune_step.json, docs/finetuning.md. The last is no measurement but
# the difference of two, of one layer and of two, carried on to 36.
MEASURED = [
    ("cosmos2.5-2b", "lora", {"attention": 28}, 19.34),
    ("cosmos2.5-2b", "lora", {"attention": 9, "all": 19}, 67.2),
    ("cosmos2.5-2b", "lora", {"attention": 8, "all": 20}, 69.82),
    ("cosmos2.5-2b", "dora", {"attention": 28}, 21.25),
    ("cosmos2.5-2b", "dora", {"attention": 8, "all": 20}, 79.40),
    ("cosmos2.5-14b-704", "lora", {"blocks": 1}, 41.0),
    ("cosmos2.5-14b", "lora", {"blocks": 1}, 15.9),
    ("cosmos2.5-14b", "lora", {"blocks": 36}, 63.9),
]


@pytest.mark.parametrize(("name", "method", "counts", "peak_gib"), MEASURED)
def test_the_estimate_is_near_every_peak_that_was_measured(name, method, counts, peak_gib):
    settings = settings_of(name, method=method)
    policies = [level for level, number in counts.items() for _ in range(number)]
    size = replace(find_size(settings.model), num_layers=len(policies))
    assert estimate_memory(size, settings, policies, compiled=True).peak == pytest.approx(peak_gib, rel=0.02)


def test_blocks_that_are_not_compiled_keep_less_so_that_the_step_fits():
    settings = settings_of("cosmos2.5-2b", memory_gib=72)
    size = find_size(settings.model)
    compiled, eager = (policies_for(size, settings, compiled) for compiled in (True, False))
    assert 0 < eager.count("all") < compiled.count("all")
    for policies, is_compiled in ((compiled, True), (eager, False)):
        peak = estimate_memory(size, settings, policies, is_compiled).peak
        assert 65 < peak <= 72
    # What the compiled choice would take without compilation: a third more than was asked for.
    assert estimate_memory(size, settings, compiled, compiled=False).peak > 1.3 * 72


def test_weights_are_counted_as_they_are_loaded():
    settings = tiny_settings("dora", "bfloat16")
    model = CosmosTransformer3DModel(**tiny_config(2)).to(torch.bfloat16)
    frozen = sum(parameter.nbytes for parameter in model.parameters())
    parameters = add_adapter(model, 4, 4, settings.finetune.lora.target_modules, use_dora=True)
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    trained = sum(tensor.nbytes for tensor in (*parameters, *(p.grad for p in parameters), *moments))
    assert fixed_gib(TransformerSize.from_config(tiny_config(2)), settings) == (frozen / GIB, trained / GIB)


def settings_of(name: str, **tune) -> Settings:
    values = read_yaml(configs_folder() / f"{name}.yaml")
    values["finetune"] = values["finetune"] | tune
    return settings_from_dict({**values, "out": "runs/x"})


def test_policies_are_ordered():
    settings = settings_of("cosmos2.5-2b")
    size = find_size(settings.model)
    for compiled in (True, False):
        peaks = [estimate_memory(size, settings, [level] * size.num_layers, compiled).peak for level in POLICIES]
        assert peaks == sorted(peaks) and 10 < peaks[0] < 20


def with_gpu(monkeypatch, memory_gib: float) -> None:
    gpu = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=int(memory_gib * GIB))
    monkeypatch.setattr("dreamgen.models.devices.this_gpu", lambda settings: gpu)


@pytest.mark.parametrize("name", ["cosmos2.5-2b", "cosmos2.5-2b-704", "cosmos2.5-14b"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_the_presets_fit_80_gb(name, method, monkeypatch):
    with_gpu(monkeypatch, H100_GIB)
    settings = settings_of(name, method=method)
    check_memory(settings)
    size = find_size(settings.model)
    assert estimate_memory(size, settings, policies_for(size, settings, True), compiled=True).peak < H100_GIB


def test_all_weights_of_the_14b_never_fit_80_gb(monkeypatch):
    with_gpu(monkeypatch, H100_GIB)
    with pytest.raises(UserError) as caught:
        check_memory(settings_of("cosmos2.5-14b", method="full"))
    message = str(caught.value)
    assert "does not fit on NVIDIA H100" in message and "--method=lora" in message and "213 GiB" in message
    assert "14.4 billion weights, 31,104 tokens" in message


def test_the_14b_at_full_size_does_not_fit_80_gb_and_the_number_of_tokens_that_does_is_named(monkeypatch):
    with_gpu(monkeypatch, H100_GIB)
    large = settings_of("cosmos2.5-14b-704")
    with pytest.raises(UserError, match="84,480 tokens") as caught:
        check_memory(large)
    message = str(caught.value)
    assert "weights 26.8" in message and "allowed: 79.2 GiB" in message
    fitting = int(message.split("num_frames: ")[1].split(" tokens")[0].replace(",", ""))
    assert 31_104 < fitting < 84_480
    num_latent_frames = fitting // (704 * 1280 // 256)
    check_memory(replace(large, video=replace(large.video, num_frames=4 * (num_latent_frames - 1) + 1)))
    with pytest.raises(UserError):
        check_memory(replace(large, video=replace(large.video, num_frames=4 * num_latent_frames + 1)))


def test_where_the_weights_alone_do_not_fit_it_says_so(monkeypatch):
    with_gpu(monkeypatch, 24.0)
    with pytest.raises(UserError, match="14.4 billion weights") as caught:
        check_memory(settings_of("cosmos2.5-14b"))
    assert "weights alone do not fit" in caught.value.next_step


def test_a_large_batch_is_told_to_be_smaller(monkeypatch):
    with_gpu(monkeypatch, H100_GIB)
    with pytest.raises(UserError, match="8 a step") as caught:
        check_memory(settings_of("cosmos2.5-2b", batch_size=8))
    assert "--batch_size=1" in caught.value.next_step


def test_without_a_gpu_or_with_enough_memory_nothing_is_refused(monkeypatch):
    settings = settings_of("cosmos2.5-14b", method="full")
    check_memory(replace(settings, model=replace(settings.model, device="cpu")))
    with_gpu(monkeypatch, 1000.0)
    check_memory(settings)


def clips_of(folder, num_clips=3) -> list[TrainingClip]:
    return [TrainingClip(folder / f"{index}.mp4", f"task {index}", 100) for index in range(num_clips)]


def test_a_dry_run_tells_disk_memory_and_time_of_a_model_that_is_not_here(tmp_path):
    settings = replace(settings_of("cosmos2.5-2b"), out=str(tmp_path))
    settings = replace(settings, model=replace(settings.model, device="cpu"))
    clips = clips_of(tmp_path)
    windows = [Window(clip, start) for clip in clips for start in (0, 7)]
    counts = count(settings, clips, windows[:1], num_processes=2)
    result = describe(settings, counts, windows, [clip.prompt for clip in clips], num_processes=2)
    assert result.metrics["num_samples"] == 2 * 9200 and result.metrics["num_validation_clips"] == 1
    assert result.metrics["cache_gib"] == pytest.approx((6 * 3.98e6 + 4 * 1.05e6) / GIB, abs=1e-3)
    assert 10 < result.metrics["memory_gib"] < 79
    assert 5 < result.metrics["hours"] < 9
    message = "\n".join(result.notes)
    for words in ("prompt: task 0", "weights 3.8", "at 35% of the peak of an H100", "there is none here"):
        assert words in message
    assert not list(tmp_path.iterdir())


def test_an_unknown_model_is_said_to_be_unknown(tmp_path):
    settings = settings_from_dict({"out": str(tmp_path), "model": {"path": "somebody/another-model"}})
    clips = clips_of(tmp_path)
    result = describe(settings, count(settings, clips, [], 1), [], ["a"])
    assert "not been downloaded" in result.notes[-1] and "memory_gib" not in result.metrics
    check_memory(settings)


def test_a_local_folders_own_configuration_counts(world):
    size = find_size(settings_from_dict({"model": {"path": str(world)}}).model)
    config = CosmosTransformer3DModel.load_config(world / "transformer")
    assert (size.num_layers, size.num_heads) == (config["num_layers"], config["num_attention_heads"])


def test_time_is_that_of_this_runs_own_log_where_there_is_one(tmp_path, monkeypatch):
    settings = replace(settings_of("cosmos2.5-2b", batch_size=2), out=str(tmp_path))
    size = find_size(settings.model)
    with_gpu(monkeypatch, H100_GIB)
    cost = training_cost(settings)
    by_formula, basis = seconds_a_step(cost, settings)
    assert by_formula == 2 * training_flops(size, settings.video, settings.finetune) / (989e12 * EFFICIENCY)
    assert "NVIDIA H100" in basis
    plain = replace(settings, finetune=replace(settings.finetune, compile=False))
    slower, basis = seconds_a_step(cost, plain)
    assert slower == pytest.approx(by_formula * EFFICIENCY / EFFICIENCY_NOT_COMPILED)
    assert basis.endswith("without compilation")
    (tmp_path / "finetune").mkdir()
    rows = "step,loss,samples_per_s\n10,1,0.01\n20,1,0.5\n30,1,0.4\n40,1,0.5\n"
    (tmp_path / "finetune/loss.csv").write_text(rows)
    step_s, basis = seconds_a_step(cost, settings)
    assert step_s == 4.0 and "loss.csv" in basis


def test_the_cache_is_as_large_as_its_files(tmp_path, world):
    from finetune.cache import Cache, write_tensor
    from finetune.windows import Window
    from tests.finetune.conftest import training_settings

    settings = training_settings(tmp_path, world)
    size, clip = find_size(settings.model), TrainingClip(tmp_path / "a.mp4", "a", 12)
    clip.path.write_bytes(b"video")
    cache = Cache(tmp_path / "cache", SimpleNamespace(sha256="model"), settings, None)
    for start in (0, 3):
        write_tensor(cache.window_file(Window(clip, start)), torch.zeros(shape_of(settings)))
    for prompt in ("a", None):
        write_tensor(cache.prompt_file(prompt), torch.zeros(1, NUM_TEXT_TOKENS, size.text_features))
    files = [path for path in cache.root.rglob("*") if path.is_file()]
    on_disk = sum(path.stat().st_size for path in files)
    cost = training_cost(settings)
    wanted = 2 * cost.window_bytes + 2 * cost.prompt_bytes
    assert on_disk == pytest.approx(wanted, abs=200 * len(files))
