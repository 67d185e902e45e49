"""Connect to a Ray cluster or start Ray on this machine, and count the workers that have room there."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from dreamgen.cluster.local_ray import QUIET, local_ray
from dreamgen.cluster.options import PoolOptions
from dreamgen.errors import UserError
from dreamgen.progress import log
from dreamgen.run.signals import same_sigterm_handler

CONNECT_TIMEOUT_S = 2.0  # to a node of the cluster


@dataclass(frozen=True)
class PoolSize:
    """How many workers there are and what Ray reserves for each.

    Args:
        num_workers: As requested, or as many as have room at the start.
        gpus_per_worker: May be a fraction; 0 on the CPU.
        cpus_per_worker: May be a fraction.
        resources_per_worker: Ray's custom resources.
        is_fixed: False if the number follows the room on the cluster, also when nodes join or leave.
        has_environment: Whether Ray was started with the workers' environment variables, which they inherit.
    """

    num_workers: int
    gpus_per_worker: float
    cpus_per_worker: float
    resources_per_worker: dict[str, float] = field(default_factory=dict)
    is_fixed: bool = True
    has_environment: bool = False

    def needs(self) -> dict[str, float]:
        """Return what one worker takes from a node, by resource."""
        needs = {"GPU": self.gpus_per_worker, "CPU": self.cpus_per_worker, **self.resources_per_worker}
        return {name: need for name, need in needs.items() if need}


@contextmanager
def ray_pool_size(options: PoolOptions, device: str) -> Iterator[PoolSize]:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine, and yield the size of the pool.

    Args:
        options: Number of workers and what each one needs.
        device: `model.device`.

    Yields:
        The size. Ray is shut down afterwards if this call started it or connected to it.

    Raises:
        UserError: if no worker has room.
    """
    if device.startswith("cuda:"):
        number = device.removeprefix("cuda:")
        raise UserError(
            f"{options.stage} takes its GPUs from Ray, which numbers them itself",
            actual=f"model.device={device}",
            allowed="auto, cpu, cuda",
            next_step=f"CUDA_VISIBLE_DEVICES={number} dreamgen {options.stage} --model.device=cuda ...",
        )
    was_running = ray.is_initialized()
    starts_ray = not was_running and not os.environ.get("RAY_ADDRESS")
    with nullcontext() if was_running else _local_ray(options, device) if starts_ray else _connection():
        nodes = alive_nodes()
        size = _pool_size(options, device, nodes)
        _check_room(size, nodes, starts_ray, options)
        yield replace(size, has_environment=starts_ray)


