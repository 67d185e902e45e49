"""What a training says while it runs: loss.csv, the trackers' curves and the progress line."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from dreamgen.core.errors import UserError
from dreamgen.core.progress import Progress
from dreamgen.core.settings import FinetuneSettings

COLUMNS = ("step", "loss", "learning_rate", "grad_norm", "seconds")


class TrainingLog:
    """Averages the loss between log lines, over accumulated batches and over GPUs; the main process writes it down.

    Args:
        accelerator: With its trackers started.
        path: `loss.csv`: step, mean loss since the line before, learning rate, the step's gradient norm before
            clipping, and seconds since the training began.
        tune: Steps, and how often to write.
    """

    def __init__(self, accelerator: Accelerator, path: Path, tune: FinetuneSettings) -> None:
        self.last_loss = math.nan
        self._accelerator, self._tune = accelerator, tune
        self._losses: list[torch.Tensor] = []
        self._start_s = time.monotonic()
        self._stream = path.open("w", newline="", encoding="utf-8") if accelerator.is_main_process else None
        self._progress = Progress("finetune", tune.num_steps, "steps") if accelerator.is_main_process else None
        self._write(COLUMNS)

    def add(self, loss: torch.Tensor) -> None:
        """Note the loss of one batch; it stays on its device until the next line."""
        self._losses.append(loss.detach())

    def step(self, step: int, learning_rate: float, grad_norm: torch.Tensor | float) -> None:
        """Count an optimizer step and, where a line is due, write it.

        Args:
            step: 1 for the first.
            learning_rate: That it was made with.
            grad_norm: Before clipping.

        Raises:
            UserError: if the loss is no longer a number.
        """
        if step % self._tune.log_every == 0 or step == self._tune.num_steps:
            mean = torch.stack(self._losses).mean()
            self.last_loss = self._accelerator.gather(mean).mean().item()
            self._losses.clear()
            row = (step, self.last_loss, learning_rate, float(grad_norm), round(self.elapsed_s, 3))
            self._write(row)
            self._accelerator.log(dict(zip(COLUMNS[1:4], row[1:4], strict=True)), step=step)
            if not math.isfinite(self.last_loss):
                raise UserError(
                    f"the loss is not a number at step {step}; no adapter is written",
                    actual=self.last_loss,
                    next_step="set a smaller --learning_rate, or --model.dtype=float32",
                )
        if self._progress is not None:
            self._progress.add(note=f"loss {self.last_loss:.4f}" if math.isfinite(self.last_loss) else "")

    @property
    def elapsed_s(self) -> float:
        """Seconds since the training began."""
        return time.monotonic() - self._start_s

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *details: object) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._progress is not None:
            self._progress.__exit__(*details)

    def _write(self, row: tuple) -> None:
        if self._stream is not None:
            csv.writer(self._stream, lineterminator="\n").writerow(row)
            self._stream.flush()
