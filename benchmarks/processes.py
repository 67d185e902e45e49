"""Calls of a function in several processes, which share the GPUs that this one sees."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from environments import visible_gpus

MapCalls = Callable[..., Iterable[Any]]


@contextmanager
def processes(num: int) -> Iterator[MapCalls]:
    """Provide a function that calls as `map` does, in so many processes; with one of them, it is `map` itself.

    Each process computes on one CPU thread and sees one GPU, the next one in turn.

    Args:
        num: Of processes; each starts when there is work for it.
    """
    if num == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    numbers = context.SimpleQueue()
    for number in range(num):
        numbers.put(number)
    with ProcessPoolExecutor(num, context, _start, (numbers, visible_gpus(torch.cuda.device_count()))) as pool:
        yield pool.map


def _start(numbers: Any, gpus: list[str]) -> None:
    torch.set_num_threads(1)
    number = numbers.get()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
