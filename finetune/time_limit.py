"""The time that a training may take, `max_minutes`."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate import Accelerator


class TimeLimit:
    """Measures the share of a training's time that has passed, the same in all processes.

    Args:
        accelerator: Every process creates one and calls it equally often.
        max_minutes: The limit; None: there is none.
        start_s: `time.monotonic()` at the start of the command.
        before_s: Seconds that earlier parts of a resumed training took.
    """

    def __init__(
        self, accelerator: Accelerator, max_minutes: float | None, start_s: float, before_s: float = 0.0
    ) -> None:
        self._limit_s, self._start_s = max_minutes and 60 * max_minutes, start_s - before_s
        is_shared = self._limit_s is not None and accelerator.num_processes > 1
        self._group: Any = torch.distributed.new_group(backend="gloo") if is_shared else None

    def share(self) -> float:
        """Return the share that has passed: 1 or more when the time is up, 0 without a limit."""
        if self._limit_s is None:
            return 0.0
        share = (time.monotonic() - self._start_s) / self._limit_s
        if self._group is None:
            return share
        agreed = torch.tensor(share, dtype=torch.float64)
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX, group=self._group)
        return agreed.item()
