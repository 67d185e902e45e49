"""The batches of a training, read ahead of the step that needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dreamgen.config.settings import Settings
from dreamgen.models.trainable import Noise, TrainableWorldModel
from finetune.windows import TrainingClip, Window, choose_window


class WindowDataset(Dataset):
    """The samples of a whole training, by index.

    Args:
        clips: The training set.
        num_frames: Of a window.
        num_samples: Windows that the training uses.
        seed: Of the run.
        windows_per_clip: As `choose_window` takes it.
        read: Returns a window's tensor: its frames or its cached encoding.
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


@dataclass(frozen=True)
class Collate:
    """Stacks samples into a batch and draws its noise, in the process that reads them.

    Args:
        noise_sampler: From `TrainableWorldModel.noise_sampler`.
    """

    noise_sampler: Callable[[Sequence[int]], Noise]

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `sample_index` and `prompt`, lists; `content`, stacked; and `noise`."""
        indices = [sample["sample_index"] for sample in samples]
        return {
            "sample_index": indices,
            "prompt": [sample["prompt"] for sample in samples],
            "content": torch.stack([sample["content"] for sample in samples]),
            "noise": self.noise_sampler(indices),
        }


def make_loader(
    settings: Settings,
    model: TrainableWorldModel,
    clips: list[TrainingClip],
    num_samples: int,
    read: Callable[[Window], torch.Tensor],
    device: torch.device,
    first_sample: int = 0,
) -> DataLoader:
    """Return the batches of a whole training, before accelerate distributes them over GPUs.

    Args:
        settings: Of the run.
        model: Its noise sampler is used.
        clips: The training set.
        num_samples: Windows that the training uses.
        read: As `WindowDataset` takes it.
        device: Device of the batches.
        first_sample: Earlier samples are skipped: a resumed training has used them.
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
        collate_fn=Collate(model.noise_sampler()),
        pin_memory=device.type == "cuda",
    )