def alive_nodes() -> list[dict[str, float]]:
    """Return the total resources of each node of the cluster, in Ray's units."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def is_any_node_alive() -> bool:
    """Return whether any node is part of the cluster and its Ray port accepts connections."""
    return any(node["Alive"] and _accepts_connections(node) for node in ray.nodes())


def is_node_alive(node_id: str) -> bool:
    """Return whether a node is part of the cluster and its Ray port accepts connections.

    When a machine fails without a message, Ray takes seconds to declare its node dead; its workers fail before that.
    """
    return any(node["NodeID"] == node_id and node["Alive"] and _accepts_connections(node) for node in ray.nodes())


def _accepts_connections(node: dict[str, Any]) -> bool:
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False


def num_workers_wanted(size: PoolSize, nodes: Sequence[dict[str, float]]) -> int:
    """Return how many workers there should be now: the fixed number, or as many as these nodes have room for."""
    return size.num_workers if size.is_fixed else room(size, nodes)


def room(size: PoolSize, nodes: Sequence[dict[str, float]]) -> int:
    """Return how many workers have room. A worker never spans two nodes, nor a fraction of a GPU two GPUs."""
    return sum(_room_on(node, size.needs()) for node in nodes)


def _room_on(node: dict[str, float], needs: dict[str, float]) -> int:
    places = []
    for name, need in needs.items():
        has = node.get(name, 0.0) + 1e-9  # fractions are not exact: three thirds fill a GPU
        places.append(int(has) * int((1 + 1e-9) / need) if name == "GPU" and need < 1 else int(has / need))
    return min(places, default=0)


def local_resources(options: PoolOptions, device: str, num_gpus: int) -> dict[str, Any]:
    """Return the resources that Ray is started with on this machine: its GPUs, and enough of everything else.

    Args:
        options: Number of workers and what each one needs.
        device: `model.device`.
        num_gpus: How many GPUs the machine has.

    Returns:
        `num_cpus`, `num_gpus` and `resources` as `ray.init` takes them.

    Raises:
        UserError: if `device` requires a GPU and there is none.
    """
    num_gpus = 0 if device == "cpu" else num_gpus
    # On this machine only GPUs limit the number of workers: cores and custom resources are declared to fit it.
    only_gpus = replace(options, cpus_per_worker=0.0, resources_per_worker={})
    num_workers = _pool_size(only_gpus, device, [{"GPU": float(num_gpus)}]).num_workers
    return {
        "num_cpus": max(1, math.ceil(num_workers * options.cpus_per_worker)),
        "num_gpus": num_gpus,
        # Ray declares whole units only; a worker may ask for a fraction of one.
        "resources": {name: math.ceil(need * num_workers) for name, need in options.resources_per_worker.items()},
    }


def _local_ray(options: PoolOptions, device: str) -> AbstractContextManager[None]:
    num_gpus = 0
    if device != "cpu":
        import torch

        num_gpus = torch.cuda.device_count()
    resources = local_resources(options, device, num_gpus)
    return local_ray(options.stage, resources, options.environment())


@contextmanager
def _connection() -> Iterator[None]:
    with same_sigterm_handler():
        ray.init(**QUIET)
    try:
        yield
    finally:
        ray.shutdown()


def _pool_size(options: PoolOptions, device: str, nodes: Sequence[dict[str, float]]) -> PoolSize:
    num_gpus = sum(node.get("GPU", 0) for node in nodes)
    if device == "cuda" and num_gpus == 0:
        raise UserError("model.device requests a GPU, but Ray has none", next_step="dreamgen doctor")
    if options.num_workers is not None and options.num_workers < 1:
        name = options.setting("num_workers").removeprefix("--")
        raise UserError(f"{name} is too small", actual=options.num_workers, allowed="at least 1")
    gpus = 0.0 if device == "cpu" or num_gpus == 0 else options.gpus_per_worker
    size = PoolSize(1, gpus, options.cpus_per_worker, dict(options.resources_per_worker))
    if options.num_workers is not None:
        return replace(size, num_workers=options.num_workers)
    if not gpus and not size.resources_per_worker and not options.fills_cpus:
        return size  # on the CPU, one worker unless the user sets more
    return replace(size, num_workers=max(1, room(size, nodes)), is_fixed=False)


def _check_room(size: PoolSize, nodes: Sequence[dict[str, float]], is_local: bool, options: PoolOptions) -> None:
    has_room_for = room(size, nodes)
    if has_room_for < 1 or (is_local and has_room_for < size.num_workers):
        needs = size.needs()
        raise UserError(
            f"there is room for {has_room_for} of {size.num_workers} workers",
            actual="; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in needs) for node in nodes[:8])
            + (f" on the first 8 of {len(nodes)} nodes" if len(nodes) > 8 else ""),
            allowed=", ".join(f"{need:g} {name}" for name, need in needs.items()) + " a worker, on one node",
            next_step=f"{options.setting('num_workers')}, {options.setting('gpus_per_worker')}, "
            f"{options.setting('cpus_per_worker')} or {options.setting('resources_per_worker')}",
        )
    if has_room_for < size.num_workers:
        log(
            f"{options.stage}: the cluster has room for {has_room_for} of {size.num_workers} workers now; "
            "others start as nodes join"
        )
