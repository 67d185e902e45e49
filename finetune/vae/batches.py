"""The batches of a VAE's training: windows of the training set's clips, decoded once where they fit into the RAM.

Axes: B batch, T frames, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from dreamgen.config.settings import Settings
from dreamgen.progress import Progress
from finetune.batches import WindowDataset
from finetune.windows import TrainingClip, Window, num_threads, read_window

GIB = 2**30
THREADS = 16  # at most, that decode clips


@dataclass(frozen=True)
class Clips:
    """Reads windows, from RAM where the whole clip is kept there.

    Args:
        num_frames: Of a window.
        kept: video_THWC, uint8, of clips.
    """

    num_frames: int
    kept: dict[TrainingClip, torch.Tensor]

    def __call__(self, window: Window) -> torch.Tensor:
        video_THWC = self.kept.get(window.clip)
        if video_THWC is None:
            return read_window(window, self.num_frames)
        return video_THWC[window.start : window.start + self.num_frames]


def decode_clips(settings: Settings, clips: Sequence[TrainingClip]) -> Clips:
    """Decode the clips that fit into `finetune_vae.ram_gib`, on several threads.

    Raises:
        UserError: if a clip is damaged.
    """
    video, free_bytes, fitting = settings.video, settings.finetune_vae.ram_gib * GIB, []
    for clip in dict.fromkeys(clips):
        free_bytes -= 3 * clip.num_frames * video.height * video.width
        if free_bytes < 0:
            break
        fitting.append(clip)
    kept = {}
    with ThreadPoolExecutor(num_threads(THREADS)) as threads, Progress("decode", len(fitting)) as progress:
        for clip, video_THWC in zip(fitting, threads.map(_read_whole, fitting), strict=True):
            kept[clip] = video_THWC
            progress.add()
    return Clips(video.num_frames, kept)


def make_loader(
    settings: Settings, clips: list[TrainingClip], read: Clips, num_samples: int, device: torch.device, first: int
) -> DataLoader:
    """Return the batches of a whole training, video_BTHWC in uint8, before accelerate distributes them over GPUs.

    Args:
        settings: Of the run.
        clips: To train on.
        read: Of these clips.
        num_samples: Windows that the training uses.
        device: Of the training.
        first: Earlier samples are skipped: a resumed training has used them.
    """
    tune = settings.finetune_vae
    windows = WindowDataset(clips, settings.video.num_frames, num_samples, settings.seed, None, read)
    return DataLoader(
        windows,
        tune.batch_size,
        sampler=range(first, num_samples),
        num_workers=tune.num_workers,
        collate_fn=_stack,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )


def to_unit(video_BTHWC: torch.Tensor) -> torch.Tensor:
    """Return video_BCTHW, -1 to 1, float32, channels-last."""
    return video_BTHWC.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def _stack(samples: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([sample["content"] for sample in samples])


def _read_whole(clip: TrainingClip) -> torch.Tensor:
    return read_window(Window(clip, 0), clip.num_frames)
