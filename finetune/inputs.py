"""Encoded windows and prompts of a training step: from the cache, or from the frozen encoders themselves.

Axes: B batch, T frames, H height, W width, C channels, L tokens, D features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from dreamgen.config.settings import Settings
from dreamgen.models.trainable import TrainableWorldModel
from dreamgen.models.world_model import WorldModelSource
from dreamgen.progress import Progress
from dreamgen.run.files import remove_stale_temporaries
from dreamgen.run.run_folder import RunFolder
from finetune.cache import Cache, encode_prompt, encode_windows, missing_share
from finetune.windows import Window, num_threads, read_window

# Processes synchronize after this many items. None is ever further ahead of the others, so the process group's timeout,
# which detects a hang, need not be raised.
ITEMS_BETWEEN_BARRIERS = 32
RAM_GIB = 4.0  # for prompts; a prompt is 1 MB in a 2B model
DEVICE_GIB = 0.5  # for the first prompts: those of a small model need no copy at each step
THREADS = 8  # at most, that decode clips and write the cache; the thread that encodes needs the GIL, too


class EncodedPrompts:
    """Returns encoded prompts, each read or encoded once and kept in RAM.

    Args:
        read: Returns text_1LD of a prompt, or of a dropped one for None.
        device: Device of the step.
        ram_gib: RAM for kept prompts; beyond this, prompts are read or encoded again.
    """

    def __init__(
        self, read: Callable[[str | None], torch.Tensor], device: torch.device, ram_gib: float = RAM_GIB
    ) -> None:
        self._read, self._device, self._free_bytes = read, device, ram_gib * 2**30
        self._free_on_device = DEVICE_GIB * 2**30
        self._kept: dict[str | None, torch.Tensor] = {}

    def __call__(self, prompts: Sequence[str | None]) -> torch.Tensor:
        """Return text_BLD on the device; None stands for a dropped prompt."""
        return torch.cat([self._one(prompt).to(self._device, non_blocking=True) for prompt in prompts])

    def _one(self, prompt: str | None) -> torch.Tensor:
        if prompt in self._kept:
            return self._kept[prompt]
        text_1LD = self._read(prompt)
        if text_1LD.nbytes <= self._free_bytes:
            self._free_bytes -= text_1LD.nbytes
            if text_1LD.nbytes <= self._free_on_device:
                self._free_on_device -= text_1LD.nbytes
                self._kept[prompt] = text_1LD.to(self._device)
                return self._kept[prompt]
            text_1LD = text_1LD.cpu()
            # Only a copy from pinned memory overlaps with the GPU's work.
            self._kept[prompt] = text_1LD.pin_memory() if self._device.type == "cuda" else text_1LD
        return text_1LD


@dataclass(frozen=True)
class KeptWindows:
    """Returns encoded windows, from RAM where they are kept there.

    Args:
        cache: Has all of them.
        kept: Those in RAM.
    """

    cache: Cache
    kept: Mapping[Window, torch.Tensor]

    def __call__(self, window: Window) -> torch.Tensor:
        encoded = self.kept.get(window)
        return self.cache.read_window(window) if encoded is None else encoded


@dataclass(frozen=True)
class StepInputs:
    """Where a training step gets windows and prompts from.

    Args:
        read: Returns a window's content, on the CPU: its frames, or its cached encoding.
        encode: Turns contents, stacked and on the device, into encoded windows.
        prompts: Returns text_BLD of prompts.
        dropped: The prompt that stands for a dropped one; None: zeros.
        negative: The negative prompt of a teacher whose guidance is distilled; None: the training has no teacher.
        num_encoded: Windows and prompts that were encoded for the cache, by all processes.
    """

    read: Callable[[Window], torch.Tensor]
    encode: Callable[[torch.Tensor], torch.Tensor]
    prompts: EncodedPrompts
    dropped: str | None = None
    negative: str | None = None
    num_encoded: tuple[int, int] = (0, 0)


def prepare_inputs(
    settings: Settings,
    source: WorldModelSource,
    model: TrainableWorldModel,
    windows: list[Window],
    prompts: list[str],
    accelerator: Accelerator,
    dropped: str | None = None,
    negative: str | None = None,
) -> StepInputs:
    """Fill the cache and unload the encoders, or keep them loaded if nothing is cached.

    Args:
        settings: Of the run.
        source: The world model.
        model: On the device, before anything is trained.
        windows: All that the training or its validation may read.
        prompts: Theirs.
        accelerator: Every process calls this.
        dropped: The prompt that stands for a dropped one; None: zeros.
        negative: The negative prompt of a teacher whose guidance is distilled; None: the training has no teacher.

    Raises:
        UserError: if a clip or the model cannot be read.
    """
    if settings.finetune.cache == "none":
        model.load_encoders(text_encoder=True)
        read = partial(read_window, num_frames=settings.video.num_frames)
        texts = EncodedPrompts(model.encode_prompt, accelerator.device)
        return StepInputs(read, model.encode_windows, texts, dropped, negative)
    cache = Cache(cache_folder(settings), source, settings, model)
    if accelerator.is_local_main_process:
        remove_stale_temporaries(cache.root, below=True)  # other runs may be writing there
    further = [dropped] if negative is None else [dropped, negative]
    num_encoded = fill(cache, windows, [*prompts, *further], accelerator)
    texts = EncodedPrompts(cache.read_prompt, accelerator.device)
    read = KeptWindows(cache, cache.read_windows(windows, settings.finetune.cache_ram_gib))
    return StepInputs(read, lambda encoded_B: encoded_B, texts, dropped, negative, num_encoded)


def fill(
    cache: Cache, windows: list[Window], prompts: Sequence[str | None], accelerator: Accelerator
) -> tuple[int, int]:
    """Encode what the cache lacks, each process its share; every process returns when all of it is written.

    The encoders are loaded only if something is missing, the text encoder only for a prompt, and are unloaded
    afterwards.

    Returns:
        Number of windows and prompts that all processes encoded.
    """
    share = missing_share(cache, windows, prompts, accelerator.process_index, accelerator.num_processes)
    counts = gather_object([tuple(map(len, share))])
    _encode_share(cache, *share, max(map(sum, counts)), accelerator)
    return sum(count[0] for count in counts), sum(count[1] for count in counts)


def _encode_share(
    cache: Cache, windows: list[Window], prompts: list[str | None], largest_share: int, accelerator: Accelerator
) -> None:
    if windows or prompts:
        cache.model.load_encoders(text_encoder=any(prompt is not None for prompt in prompts))
    todo: list[Window | str | None] = [*prompts, *windows]
    with (
        Progress("encode", len(todo), "windows and prompts") as progress,
        ThreadPoolExecutor(num_threads(THREADS)) as threads,
    ):
        encoded = _encode(cache, todo, threads)
        for _ in range(0, largest_share, ITEMS_BETWEEN_BARRIERS):
            num_encoded = sum(1 for _ in itertools.islice(encoded, ITEMS_BETWEEN_BARRIERS))
            if accelerator.is_main_process and num_encoded:
                progress.add(num_encoded)
            accelerator.wait_for_everyone()
    if todo:
        cache.model.unload_encoders()


def _encode(cache: Cache, todo: Sequence[Window | str | None], threads: Executor) -> Iterator[Window | str | None]:
    """Encode items into the cache, and yield each when it is written; prompts come before windows."""
    for prompt in todo:
        if not isinstance(prompt, Window):
            encode_prompt(cache, prompt)
            yield prompt
    groups = itertools.batched(todo, ITEMS_BETWEEN_BARRIERS)  # of which a batch is at most one
    windows = ([item for item in group if isinstance(item, Window)] for group in groups)
    yield from encode_windows(cache, windows, threads)


def cache_folder(settings: Settings) -> Path:
    """Return the cache folder of the settings, or the run's own."""
    return Path(settings.finetune.cache_dir) if settings.finetune.cache_dir else RunFolder.of(settings).cache
