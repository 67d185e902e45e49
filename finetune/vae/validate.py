"""PSNR of held-out clips, and a picture of them.

Axes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from dreamgen.config.settings import FinetuneVaeSettings
from dreamgen.data.images import write_png
from dreamgen.models.cosmos_predict25.vae_training import Reconstruction
from finetune.checkpoint import TrainableState
from finetune.training_log import TrainingLog, append_row, read_steps, start_table
from finetune.vae.batches import Clips, to_unit
from finetune.vae.losses import psnr_db
from finetune.vae.model import TrainedVae
from finetune.windows import Window

COLUMNS = ("step", "psnr_db", "moving_psnr_db", "detail_psnr_db")
MAX_PICTURES, SHOWN_FRAMES = 8, 4


class VaeValidation:
    """Measures held-out clips every so many steps; the main process writes `finetune_vae/validation.csv`.

    Its columns: step; PSNR of all pixels, of those that move, and of small things, each the mean over clips, from the
    latents' means.

    Args:
        accelerator: Of the training.
        module: Not wrapped.
        trained: Its average is measured if there is one, as that is what will be written.
        windows: Held out; without any, nothing is measured.
        read: Reads them.
        tune: How often.
        path: Of the file.
        done_steps: Steps that a resumed training has done; the file's lines up to there are kept.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: Reconstruction,
        trained: TrainableState[TrainedVae],
        windows: Sequence[Window],
        read: Clips,
        tune: FinetuneVaeSettings,
        path: Path,
        done_steps: int,
    ) -> None:
        self._accelerator, self._module, self._trained, self._tune = accelerator, module, trained, tune
        self._windows, self._read, self._path = windows, read, path
        if windows and accelerator.is_main_process:
            start_table(path, COLUMNS, read_steps(path, done_steps)).close()

    def step(self, step: int, log: TrainingLog, is_last: bool) -> dict[str, float]:
        """Measure if it is due, with the weights as they are.

        Args:
            step: Optimizer steps done.
            log: Its clock stops meanwhile.
            is_last: Whether the training ends with it.

        Returns:
            The measured means by column; empty if nothing was measured.
        """
        if not self._windows or not (is_last or step % self._tune.validate_every == 0):
            return {}
        with log.paused(), self._trained.averaged():
            means: dict[str, float] = dict(zip(COLUMNS[1:], self._measure(), strict=True))
        if self._accelerator.is_main_process:
            with self._path.open("a", newline="", encoding="utf-8") as stream:
                append_row(stream, (step, *(round(value, 4) for value in means.values())))
        return means

    def write_pictures(self, path: Path) -> None:
        """Write a picture: each row some frames of a held-out clip, above them the originals."""
        rows = []
        for window in self._windows[:MAX_PICTURES]:
            video_BCTHW, decoded_BCTHW = self._decoded([window])
            frames = np.linspace(0, video_BCTHW.shape[2] - 1, SHOWN_FRAMES).round().astype(int)
            for one_CTHW in (video_BCTHW[0], decoded_BCTHW[0]):
                shown = (one_CTHW[:, frames].clamp(-1, 1) * 127.5 + 127.5).round().byte().cpu().numpy()
                rows.append(np.concatenate(list(shown.transpose(1, 2, 3, 0)), axis=1))
        if rows:
            write_png(path, np.concatenate(rows, axis=0))

    @torch.no_grad()
    def _measure(self) -> list[float]:
        accelerator, size = self._accelerator, self._tune.batch_size
        shown_N3 = torch.full((len(self._windows), 3), 0.0, device=accelerator.device)
        shares = range(accelerator.process_index * size, len(self._windows), accelerator.num_processes * size)
        for first in shares:
            video_BCTHW, decoded_BCTHW = self._decoded(self._windows[first : first + size])
            shown_N3[first : first + size] = psnr_db(decoded_BCTHW, video_BCTHW)
        total_N3: Any = accelerator.reduce(shown_N3, "sum")  # all but one process add zeros
        return total_N3.nanmean(0).tolist()

    @torch.no_grad()
    def _decoded(self, windows: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor]:
        video_BTHWC = torch.stack([self._read(window) for window in windows]).to(self._accelerator.device)
        video_BCTHW = to_unit(video_BTHWC)
        with self._accelerator.autocast():
            return video_BCTHW, self._module(video_BCTHW, None)[0]
