"""Ray on this machine or on a cluster, and how many workers have room there."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Read when Ray starts: no reports to its makers.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import torch

from dreamgen.core.errors import UserError
from dreamgen.core.progress import log
from dreamgen.core.settings import GenerateSettings

_SILENT = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}


@dataclass(frozen=True)
class PoolSize:
    """How many workers there are and what Ray sets aside for each."""

    num_workers: int
    gpus_per_worker: float
    cpus_per_worker: float


@contextmanager
def ray_pool_size(settings: GenerateSettings, device: str) -> Iterator[PoolSize]:
    """Connect to Ray, or start it on this machine, and say how many workers there will be.

    Args:
        settings: Numbers of workers and what each needs.
        device: `model.device`.

    Yields:
        The pool's size. Ray is shut down afterwards if it was started or connected to here.

    Raises:
        UserError: if no worker has room.
    """
    if device.startswith("cuda:"):
        number = device.removeprefix("cuda:")
        raise UserError(
            "generate takes its GPUs from Ray, which numbers them itself",
            actual=f"model.device={device}",
            allowed="auto, cpu, cuda",
            next_step=f"CUDA_VISIBLE_DEVICES={number} dreamgen generate --model.device=cuda ...",
        )
    was_running = ray.is_initialized()
    is_ours = not was_running and not os.environ.get("RAY_ADDRESS")
    num_local_gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if is_ours:
        size = _pool_size(settings, device, num_local_gpus)
        num_cpus = math.ceil(size.num_workers * size.cpus_per_worker)
        # 80 MB: what travels is jobs and records, never pixels.
        ray.init(address="local", num_cpus=num_cpus, num_gpus=num_local_gpus, object_store_memory=80 * 2**20, **_SILENT)
    elif not was_running:
        ray.init(**_SILENT)
    try:
        resources = ray.cluster_resources()
        size = _pool_size(settings, device, resources.get("GPU", 0))
        _check_room(size, resources, is_ours)
        yield size
    finally:
        if not was_running:
            ray.shutdown()


def _pool_size(settings: GenerateSettings, device: str, num_gpus: float) -> PoolSize:
    gpus_per_worker = 0.0 if device == "cpu" or num_gpus == 0 else settings.gpus_per_worker
    if device == "cuda" and num_gpus == 0:
        raise UserError("model.device asks for a GPU and Ray knows of none", next_step="dreamgen doctor")
    num_workers = settings.num_workers
    if num_workers is None:
        num_workers = max(1, int(num_gpus / gpus_per_worker)) if gpus_per_worker else 1
    if num_workers < 1:
        raise UserError("generate.num_workers is too small", actual=num_workers, allowed="at least 1")
    return PoolSize(num_workers, gpus_per_worker, settings.cpus_per_worker)


def _check_room(size: PoolSize, resources: dict[str, float], is_ours: bool) -> None:
    needs = {"GPU": size.gpus_per_worker, "CPU": size.cpus_per_worker}
    room = min((int(resources.get(name, 0) / need) for name, need in needs.items() if need), default=size.num_workers)
    if room < 1 or (is_ours and room < size.num_workers):
        raise UserError(
            f"there is room for {room} of {size.num_workers} workers",
            actual=", ".join(f"{resources.get(name, 0):g} {name}" for name in needs),
            allowed=", ".join(f"{need:g} {name} a worker" for name, need in needs.items() if need),
            next_step="--generate.num_workers, --generate.gpus_per_worker or --generate.cpus_per_worker",
        )
    if room < size.num_workers:
        log(f"generate: the cluster has room for {room} of {size.num_workers} workers now; others start as nodes join")
