"""The files of an adapter, whatever model it belongs to.

An adapter is a safetensors file or the folder that holds it: `pytorch_lora_weights.safetensors` of diffusers,
`adapter_model.safetensors` with `adapter_config.json` of PEFT, or one file of another name. Where all weights were
trained, the folder holds the whole network instead, in `transformer/`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dreamgen.errors import UserError
from dreamgen.run.files import sha256_of_file, visible_files

WEIGHTS_NAME, PEFT_WEIGHTS_NAME = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
PEFT_CONFIG_NAME = "adapter_config.json"
FULL_NAME = "transformer"
DISTILLED_KEY = "distilled_guidance"  # in the metadata of a weights file
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def adapter_file(folder: Path) -> Path:
    """Return the adapter's weights file.

    Args:
        folder: The folder, or the file itself.

    Raises:
        UserError: if it does not hold one, or it is not clear which one.
    """
    folder = Path(folder)
    files = sorted(folder.iterdir()) if folder.is_dir() else [folder] if folder.is_file() else []
    found = [path for path in files if path.suffix == ".safetensors" and not path.name.startswith(".")]
    for name in (WEIGHTS_NAME, PEFT_WEIGHTS_NAME):
        if folder.is_dir() and (folder / name) in found:
            return folder / name
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{folder} holds several safetensors files",
            actual=", ".join(path.name for path in found[:6]),
            allowed=f"one, or one that is called {WEIGHTS_NAME}",
            next_step=f"name the file: {found[0]}",
        )
    if pickles := [path.name for path in files if path.suffix in PICKLES]:
        raise UserError(
            f"the adapter in {folder} is a pickle, which may run any code when it is read",
            actual=pickles[0],
            allowed="a safetensors file",
            next_step="save it with safetensors.torch.save_file, where you trust its source",
        )
    raise UserError(
        f"no adapter in {folder}: it has no {WEIGHTS_NAME}",
        actual=", ".join(path.name for path in files[:6]) or ("an empty folder" if folder.is_dir() else "no such path"),
        next_step="dreamgen finetune makes one",
    )


def adapter_config_file(weights: Path) -> Path | None:
    """Return PEFT's configuration beside a weights file, if there is one."""
    path = weights.parent / PEFT_CONFIG_NAME
    return path if path.is_file() else None


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold the adapter's weights.

    Raises:
        UserError: if the folder holds no adapter.
    """
    return visible_files(Path(folder) / FULL_NAME, "*.safetensors") if is_full(folder) else [adapter_file(folder)]


def adapter_sha256(folder: Path) -> str:
    """Return the hash of the adapter's weights, and of the configuration that scales them, as jobs carry it.

    Raises:
        UserError: if the folder holds no adapter.
    """
    files = weight_files(folder)
    if not is_full(folder):
        config = adapter_config_file(files[0])
        if config is None:
            return sha256_of_file(files[0])
        files = [files[0], config]
    return hashlib.sha256("\n".join(f"{path.name}:{sha256_of_file(path)}" for path in files).encode()).hexdigest()


def is_full(folder: Path) -> bool:
    """Return whether the folder holds a whole network instead of a low-rank update."""
    return (Path(folder) / FULL_NAME / "config.json").is_file()


def distilled_guidance(folder: Path) -> float | None:
    """Return the scale of the guidance that `finetune.distill_guidance` folded into an adapter; None: no guidance.

    It is in the metadata of the weights file, so that it stays with the weights wherever they are copied.

    Raises:
        UserError: if the folder holds no adapter, or the number cannot be read.
    """
    if is_full(folder):
        return None
    path = adapter_file(folder)
    try:
        with safe_open(path, framework="numpy") as stream:
            scale = (stream.metadata() or {}).get(DISTILLED_KEY)
        return None if scale is None else float(scale)
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"the metadata of {path} cannot be read",
            actual=str(error),
            next_step="copy the adapter again from its source, or train it again",
        ) from None
