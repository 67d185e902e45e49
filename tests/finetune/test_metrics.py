"""Operations as torch counts them, parameters as the model has them, and log lines that say how fast it went."""

import csv
import math
import time
from functools import cache

import pytest
import torch
from accelerate import Accelerator
from diffusers import CosmosTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.config.settings import ModelSettings, VideoSettings
from dreamgen.config.training_settings import FinetuneSettings, LoraSettings
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.adapter import add_adapter
from dreamgen.models.cosmos_predict25.spec import NUM_TEXT_TOKENS, latent_shape
from dreamgen.models.cosmos_predict25.transformer_size import (
    TransformerSize,
    find_size,
    forward_flops,
    num_adapter_parameters,
    num_rows,
    training_flops,
)
from dreamgen.models.cosmos_predict25.velocity import velocity
from finetune.metrics import peak_flops, peak_memory_gib
from finetune.training_log import COLUMNS, TrainingLog, append_row, read_steps, start_table

VIDEO = VideoSettings(height=32, width=48, num_frames=9)
REAL = ("nvidia/Cosmos-Predict2.5-2B", "nvidia/Cosmos-Predict2.5-14B")


def transformer(name: str, device: str = "cpu") -> CosmosTransformer3DModel:
    sizes = read_yaml(configs_folder() / "models" / f"{name}.yaml")
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in sizes["transformer"].items()}
    text = sizes["text_encoder"]
    config["crossattn_proj_in_channels"] = text["hidden_size"] * text["num_hidden_layers"]
    with torch.device(device):
        return CosmosTransformer3DModel(**config).requires_grad_(False)


@cache
def mini_size() -> TransformerSize:
    return find_size(ModelSettings(path="mini-random"))


def counted_flops(model: CosmosTransformer3DModel, backward: bool) -> int:
    channels, frames, height, width = latent_shape(VIDEO.num_frames, VIDEO.height, VIDEO.width)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, channels, frames, height, width, generator=generator)
    text = torch.randn(1, NUM_TEXT_TOKENS, model.config.text_embed_dim, generator=generator)
    # Attention as its plain products; the counter charges the fused kernels for what they compute again.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = velocity(model, latents, torch.zeros(1, 1, frames, height, width), torch.rand(1, frames), text)
        if backward:
            out.square().mean().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["mini-random", *REAL])
def test_parameters_and_layers_are_those_of_the_model(name):
    size = find_size(ModelSettings(path=name))
    model = transformer(name.split("/")[-1].lower().replace("-predict", "").removesuffix("-random"), "meta")
    assert size.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    first = {n: m for n, m in layers.items() if not n.startswith("transformer_blocks.") or ".0." in n[:21]}
    assert {at.name: (at.num_in, at.num_out) for at in size.linears()} == {
        n: (m.in_features, m.out_features) for n, m in first.items()
    }
    assert {n: (at.in_features, at.out_features) for n, at in size.layers_by_name().items()} == {
        n: (m.in_features, m.out_features) for n, m in layers.items()
    }


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("targets", [LoraSettings().target_modules, ["to_q", "ff.net.2"]])
def test_adapter_parameters(method, targets):
    model = transformer("mini")
    parameters = add_adapter(model, 5, 5, targets, use_dora=method == "dora")
    assert num_adapter_parameters(mini_size(), 5, targets, method == "dora") == sum(p.numel() for p in parameters)


def test_forward_operations_are_those_that_torch_counts():
    assert forward_flops(mini_size(), VIDEO) == counted_flops(transformer("mini"), backward=False)


@pytest.mark.parametrize("targets", [LoraSettings().target_modules, ["to_q", "to_k", "to_v"]])
def test_training_operations_are_those_that_torch_counts(targets):
    size, model, rank = mini_size(), transformer("mini"), 4
    add_adapter(model, rank, rank, targets, use_dora=False)
    formula = training_flops(size, VIDEO, FinetuneSettings(lora=LoraSettings(rank=rank, target_modules=targets)))
    # The first block's queries, keys and values read what no adapter changed; the formula takes all blocks for alike.
    wide, rows = size.num_features, num_rows(size, VIDEO)["tokens"]
    assert formula - counted_flops(model, backward=True) == 3 * 2 * rows * wide * (wide + rank)


def test_training_all_weights_counts_their_gradients():
    size, model = mini_size(), transformer("mini")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("crossattn_proj."))
    formula = training_flops(size, VIDEO, FinetuneSettings(method="full"))
    assert formula == pytest.approx(counted_flops(model, backward=True), rel=0.02)  # modulations' inputs are left out


