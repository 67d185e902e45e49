"""Devices and precisions that settings name."""

from __future__ import annotations

from typing import Any

import torch

from dreamgen.config.settings import Settings
from dreamgen.errors import UserError


def resolve_device(name: str) -> torch.device:
    """Return the device that `model.device` names; `auto` is the first GPU, or the CPU without one.

    Raises:
        UserError: if a GPU is named and none is visible.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError("model.device is not a device", actual=name, allowed="auto, cpu, cuda, cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device requests a GPU, but torch sees none", actual=name, next_step="dreamgen doctor")
    return device


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch type of `model.dtype`."""
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def this_gpu(settings: Settings) -> Any | None:
    """Return the properties of the GPU that `model.device` stands for on this machine, or None without one."""
    if settings.model.device == "cpu" or not torch.cuda.is_available():
        return None
    index = torch.device(settings.model.device).index if settings.model.device != "auto" else None
    return torch.cuda.get_device_properties(index if index is not None else torch.cuda.current_device())
