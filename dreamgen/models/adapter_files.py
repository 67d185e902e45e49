"""The files of an adapter, whatever model it belongs to.

An adapter is a folder with `pytorch_lora_weights.safetensors`, as diffusers' LoRA loader reads it. Where all weights
were trained, it holds the whole network instead, in `transformer/`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from dreamgen.errors import UserError
from dreamgen.run.files import sha256_of_file

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
FULL_NAME = "transformer"


def adapter_file(folder: Path) -> Path:
    """Return the adapter's weights file.

    Raises:
        UserError: if the folder does not hold one.
    """
    path = Path(folder) / WEIGHTS_NAME
    if not path.is_file():
        raise UserError(f"no adapter in {folder}: it has no {WEIGHTS_NAME}", next_step="dreamgen finetune makes one")
    return path


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold the adapter's weights.

    Raises:
        UserError: if the folder holds no adapter.
    """
    return sorted((Path(folder) / FULL_NAME).glob("*.safetensors")) if is_full(folder) else [adapter_file(folder)]


def adapter_sha256(folder: Path) -> str:
    """Return the hash of the adapter's weights, as jobs carry it.

    Raises:
        UserError: if the folder holds no adapter.
    """
    files = weight_files(folder)
    if not is_full(folder):
        return sha256_of_file(files[0])
    return hashlib.sha256("\n".join(f"{path.name}:{sha256_of_file(path)}" for path in files).encode()).hexdigest()


def is_full(folder: Path) -> bool:
    """Return whether the folder holds a whole network instead of a low-rank update."""
    return (Path(folder) / FULL_NAME / "config.json").is_file()
