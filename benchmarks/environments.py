"""Environments of the processes that a benchmark starts."""

from __future__ import annotations

import os
from pathlib import Path


def with_checkout(root: Path, **values: str) -> dict[str, str]:
    """Return this process's environment with a checkout first on PYTHONPATH, before what it names already.

    Args:
        root: Of the checkout.
        values: More variables.
    """
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, **values}


def visible_gpus(num_gpus: int) -> list[str]:
    """Return the value of CUDA_VISIBLE_DEVICES for each GPU that this process sees.

    Args:
        num_gpus: How many it sees, from `torch.cuda.device_count()`.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(num_gpus)] if visible is None else visible.split(",")[:num_gpus]
