"""What the frozen VAE and text encoder make of a training set, kept on disk by content.

A latent's name hashes the clip's bytes, the window, the size and the model; a text's name the prompt and the model. So
whatever changes is encoded again and nothing else is, and several runs can share one cache. Latents are kept as the
VAE gives them, in its dtype and not yet normalised: a bfloat16 model's take 2 bytes a value and lose nothing
(16 x 24 x 54 x 96 values, 4 MB, at 432 x 768 x 93); a float32 model's take 4. A prompt of the 2B model takes 1 MB in
bfloat16.

Axes: C latent channels, T latent frames, H height, W width, L tokens, D features.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import Cosmos2_5_PredictBasePipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dreamgen.config.settings import Settings
from dreamgen.errors import UserError
from dreamgen.models.cosmos_predict25.loading import WorldModelSource, torch_dtype
from dreamgen.models.cosmos_predict25.text import NUM_TOKENS, encode_text
from dreamgen.run.files import atomic_file, sha256_of_file
from finetune.flow import latent_shape, vae_means
from finetune.windows import Window, read_window

NAME = "values"
FORMAT = 1  # of the files and of how they are made; another number makes all of them anew


class Cache:
    """Reads and writes latents and projected texts by what they are made from.

    Args:
        root: Folder, shared between runs or not.
        source: The world model.
        settings: Size, length and precision.
    """

    def __init__(self, root: Path, source: WorldModelSource, settings: Settings) -> None:
        self.root, self._video = root, settings.video
        self._dtype = settings.model.dtype
        self._model = {"format": FORMAT, "model": source.sha256, "dtype": self._dtype}
        self._clip_sha256: dict[Path, str] = {}

    def latent_file(self, window: Window) -> Path:
        """Return where a window's latent lies."""
        path = window.clip.path
        if path not in self._clip_sha256:
            self._clip_sha256[path] = sha256_of_file(path)
        video = self._video
        shape = {"num_frames": video.num_frames, "height": video.height, "width": video.width}
        return self._file("latents", {"clip": self._clip_sha256[path], "start": window.start, **shape})

    def text_file(self, prompt: str | None) -> Path:
        """Return where a prompt's projected text lies; None stands for a dropped text."""
        return self._file("texts", {"prompt": prompt})

    def read_latent(self, window: Window) -> torch.Tensor:
        """Return mean_CTHW, the VAE's mean in its dtype.

        Raises:
            UserError: if the file is gone or damaged.
        """
        return self._need(self.latent_file(window))

    def read_text(self, prompt: str | None) -> torch.Tensor:
        """Return text_1LD in the model's dtype.

        Raises:
            UserError: if the file is gone or damaged.
        """
        return self._need(self.text_file(prompt))

    def has_latent(self, window: Window) -> bool:
        """Say whether a window's latent is there and whole, and of the right shape."""
        mean_CTHW = read_tensor(self.latent_file(window))
        wanted = (latent_shape(self._video), torch_dtype(self._dtype))
        return mean_CTHW is not None and (tuple(mean_CTHW.shape), mean_CTHW.dtype) == wanted

    def has_text(self, prompt: str | None) -> bool:
        """Say whether a prompt's text is there and whole, and of the right length."""
        text_1LD = read_tensor(self.text_file(prompt))
        wanted = (3, 1, NUM_TOKENS, torch_dtype(self._dtype))
        return text_1LD is not None and (text_1LD.ndim, *text_1LD.shape[:2], text_1LD.dtype) == wanted

    def _file(self, kind: str, content: dict[str, object]) -> Path:
        text = json.dumps({**self._model, **content}, sort_keys=True)
        key = hashlib.sha256(text.encode("utf-8")).hexdigest()
        return self.root / kind / key[:2] / f"{key}.safetensors"

    def _need(self, path: Path) -> torch.Tensor:
        tensor = read_tensor(path)
        if tensor is None:
            raise UserError(
                f"{path} is gone or damaged since the training began",
                next_step="start the training again: what is missing is encoded again. "
                "On several machines, finetune.cache_dir must be a folder that all of them see",
            )
        return tensor


def missing_share(
    cache: Cache, windows: Iterable[Window], prompts: Iterable[str | None], rank: int = 0, num_ranks: int = 1
) -> tuple[list[Window], list[str | None]]:
    """Find what one of several processes has to encode, reading its share of the cache through.

    A share is made of places in the whole lists, so that processes which look at different moments, while others
    write, still leave nothing out.

    Args:
        cache: Where to look.
        windows: All that a training needs.
        prompts: All that a training needs; None stands for a dropped text.
        rank: Of this process, from 0.
        num_ranks: How many processes share the work.

    Returns:
        Windows and prompts that are missing or damaged.
    """
    own_windows, own_prompts = (list(dict.fromkeys(items))[rank::num_ranks] for items in (windows, prompts))
    return (
        [window for window in own_windows if not cache.has_latent(window)],
        [prompt for prompt in own_prompts if not cache.has_text(prompt)],
    )


def encode_latent(cache: Cache, pipe: Cosmos2_5_PredictBasePipeline, window: Window, num_frames: int) -> None:
    """Encode a window into the cache.

    Raises:
        UserError: if the clip is damaged.
    """
    video_THWC = read_window(window, num_frames)
    write_tensor(cache.latent_file(window), vae_means(pipe.vae, video_THWC[None].to(pipe.vae.device))[0])


def encode_prompt(cache: Cache, pipe: Cosmos2_5_PredictBasePipeline, prompt: str | None) -> None:
    """Encode a prompt into the cache, projected; None stands for a dropped text."""
    write_tensor(cache.text_file(prompt), encode_text(pipe, prompt))


def write_tensor(path: Path, tensor: torch.Tensor) -> None:
    """Write a tensor with a checksum, whole or not at all; two processes may write the same file."""
    tensor = tensor.detach().cpu().contiguous()
    with atomic_file(path) as temporary:
        save_file({NAME: tensor}, temporary, metadata={"crc32": checksum(tensor)})


def read_tensor(path: Path) -> torch.Tensor | None:
    """Return a tensor that `write_tensor` wrote, or None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as stream:
            tensor, stated = stream.get_tensor(NAME), (stream.metadata() or {}).get("crc32")
    except (OSError, SafetensorError):
        return None
    return tensor if checksum(tensor) == stated else None


def checksum(tensor: torch.Tensor) -> str:
    """Return the CRC-32 of a tensor's bytes, in hex."""
    return f"{zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy()):08x}"
