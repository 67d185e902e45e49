"""How fast a training is: floating-point operations of a step by formula, the GPU's peak by name, memory in use.

The count is of the operations that the mathematics asks for, so that MFU (Chowdhery et al. 2022, PaLM, arXiv
2204.02311, appendix B) does not reward recomputing: a product of (m, k) and (k, n) is 2 m k n operations, forward
once; backward once more for the gradient of its input and once for that of its weight, where these are wanted (Kaplan
et al. 2020, arXiv 2001.08361, section 2.1). Attention is two products forward and four backward.
"""

from __future__ import annotations

import re
import resource
import sys

import torch

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.config.settings import FinetuneSettings, VideoSettings
from finetune.sizes import NUM_TEXT_TOKENS, Linear, TransformerSize, adapted, num_rows


def forward_flops(size: TransformerSize, video: VideoSettings) -> float:
    """Count the operations of one forward pass of the frozen transformer on one window, its text already projected."""
    rows = num_rows(size, video)
    return sum(_product(layer, rows[layer.rows]) for layer in size.linears()) + _attention(size, rows["tokens"])


def training_flops(size: TransformerSize, video: VideoSettings, tune: FinetuneSettings) -> float:
    """Count the operations of training on one window.

    With an adapter the weights are frozen, so that a linear layer costs one forward and one backward product instead
    of two, and none backward where nothing before it learns (the text's keys and values, the timestep's modulation).
    Each adapted layer adds its two thin products forward, the same for their weights' gradients, and for their
    inputs'. DoRA's norms are left out: they do not grow with the tokens.

    Args:
        size: Of the transformer.
        video: The window.
        tune: Method, rank and adapted layers.

    Returns:
        Operations, forward and backward.
    """
    rows, layers = num_rows(size, video), size.linears()
    total = 3 * _attention(size, rows["tokens"])
    for layer in layers:
        num_products = 1 + layer.input_has_gradient + (tune.method == "full")
        total += num_products * _product(layer, rows[layer.rows])
    if tune.method != "full":
        for layer in adapted(layers, tune.lora.target_modules):
            num_in, num_out = layer.num_in, layer.num_out
            features = 3 * num_out + (3 if layer.input_has_gradient else 2) * num_in
            total += 2 * rows[layer.rows] * tune.lora.rank * features * layer.num_layers
    return total


def peak_flops(gpu_name: str) -> float | None:
    """Look up a GPU's peak operations a second for matrix products in bfloat16.

    Args:
        gpu_name: As the driver says it, such as `NVIDIA H100 80GB HBM3`.

    Returns:
        The figure of configs/hardware/gpus.yaml; None for a GPU that is not in it, or a part of one (MIG).
    """
    words = re.findall(r"[A-Za-z0-9]+", gpu_name)
    if "MIG" in words:
        return None
    peaks = read_yaml(configs_folder() / "hardware" / "gpus.yaml")["peak_bf16_tflops"]
    fitting = [name for name in peaks if set(name.split()) <= set(words)]
    return peaks[max(fitting, key=len)] * 1e12 if fitting else None


def device_peak_flops(device: torch.device) -> float | None:
    """Return `peak_flops` of a device; None for a CPU."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory used so far: of the GPU by tensors, or of the process's resident memory on a CPU.

    Reading it does not wait for the GPU.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _product(layer: Linear, num_rows: int) -> float:
    return 2.0 * num_rows * layer.num_in * layer.num_out * layer.num_layers


def _attention(size: TransformerSize, num_tokens: int) -> float:
    # Scores and weighted values, for the tokens among themselves and with the text.
    return 4.0 * num_tokens * (num_tokens + NUM_TEXT_TOKENS) * size.num_features * size.num_layers
