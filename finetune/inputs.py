"""Where a training step's latents and texts come from: the cache, or the frozen encoders themselves.

Axes: B batch, T frames, H height, W width, C channels, L tokens, D features.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel

from dreamgen.config.settings import Settings
from dreamgen.models.cosmos_predict25.loading import WorldModelSource, latent_statistics, load_world_model
from dreamgen.models.cosmos_predict25.text import ProjectedTexts, encode_text
from dreamgen.progress import Progress
from dreamgen.run.run_folder import RunFolder
from finetune.cache import Cache, encode_latent, encode_prompt, missing_share
from finetune.flow import LatentScale, vae_means
from finetune.windows import Window, read_window

# Processes meet after so many items. None is then ever more than these ahead, and a process group's time limit, by
# which a hang is noticed, can stay as it is.
ITEMS_BETWEEN_MEETINGS = 32


@dataclass(frozen=True)
class StepInputs:
    """What a step asks for its latents and texts.

    Args:
        read: Returns a window's content, on the CPU: its frames, or its cached latent.
        clean: Turns contents, stacked and on the device, into clean_BCTHW, float32.
        texts: Returns text_BLD of prompts.
        num_encoded: Windows and prompts that had to be encoded for the cache, by all processes.
    """

    read: Callable[[Window], torch.Tensor]
    clean: Callable[[torch.Tensor], torch.Tensor]
    texts: ProjectedTexts
    num_encoded: tuple[int, int] = (0, 0)


def prepare_inputs(
    settings: Settings,
    source: WorldModelSource,
    transformer: CosmosTransformer3DModel,
    windows: list[Window],
    prompts: list[str],
    accelerator: Accelerator,
) -> StepInputs:
    """Fill the cache and let go of the encoders, or keep them where nothing is cached.

    Args:
        settings: Of the run.
        source: The world model.
        transformer: On the device, for its projection of the text.
        windows: All that the training may draw, and those that it is validated on.
        prompts: Theirs.
        accelerator: Every process calls this.

    Raises:
        UserError: if a clip or the model cannot be read.
    """
    # Nothing is dreamed here, so the guardrail has nothing to guard.
    model, device = replace(settings.model, safety_checker=False), accelerator.device
    load = partial(load_world_model, source, model, device=device, transformer=transformer)
    scale = LatentScale(*latent_statistics(source), device)
    if settings.finetune.cache == "none":
        pipe = load()
        read = partial(read_window, num_frames=settings.video.num_frames)
        texts = ProjectedTexts(partial(encode_text, pipe), device)
        return StepInputs(read, lambda video_BTHWC: scale(vae_means(pipe.vae, video_BTHWC)), texts)
    cache = Cache(cache_folder(settings), source, settings)
    num_encoded = fill(cache, windows, [*prompts, None], load, settings.video.num_frames, accelerator)
    return StepInputs(cache.read_latent, scale, ProjectedTexts(cache.read_text, device), num_encoded)


def fill(
    cache: Cache,
    windows: list[Window],
    prompts: list[str | None],
    load: Callable[..., Cosmos2_5_PredictBasePipeline],
    num_frames: int,
    accelerator: Accelerator,
) -> tuple[int, int]:
    """Encode what the cache lacks, each process its share; every process returns when all of it is there.

    The encoders are loaded only where something is missing, the text encoder only for a prompt, and are gone
    afterwards.

    Returns:
        How many windows and prompts all processes together encoded.
    """
    share = missing_share(cache, windows, prompts, accelerator.process_index, accelerator.num_processes)
    counts = gather_object([tuple(map(len, share))])
    _encode_share(cache, *share, max(map(sum, counts)), load, num_frames, accelerator)
    release_memory()
    return sum(count[0] for count in counts), sum(count[1] for count in counts)


def _encode_share(
    cache: Cache,
    windows: list[Window],
    prompts: list[str | None],
    most: int,
    load: Callable[..., Cosmos2_5_PredictBasePipeline],
    num_frames: int,
    accelerator: Accelerator,
) -> None:
    pipe = load(text_encoder=any(prompt is not None for prompt in prompts)) if windows or prompts else None
    todo = [partial(encode_prompt, cache, pipe, prompt) for prompt in prompts]
    todo += [partial(encode_latent, cache, pipe, window, num_frames) for window in windows]
    with Progress("encode", len(todo), "windows and prompts") as progress:
        for first in range(0, most, ITEMS_BETWEEN_MEETINGS):
            for encode in todo[first : first + ITEMS_BETWEEN_MEETINGS]:
                encode()
                if accelerator.is_main_process:
                    progress.add()
            accelerator.wait_for_everyone()


def release_memory() -> None:
    """Give back what is no longer referred to, also the GPU's; models refer to themselves in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def cache_folder(settings: Settings) -> Path:
    """Return the settings' cache folder, or the run's own."""
    return Path(settings.finetune.cache_dir) if settings.finetune.cache_dir else RunFolder.of(settings).cache
