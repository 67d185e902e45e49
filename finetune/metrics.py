"""The peak speed of a GPU, and the memory in use."""

from __future__ import annotations

import re
import resource
import sys

import torch

from dreamgen.config.loading import configs_folder, read_yaml


def peak_flops(gpu_name: str) -> float | None:
    """Look up a GPU's peak operations a second for matrix products in bfloat16.

    Args:
        gpu_name: As the driver reports it, such as `NVIDIA H100 80GB HBM3`.

    Returns:
        The value of configs/hardware/gpus.yaml; None for a GPU that is not listed there, or a part of one (MIG).
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
    """Return the peak memory so far: of tensors on a GPU, or of the process's resident memory on a CPU.

    Does not wait for the GPU.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
