"""Options with which a stage starts the worker pool."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from dreamgen.environment import DEFAULTS


class Task(Protocol):
    """Something that a worker can do. Workers receive it pickled."""

    @property
    def task_id(self) -> str:
        """Return an id that no other task of the same call has."""
        ...


@dataclass(frozen=True)
class PoolOptions:
    """How many workers a stage wants, what each one needs, and how failures are handled.

    Args:
        stage: Name of the stage. Log lines, errors and crash records carry it.
        section: Section of its settings, which errors name; the stage's name where it is empty.
        num_workers: Number of workers; None starts as many as have room, and follows nodes that join or leave.
        gpus_per_worker: GPUs of a worker; may be a fraction, 0 on the CPU.
        cpus_per_worker: CPU cores that Ray reserves for a worker; may be a fraction.
        resources_per_worker: Ray's custom resources that a worker needs.
        threads_per_worker: OpenMP, MKL and torch threads of a worker.
        max_attempts: How often a task is tried before it counts as failed, at least 1.
        task_limit_s: Seconds after which a worker counts as hung; None derives a limit from the slowest task so far.
        max_loading_per_node: Workers of a node that load at a time; None for no limit.
        fills_cpus: Without `num_workers`, start as many as the CPUs of the cluster have room for, not only its GPUs.
    """

    stage: str
    num_workers: int | None = None
    gpus_per_worker: float = 1.0
    cpus_per_worker: float = 1.0
    resources_per_worker: dict[str, float] = field(default_factory=dict)
    threads_per_worker: int = 1
    max_attempts: int = 3
    task_limit_s: float | None = None
    section: str = ""
    fills_cpus: bool = False
    max_loading_per_node: int | None = 8  # more copies of a large model load no faster; a node rarely has more GPUs

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a worker."""
        threads = str(self.threads_per_worker)
        return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **DEFAULTS}

    def setting(self, name: str) -> str:
        """Return how the command line names one of the settings."""
        return f"--{self.section or self.stage}.{name}"
