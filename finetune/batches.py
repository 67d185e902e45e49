"""The samples of a training, read and put into batches ahead of the step that needs them.

Axes: B batch, C latent channels, T latent frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dreamgen.config.settings import FinetuneSettings, Settings
from finetune.flow import draw_batch, latent_shape
from finetune.windows import TrainingClip, Window, choose_window


class WindowDataset(Dataset):
    """The samples of a whole training, by their index.

    Args:
        clips: The training set.
        num_frames: Of a window.
        num_samples: Windows that the training sees.
        seed: Of the run.
        windows_per_clip: As `choose_window` takes it.
        read: Returns a window's tensor: its frames or its cached latent.
    """

    def __init__(
        self,
        clips: list[TrainingClip],
        num_frames: int,
        num_samples: int,
        seed: int,
        windows_per_clip: int | None,
        read: Callable[[Window], torch.Tensor],
    ) -> None:
        self.clips, self.num_frames, self.num_samples, self.seed = clips, num_frames, num_samples, seed
        self.windows_per_clip, self.read = windows_per_clip, read

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, sample_index: int) -> dict[str, Any]:
        window = choose_window(self.clips, self.num_frames, self.seed, sample_index, self.windows_per_clip)
        return {"sample_index": sample_index, "prompt": window.clip.prompt, "content": self.read(window)}


class BatchMaker:
    """Stacks samples into a batch and draws its noise, where the reading is done: ahead of the step that needs it.

    Args:
        seed: Of the run.
        shape_CTHW: Of one clean latent.
        tune: Probabilities and the shift.
    """

    def __init__(self, seed: int, shape_CTHW: Sequence[int], tune: FinetuneSettings) -> None:
        self.seed, self.shape_CTHW, self.tune = seed, shape_CTHW, tune

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `sample_index` and `prompt`, lists; `content`, stacked; `draws`, of `draw_batch`."""
        indices = [sample["sample_index"] for sample in samples]
        return {
            "sample_index": indices,
            "prompt": [sample["prompt"] for sample in samples],
            "content": torch.stack([sample["content"] for sample in samples]),
            "draws": draw_batch(self.seed, indices, self.shape_CTHW, self.tune),
        }


def make_loader(
    settings: Settings,
    clips: list[TrainingClip],
    num_samples: int,
    read: Callable[[Window], torch.Tensor],
    device: torch.device,
    first_sample: int = 0,
) -> DataLoader:
    """Return the batches of a whole training, before accelerate gives each GPU its own.

    Args:
        settings: Of the run.
        clips: The training set.
        num_samples: Windows that the training sees.
        read: As `WindowDataset` takes it.
        device: Where the batches will go.
        first_sample: Those before it are left out: a training that is gone on with has seen them.
    """
    tune, cached = settings.finetune, settings.finetune.cache == "disk"
    windows_per_clip = tune.windows_per_clip if cached else None
    windows = WindowDataset(clips, settings.video.num_frames, num_samples, settings.seed, windows_per_clip, read)
    num_workers = tune.num_workers if tune.num_workers is not None else 0 if cached else 2
    return DataLoader(
        windows,
        tune.batch_size,
        sampler=range(first_sample, num_samples),
        num_workers=num_workers,
        collate_fn=BatchMaker(settings.seed, latent_shape(settings.video), tune),
        pin_memory=device.type == "cuda",
    )
