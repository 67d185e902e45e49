"""Stopping all processes between two optimizer steps on Ctrl-C, SIGTERM or a failure of the main process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from dreamgen.errors import UserError
from dreamgen.run.write_errors import storage_error


@contextmanager
def stop_signals(accelerator: Accelerator) -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and the first Ctrl-C into a flag; the second Ctrl-C interrupts as usual.

    Yields:
        A function that every process calls after each optimizer step. It returns True in all of them after the same
        step, once any of them got a signal. Processes exchange one number on the CPU through gloo, without waiting for
        a GPU.
    """
    requested = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        if accelerator.is_local_main_process:
            # Not print: a signal may arrive inside of one.
            os.write(2, b"\nstopping: the current step is finished and saved. Press Ctrl-C again to stop at once.\n")

    group = torch.distributed.new_group(backend="gloo") if accelerator.num_processes > 1 else None
    before = {}
    if threading.current_thread() is threading.main_thread():  # no other thread may handle signals
        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: requested.is_set() if group is None else _any_process(requested.is_set(), group)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def on_main_process(accelerator: Accelerator, folder: Path, write: Callable[[], None]) -> None:
    """Let the main process write something; every process returns when it is done, or fails if it failed.

    Args:
        accelerator: Of the training.
        folder: What `write` writes to.
        write: Writes a checkpoint, an adapter or a log.

    Raises:
        UserError: from `write`, or `CannotWrite` for a full disk. The processes that only waited raise one too, so
            that none keeps waiting.
    """
    error = None
    if accelerator.is_main_process:
        try:
            write()
        except UserError as raised:
            error = raised
        except (OSError, SafetensorError) as raised:
            error = storage_error(raised, folder) or UserError(f"{folder} cannot be written", actual=str(raised))
    failed: Any = torch.tensor(int(error is not None), device=accelerator.device)
    if accelerator.num_processes > 1:
        failed = accelerator.reduce(failed, "sum")
        if error is None and failed.item():
            error = UserError("the main process could not write its files", next_step="see its message")
    if error is not None:
        raise error


def _any_process(here: bool, group: Any) -> bool:
    flag = torch.tensor(int(here))
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=group)
    return bool(flag)
