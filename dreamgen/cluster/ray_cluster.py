"""Ray on this machine or on a cluster, and how many workers have room there."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

# Read when Ray starts: no reports to its makers.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from dreamgen.config.settings import GenerateSettings
from dreamgen.errors import UserError
from dreamgen.progress import log

ANSWER_S = 2.0  # for a connection to a node of the cluster
START_ATTEMPTS = 3
START_TIMEOUT = "timed out during startup"  # part of what Ray raises
_SILENT = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}


@dataclass(frozen=True)
class PoolSize:
    """How many workers there are and what Ray sets aside for each.

    Args:
        num_workers: As asked for, or as many as have room at the start.
        gpus_per_worker: May be a fraction; 0 on the CPU.
        cpus_per_worker: May be a fraction.
        resources_per_worker: Ray's custom resources.
        is_fixed: False if there are to be as many as have room, also when nodes join or leave.
    """

    num_workers: int
    gpus_per_worker: float
    cpus_per_worker: float
    resources_per_worker: dict[str, float] = field(default_factory=dict)
    is_fixed: bool = True

    def needs(self) -> dict[str, float]:
        """Return what one worker takes of a node."""
        needs = {"GPU": self.gpus_per_worker, "CPU": self.cpus_per_worker, **self.resources_per_worker}
        return {name: need for name, need in needs.items() if need}


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
    if is_ours:
        _start(settings, device)
    elif not was_running:
        ray.init(**_SILENT)
    try:
        nodes = alive_nodes()
        size = _pool_size(settings, device, nodes)
        _check_room(size, nodes, is_ours)
        yield size
    finally:
        if not was_running:
            ray.shutdown()


def alive_nodes() -> list[dict[str, float]]:
    """Return what each node of the cluster has in all, in Ray's units."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def is_node_alive(node_id: str) -> bool:
    """Say whether a node is part of the cluster now, and its Ray answers.

    Ray takes seconds to call a node dead whose machine went without a word, and its workers are missed before that.
    """
    return any(node["NodeID"] == node_id and node["Alive"] and _answers(node) for node in ray.nodes())


def _answers(node: dict[str, Any]) -> bool:
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=ANSWER_S):
            return True
    except OSError:
        return False


def num_workers_wanted(size: PoolSize, nodes: Sequence[dict[str, float]]) -> int:
    """Return how many workers there should be now: a fixed number, or as many as the nodes of now have room for."""
    return size.num_workers if size.is_fixed else room(size, nodes)


def room(size: PoolSize, nodes: Sequence[dict[str, float]]) -> int:
    """Return how many workers have room, node by node: none may lie across two nodes or, as a fraction, two GPUs."""
    return sum(_room_on(node, size.needs()) for node in nodes)


def _room_on(node: dict[str, float], needs: dict[str, float]) -> int:
    places = []
    for name, need in needs.items():
        has = node.get(name, 0.0) + 1e-9  # fractions are not exact: three thirds fill a GPU
        places.append(int(has) * int((1 + 1e-9) / need) if name == "GPU" and need < 1 else int(has / need))
    return min(places, default=0)


def local_resources(settings: GenerateSettings, device: str, num_gpus: int) -> dict[str, Any]:
    """Return what Ray is started with on this machine: its GPUs, and enough of everything else for the workers.

    Args:
        settings: Numbers of workers and what each needs.
        device: `model.device`.
        num_gpus: How many GPUs the machine has.

    Returns:
        `num_cpus`, `num_gpus` and `resources` as `ray.init` takes them.

    Raises:
        UserError: if `device` asks for a GPU and there is none.
    """
    num_gpus = 0 if device == "cpu" else num_gpus
    # On this machine only GPUs limit the number of workers: cores and custom resources are declared to fit it.
    only_gpus = replace(settings, cpus_per_worker=0.0, resources_per_worker={})
    num_workers = _pool_size(only_gpus, device, [{"GPU": float(num_gpus)}]).num_workers
    return {
        "num_cpus": max(1, math.ceil(num_workers * settings.cpus_per_worker)),
        "num_gpus": num_gpus,
        # Ray declares whole units only; a worker may ask for a fraction of one.
        "resources": {name: math.ceil(need * num_workers) for name, need in settings.resources_per_worker.items()},
    }


def _start(settings: GenerateSettings, device: str) -> None:
    import torch

    resources = local_resources(settings, device, torch.cuda.device_count())
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            # What travels is jobs and records, never pixels, so that little memory for objects is enough.
            ray.init(address="local", **resources, object_store_memory=80 * 2**20, **_SILENT)
            return
        except Exception as error:  # Ray waits 30 s for its processes and then raises an Exception without a class
            ray.shutdown()
            if START_TIMEOUT not in str(error) or attempt == START_ATTEMPTS:
                raise
            log("generate: Ray did not start within its 30 s, as the machine is busy; starting it again")


def _pool_size(settings: GenerateSettings, device: str, nodes: Sequence[dict[str, float]]) -> PoolSize:
    num_gpus = sum(node.get("GPU", 0) for node in nodes)
    if device == "cuda" and num_gpus == 0:
        raise UserError("model.device asks for a GPU and Ray knows of none", next_step="dreamgen doctor")
    if settings.num_workers is not None and settings.num_workers < 1:
        raise UserError("generate.num_workers is too small", actual=settings.num_workers, allowed="at least 1")
    gpus = 0.0 if device == "cpu" or num_gpus == 0 else settings.gpus_per_worker
    size = PoolSize(1, gpus, settings.cpus_per_worker, dict(settings.resources_per_worker))
    if settings.num_workers is not None:
        return replace(size, num_workers=settings.num_workers)
    if not gpus and not size.resources_per_worker:
        return size  # on the CPU one worker is enough unless more are asked for
    return replace(size, num_workers=max(1, room(size, nodes)), is_fixed=False)


def _check_room(size: PoolSize, nodes: Sequence[dict[str, float]], is_ours: bool) -> None:
    has_room_for = room(size, nodes)
    if has_room_for < 1 or (is_ours and has_room_for < size.num_workers):
        needs = size.needs()
        raise UserError(
            f"there is room for {has_room_for} of {size.num_workers} workers",
            actual="; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in needs) for node in nodes[:8])
            + (f" on the first 8 of {len(nodes)} nodes" if len(nodes) > 8 else ""),
            allowed=", ".join(f"{need:g} {name}" for name, need in needs.items()) + " a worker, on one node",
            next_step="--generate.num_workers, --generate.gpus_per_worker, --generate.cpus_per_worker or "
            "--generate.resources_per_worker",
        )
    if has_room_for < size.num_workers:
        log(
            f"generate: the cluster has room for {has_room_for} of {size.num_workers} workers now; "
            "others start as nodes join"
        )
