"""The encoded windows and prompts of a training set, kept on disk by content.

A window's file name hashes the clip's bytes, its start, the size and the model; a prompt's the text and the model. So
only what changed is encoded again, and several runs can share one cache.

Axes: B batch, T frames, H height, W width, C channels, L tokens, D features. An encoded window has the model's own
shape.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dreamgen.config.settings import Settings
from dreamgen.errors import UserError
from dreamgen.models.trainable import TrainableWorldModel
from dreamgen.models.world_model import WorldModelSource
from dreamgen.run.files import atomic_file, sha256_of_file
from finetune.windows import Window, read_window

NAME = "values"
BATCH_BYTES = 2**28  # of the frames that are decoded to be encoded together
FORMAT = 1  # of the files and their encoding; a new number encodes everything again


class Cache:
    """Reads and writes encoded windows and prompts by what they are encoded from.

    Args:
        root: Folder; several runs may share it.
        source: The world model.
        settings: Size, length and precision.
        model: Encodes and checks the entries.
    """

    def __init__(self, root: Path, source: WorldModelSource, settings: Settings, model: TrainableWorldModel) -> None:
        self.root, self.model, self.video = root, model, settings.video
        self._content = {"format": FORMAT, "model": source.sha256, "dtype": settings.model.dtype}
        self._clip_sha256: dict[Path, str] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "model": None}  # processes that read ahead need no model

    def window_file(self, window: Window) -> Path:
        """Return the file of a window."""
        path = window.clip.path
        if path not in self._clip_sha256:
            self._clip_sha256[path] = sha256_of_file(path)
        video = self.video
        shape = {"num_frames": video.num_frames, "height": video.height, "width": video.width}
        return self._file("latents", {"clip": self._clip_sha256[path], "start": window.start, **shape})

    def prompt_file(self, prompt: str | None) -> Path:
        """Return the file of a prompt; None stands for a dropped prompt."""
        return self._file("texts", {"prompt": prompt})

    def read_window(self, window: Window) -> torch.Tensor:
        """Return an encoded window, without the batch axis.

        Raises:
            UserError: if the file is missing or damaged.
        """
        return self._need(self.window_file(window))

    def read_prompt(self, prompt: str | None) -> torch.Tensor:
        """Return text_1LD of a prompt.

        Raises:
            UserError: if the file is missing or damaged.
        """
        return self._need(self.prompt_file(prompt))

    def read_windows(self, windows: Iterable[Window], ram_gib: float) -> dict[Window, torch.Tensor]:
        """Return encoded windows that fit into the RAM, in order; the others stay on the disk."""
        kept: dict[Window, torch.Tensor] = {}
        free_bytes = ram_gib * 2**30
        for window in dict.fromkeys(windows):
            kept[window] = self.read_window(window)
            free_bytes -= kept[window].nbytes
            if free_bytes < kept[window].nbytes:
                break
        return kept

    def has_window(self, window: Window) -> bool:
        """Return whether a window's file is complete and fits the model."""
        encoded = read_tensor(self.window_file(window))
        return encoded is not None and self.model.is_encoded_window(encoded)

    def has_prompt(self, prompt: str | None) -> bool:
        """Return whether a prompt's file is complete and fits the model."""
        text_1LD = read_tensor(self.prompt_file(prompt))
        return text_1LD is not None and self.model.is_encoded_prompt(text_1LD)

    def _file(self, kind: str, content: dict[str, object]) -> Path:
        text = json.dumps({**self._content, **content}, sort_keys=True)
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
    """Find what one of several processes has to encode, by reading its share of the cache.

    A share consists of positions in the whole lists, so that processes which look at different moments, while others
    write, still omit nothing.

    Args:
        cache: To look in.
        windows: All windows of a training.
        prompts: All prompts of a training; None stands for a dropped prompt.
        rank: Of this process, from 0.
        num_ranks: Number of processes.

    Returns:
        Windows and prompts that are missing or damaged.
    """
    own_windows = list(dict.fromkeys(windows))[rank::num_ranks]
    own_prompts = list(dict.fromkeys(prompts))[rank::num_ranks]
    return (
        [window for window in own_windows if not cache.has_window(window)],
        [prompt for prompt in own_prompts if not cache.has_prompt(prompt)],
    )


def encode_windows(cache: Cache, groups: Iterable[Sequence[Window]], threads: Executor) -> Iterator[Window]:
    """Encode windows into the cache, in batches; the model's encoders are loaded.

    While a batch is encoded, the next one is decoded and the one before is written. So the frames of two are in RAM.

    Args:
        cache: To write to.
        groups: The windows. Those of a batch are of one group.
        threads: Decode and write files.

    Yields:
        Each window when its file is written, in order.

    Raises:
        UserError: if a clip is damaged.
    """
    video = cache.video
    shape_THWC = video.num_frames, video.height, video.width, 3
    at_once = max(1, BATCH_BYTES // math.prod(shape_THWC))

    def start_decoding(batch: Sequence[Window]) -> tuple[Sequence[Window], torch.Tensor, Iterator[torch.Tensor]]:
        video_BTHWC = torch.empty((len(batch), *shape_THWC), dtype=torch.uint8)
        lengths = itertools.repeat(video.num_frames)
        return batch, video_BTHWC, threads.map(read_window, batch, lengths, video_BTHWC.numpy())

    def write(window: Window, encoded: torch.Tensor) -> Window:
        write_tensor(cache.window_file(window), encoded)
        return window

    batches = (batch for group in groups for batch in itertools.batched(group, at_once))
    started = map(start_decoding, batches)
    following, writing = next(started, None), iter(())
    while following is not None:
        batch, video_BTHWC, decoding = following
        following = next(started, None)
        list(decoding)  # waits, and raises the error of a damaged clip
        encoded_B = cache.model.encode_windows(video_BTHWC).cpu()
        yield from writing
        writing = threads.map(write, batch, encoded_B)
    yield from writing


def encode_prompt(cache: Cache, prompt: str | None) -> None:
    """Encode a prompt into the cache; None stands for a dropped prompt."""
    write_tensor(cache.prompt_file(prompt), cache.model.encode_prompt(prompt))


def write_tensor(path: Path, tensor: torch.Tensor) -> None:
    """Write a tensor with a checksum, whole or not at all; two processes may write the same file."""
    tensor = tensor.detach().cpu().contiguous()
    with atomic_file(path) as temporary:
        save_file({NAME: tensor}, temporary, metadata={"crc32": checksum(tensor)})


def read_tensor(path: Path) -> torch.Tensor | None:
    """Return a tensor from `write_tensor`, or None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as stream:
            tensor, stated = stream.get_tensor(NAME), (stream.metadata() or {}).get("crc32")
    except (OSError, SafetensorError):
        return None
    return tensor if checksum(tensor) == stated else None


def checksum(tensor: torch.Tensor) -> str:
    """Return the CRC-32 of a tensor's bytes, in hex."""
    return f"{zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy()):08x}"
