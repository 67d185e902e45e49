"""The log of a training: loss.csv, the trackers' curves and the progress line."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator

from dreamgen.config.settings import FinetuneSettings, FinetuneVaeSettings, IdmSettings
from dreamgen.errors import UserError
from dreamgen.progress import Progress
from dreamgen.run.files import write_text
from finetune.metrics import device_peak_flops, peak_memory_gib

TRACKED = ("loss", "learning_rate", "grad_norm", "samples_per_s", "mfu", "memory_gib")
COLUMNS = ("step", *TRACKED, "seconds")


class TrainingLog:
    """Averages the loss between log lines, over accumulated batches and over GPUs; the main process writes it.

    Only a log line waits for the GPU. The file's columns: step; mean loss since the line before; learning rate and
    gradient norm (before clipping) of the step; windows a second over all GPUs since the line before; MFU, the share
    of the GPUs' peak that these use (nan if the peak is not known); the most memory that any GPU has used;
    seconds of training, summed over all its parts if it was resumed.

    Args:
        accelerator: With its trackers started.
        path: `loss.csv`.
        tune: Steps, and how often to write.
        window_flops: Operations of training on one window; None omits MFU.
        done_steps: Steps that a resumed training has done; the file's lines up to there are kept.
        pending_losses: From `pending_losses` at that step.
        name: Of the training, for the progress line.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        path: Path,
        tune: FinetuneSettings | FinetuneVaeSettings | IdmSettings,
        window_flops: float | None = None,
        done_steps: int = 0,
        pending_losses: Sequence[float] = (),
        name: str = "finetune",
    ) -> None:
        self.last_loss, self.last_step = math.nan, done_steps
        self._accelerator, self._tune = accelerator, tune
        own = pending_losses[accelerator.process_index :: accelerator.num_processes]
        self._losses = list(torch.tensor(own, dtype=torch.float32, device=accelerator.device))
        self._windows_a_step = tune.batch_size * tune.gradient_accumulation_steps * accelerator.num_processes
        peak = device_peak_flops(accelerator.device)
        self._windows_a_s_at_peak = peak * accelerator.num_processes / window_flops if peak and window_flops else None
        self._stream = self._progress = None
        before_s = 0.0
        if accelerator.is_main_process:
            kept = read_steps(path, done_steps)
            if kept:
                self.last_loss, before_s = float(kept[-1]["loss"]), float(kept[-1]["seconds"])
            self._stream = start_table(path, COLUMNS, kept)
            self._progress = Progress(name, tune.num_steps - done_steps, "steps")
        self._start_s = time.monotonic() - before_s
        self._line_step, self._line_s = done_steps, time.monotonic()

    def add(self, loss: torch.Tensor) -> None:
        """Record the loss of one batch; it stays on its device until the next line."""
        self._losses.append(loss.detach())

    def step(self, step: int, learning_rate: float, grad_norm: torch.Tensor | float, is_last: bool = False) -> None:
        """Count an optimizer step, and write a line if one is due.

        Args:
            step: 1 for the first.
            learning_rate: Of the step.
            grad_norm: Before clipping.
            is_last: Whether the training ends with it.

        Raises:
            UserError: if the loss is no longer a number.
        """
        self.last_step = step
        if step % self._tune.log_every == 0 or is_last or step == self._tune.num_steps:
            self._write_line(step, learning_rate, grad_norm)
        if self._progress is not None:
            self._progress.add(note=f"loss {self.last_loss:.4f}" if math.isfinite(self.last_loss) else "")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude what is done inside (validation, a checkpoint) from the training's speed."""
        start_s = time.monotonic()
        yield
        self._line_s += time.monotonic() - start_s

    def pending_losses(self) -> tuple[float, ...]:
        """Return the losses since the last line, of all processes in the order of their samples; all must call it.

        A checkpoint between two lines stores them, so that the next line of a resumed training is the same as without
        the interruption.
        """
        if not self._losses:
            return ()
        losses_PN: Any = self._accelerator.gather(torch.stack(self._losses)[None])  # P processes, N batches each
        return tuple(losses_PN.T.flatten().tolist())

    @property
    def elapsed_s(self) -> float:
        """Seconds of training."""
        return time.monotonic() - self._start_s

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *details: Any) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._progress is not None:
            self._progress.__exit__(*details)

    def _write_line(self, step: int, learning_rate: float, grad_norm: torch.Tensor | float) -> None:
        mean = torch.stack(self._losses).mean()
        memory_gib = torch.tensor(peak_memory_gib(self._accelerator.device)).to(mean)
        gathered_N2: Any = self._accelerator.gather(torch.stack([mean, memory_gib])[None])  # N: one row a process
        self.last_loss = gathered_N2[:, 0].mean().item()  # waits until the steps are done; read the clock after it
        self._losses.clear()
        windows_a_s = (step - self._line_step) * self._windows_a_step / (time.monotonic() - self._line_s)
        mfu = windows_a_s / self._windows_a_s_at_peak if self._windows_a_s_at_peak else math.nan
        memory = gathered_N2[:, 1].max().item()
        values = (self.last_loss, learning_rate, float(grad_norm), round(windows_a_s, 4), round(mfu, 4),
                  round(memory, 3))  # fmt: skip
        if self._stream is not None:
            append_row(self._stream, (step, *values, round(self.elapsed_s, 3)))
        named = dict(zip(TRACKED, values, strict=True))
        self._accelerator.log({name: value for name, value in named.items() if not math.isnan(value)}, step=step)
        self._line_step, self._line_s = step, time.monotonic()
        if not math.isfinite(self.last_loss):
            raise UserError(
                f"the loss is not a number at step {step}; no adapter is written",
                actual=self.last_loss,
                next_step="set a smaller --learning_rate, or --model.dtype=float32",
            )


def read_steps(path: Path, up_to_step: int | None = None) -> list[dict[str, str]]:
    """Read the rows of a table that begins with `step`, up to a step; none where there is no file.

    A last line that a kill cut short is left out.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if None not in row.values() and row.get("step", "").isdecimal()]
    return [row for row in rows if up_to_step is None or int(row["step"]) <= up_to_step]


def start_table(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]] = ()) -> TextIO:
    """Write a table with the rows to keep, atomically, and return it open for more."""
    lines = [",".join(columns), *(",".join(row.get(name, "") for name in columns) for row in rows)]
    write_text(path, "\n".join(lines) + "\n")
    return path.open("a", newline="", encoding="utf-8")


def append_row(stream: TextIO, row: Sequence[object]) -> None:
    """Write one row and flush it."""
    csv.writer(stream, lineterminator="\n").writerow(row)
    stream.flush()