def test_the_real_model_takes_what_is_known_of_it():
    size = find_size(ModelSettings(path=REAL[0]))
    assert num_rows(size, VideoSettings())["tokens"] == 31_104
    forward = forward_flops(size, VideoSettings())
    assert forward == pytest.approx(3.3e14, rel=0.03)
    assert 2.5 < training_flops(size, VideoSettings(), FinetuneSettings()) / forward < 3


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
    ],
)
def test_a_gpus_peak_is_found_by_its_name(name, tflops):
    assert peak_flops(name) == tflops * 1e12


@pytest.mark.parametrize(
    "name", ["Tesla V100-SXM2-32GB", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "AMD Instinct MI300X", ""]
)
def test_an_unknown_gpu_has_no_peak(name):
    assert peak_flops(name) is None


def rows_of(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_a_log_line_says_how_fast_it_went_without_what_was_paused(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("finetune.training_log.device_peak_flops", lambda device: 1000.0)
    tune = FinetuneSettings(num_steps=4, log_every=2, batch_size=3, gradient_accumulation_steps=2)
    with TrainingLog(Accelerator(cpu=True), tmp_path / "loss.csv", tune, window_flops=50.0) as log:
        for step in (1, 2, 3, 4):
            log.add(torch.tensor(float(step)))
            log.add(torch.tensor(float(step)))
            clock[0] += 2.0
            if step == 3:
                with log.paused():
                    clock[0] += 1000.0
            log.step(step, 0.1, torch.tensor(0.5))
    first, second = rows_of(tmp_path / "loss.csv")
    assert tuple(first) == COLUMNS
    assert (float(first["loss"]), float(second["loss"])) == (1.5, 3.5)
    for row in (first, second):
        assert float(row["samples_per_s"]) == 3.0  # 12 windows in 4 s
        assert float(row["mfu"]) == 0.15  # of 20 a second
        assert 0 < float(row["memory_gib"]) <= round(peak_memory_gib(torch.device("cpu")), 3)
    assert float(second["seconds"]) == 1008.0


def test_without_a_known_peak_there_is_no_mfu(tmp_path):
    with TrainingLog(Accelerator(cpu=True), tmp_path / "loss.csv", FinetuneSettings(num_steps=1), 50.0) as log:
        log.add(torch.tensor(1.0))
        log.step(1, 0.1, 0.5)
    assert math.isnan(float(rows_of(tmp_path / "loss.csv")[0]["mfu"]))


def test_a_resumed_log_goes_on_as_if_it_had_not_stopped(tmp_path):
    tune = FinetuneSettings(num_steps=6, log_every=2)

    def log_steps(path, steps, **resumed):
        with TrainingLog(Accelerator(cpu=True), path, tune, **resumed) as log:
            for step in steps:
                log.add(torch.tensor(1 / step))
                log.step(step, 0.1, 0.5)
            return log.pending_losses()

    log_steps(tmp_path / "whole.csv", range(1, 7))
    pending = log_steps(tmp_path / "parts.csv", range(1, 4))  # a checkpoint was written after step 3
    assert len(pending) == 1
    with (tmp_path / "parts.csv").open("a") as stream:  # and later steps were lost
        append_row(stream, (4, *[9.9] * (len(COLUMNS) - 1)))
    log_steps(tmp_path / "parts.csv", range(4, 7), done_steps=3, pending_losses=pending)
    whole, parts = rows_of(tmp_path / "whole.csv"), rows_of(tmp_path / "parts.csv")
    assert [(row["step"], row["loss"]) for row in whole] == [(row["step"], row["loss"]) for row in parts]
    seconds = [float(row["seconds"]) for row in parts]
    assert seconds == sorted(seconds)


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    start_table(tmp_path / "t.csv", ("step", "loss")).close()
    with (tmp_path / "t.csv").open("a") as stream:
        append_row(stream, (1, 0.5))
        append_row(stream, (2, 0.4))
        stream.write("3")
    assert [row["step"] for row in read_steps(tmp_path / "t.csv")] == ["1", "2"]
    assert [row["step"] for row in read_steps(tmp_path / "t.csv", 1)] == ["1"]
    assert read_steps(tmp_path / "none.csv") == []


def test_a_loss_that_is_no_number_is_written_and_ends_the_training(tmp_path):
    with (
        TrainingLog(Accelerator(cpu=True), tmp_path / "loss.csv", FinetuneSettings(num_steps=1)) as log,
        pytest.raises(UserError, match="not a number at step 1"),
    ):
        log.add(torch.tensor(math.nan))
        log.step(1, 0.1, 0.5)
    assert rows_of(tmp_path / "loss.csv")[0]["loss"] == "nan"
