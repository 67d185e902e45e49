"""The random generators of every process, as tensors.

Every random choice of a training is derived from the run's seed and the sample's index, so none depends on these. They
are saved for other uses: a layer with dropout, or a library that draws random numbers of its own.
"""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator


def random_states(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Return the states of all processes' generators, one row for each process; all processes must call it."""
    rows = {name: state[None].to(accelerator.device) for name, state in _states(accelerator.device).items()}
    gather: Any = accelerator.gather  # typed for nested containers
    return {name: gather(row).cpu() for name, row in rows.items()}


def set_random_states(states: dict[str, torch.Tensor], process: int, device: torch.device) -> None:
    """Restore the generators of one process.

    Args:
        states: From `random_states`.
        process: Its rank.
        device: That it computes on; a GPU's generator is restored if the states hold one.
    """
    own = {name: rows[process] for name, rows in states.items()}
    torch.set_rng_state(own["torch"])
    if device.type == "cuda" and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"], device)
    has_normal, bits, *words = own["python"].tolist()
    random.setstate((random.getstate()[0], tuple(words), _float_of(bits) if has_normal else None))
    has_normal, bits, position, *words = own["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(words, np.uint32), position, has_normal, _float_of(bits)))


def _states(device: torch.device) -> dict[str, torch.Tensor]:
    # Both libraries draw normal numbers in pairs and store the second one.
    _, words, normal = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([int(normal is not None), _bits_of(normal or 0.0), *words]),
    }
    numpy_state: Any = np.random.get_state()
    _, words, position, has_normal, normal = numpy_state
    states["numpy"] = torch.tensor([has_normal, _bits_of(normal), position, *words.tolist()])
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _bits_of(number: float) -> int:
    return struct.unpack("<q", struct.pack("<d", number))[0]


def _float_of(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<q", bits))[0]
