"""The moving average follows its formula, is what a training writes, and leaves the trained values alone."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dreamgen.models.adapter_files import WEIGHTS_NAME, adapter_sha256
from finetune import finetune
from finetune.ema import averaged, parameter_average
from tests.finetune.conftest import training_settings, write_training_set


def recursion(values, decay):
    """The recursion in float64; the first value is that before the first step."""
    average = np.asarray(values[0], np.float64)
    for step, value in enumerate(values[1:], start=1):
        kept = min(decay, (1 + step) / (10 + step))
        average = kept * average + (1 - kept) * np.asarray(value, np.float64)
    return average


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_follows_the_recursion(dtype):
    generator = torch.Generator().manual_seed(0)
    parameters = {"a": torch.nn.Parameter(torch.zeros(3, 2, dtype=dtype)), "b": torch.nn.Parameter(torch.ones(4))}
    average, seen = parameter_average(parameters.values(), 0.6), {name: [p.tolist()] for name, p in parameters.items()}
    for _ in range(1, 30):
        for name, parameter in parameters.items():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
            seen[name].append(parameter.tolist())
        average.step(parameters.values())
    for name, tensor in zip(parameters, average.shadow_params, strict=True):
        assert tensor.dtype == torch.float32 and not tensor.requires_grad
        assert np.allclose(tensor.numpy(), recursion(seen[name], 0.6), rtol=1e-5, atol=1e-6)


def test_the_start_is_soon_forgotten():
    decay = parameter_average([torch.nn.Parameter(torch.zeros(1))], 0.999).get_decay
    assert decay(1) == pytest.approx(2 / 11) and decay(10**6) == 0.999
    assert np.prod([decay(step) for step in range(1, 50)]) < 1e-9


def test_the_trained_values_come_back():
    parameter = torch.nn.Parameter(torch.zeros(2))
    average = parameter_average([parameter], 0.5)
    parameter.data.fill_(1.0)
    average.optimization_step = 99
    average.step([parameter])
    with averaged(average, [parameter]):
        assert parameter.tolist() == [0.5, 0.5]
    assert parameter.tolist() == [1.0, 1.0] and average.shadow_params[0].tolist() == [0.5, 0.5]


def test_a_training_writes_the_average_of_its_steps(world, tmp_path):
    tune = {"num_steps": 4, "checkpoint_every": 1, "keep_checkpoints": 9, "method": "dora"}
    for name, decay in (("with", 0.3), ("without", None)):
        write_training_set(tmp_path / name)
        finetune(training_settings(tmp_path / name, world, finetune={**tune, "ema_decay": decay}))
    folders = [tmp_path / f"with/finetune/checkpoints/step-{step:06d}" for step in (1, 2, 3)]
    plain = [tmp_path / f"without/finetune/checkpoints/step-{step:06d}" for step in (1, 2, 3)]
    # Averaging changes nothing of what is trained, so the last step's values can be had from the other training.
    assert [adapter_sha256(folder) for folder in folders] == [adapter_sha256(folder) for folder in plain]
    steps = [load_file(folder / WEIGHTS_NAME) for folder in [*plain, tmp_path / "without/adapter"]]
    written = load_file(tmp_path / "with/adapter" / WEIGHTS_NAME)
    high = [name for name in written if "lora_B" in name]
    for name in high:
        values = [np.zeros(written[name].shape), *(step[name].numpy() for step in steps)]  # an adapter begins as none
        assert np.allclose(written[name].numpy(), recursion(values, 0.3), rtol=1e-4, atol=1e-7)
    assert high and adapter_sha256(tmp_path / "with/adapter") != adapter_sha256(tmp_path / "without/adapter")
    assert (folders[0] / "ema.safetensors").is_file() and not (plain[0] / "ema.safetensors").exists()
    cards = {name: (tmp_path / name / "adapter/README.md").read_text() for name in ("with", "without")}
    assert "moving average" in cards["with"] and "0.3" in cards["with"] and "moving average" not in cards["without"]
