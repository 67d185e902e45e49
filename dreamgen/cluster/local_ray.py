"""Ray on this machine alone: started for one command, reachable from this machine only, and ended with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Ray reads this when it starts: send no usage statistics.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray._private import ray_constants
from ray._private.node import Node

from dreamgen.cluster.process_cleanup import processes_end_with_driver
from dreamgen.environment import changed_environment
from dreamgen.progress import log
from dreamgen.run.signals import same_sigterm_handler

START_ATTEMPTS = 3
START_TIMEOUT = "timed out during startup"  # part of what Ray raises
UNUSED = ("start_log_monitor", "start_monitor", "start_api_server")  # logs in the driver, autoscaler, dashboard
OTHERS = 0o077  # permissions of group and others
GCS_TIMEOUT_S = 20  # Ray's 60 s are for a server that restarts; this one does not
QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def local_ray(stage: str, resources: dict[str, Any], environment: Mapping[str, str]) -> Iterator[None]:
    """Start Ray on this machine and end it, with all its processes, when the body is left or this process dies.

    Ray listens on the loopback interface. Where this version of Ray has token authentication, it is on.

    Args:
        stage: For log lines.
        resources: `num_cpus`, `num_gpus` and `resources` as `ray.init` takes them.
        environment: Variables of all its processes. Ray starts one worker for each of `num_cpus` with itself; those
            with an environment of their own would be started again, and later.
    """
    for attempt in range(1, START_ATTEMPTS + 1):
        with processes_end_with_driver():
            if not _start(resources, environment, is_last=attempt == START_ATTEMPTS):
                log(f"{stage}: Ray did not start within 30 s; trying again")
                continue
            try:
                yield
            finally:
                ray.shutdown()
            return


def _start(resources: dict[str, Any], environment: Mapping[str, str], is_last: bool) -> bool:
    """Start Ray; False if it was too slow and there is another attempt."""
    try:
        # Tasks and records are small and pixels are never sent, so little memory for objects is enough.
        with changed_environment(environment), _on_loopback(), without_unused_processes(), same_sigterm_handler():
            ray.init(
                address="local", object_store_memory=80 * 2**20,
                _system_config={"gcs_rpc_server_reconnect_timeout_s": GCS_TIMEOUT_S}, **resources, **QUIET,
            )  # fmt: skip
        _protect_token()
    except Exception as error:  # Ray waits 30 s for its processes, then raises a plain Exception
        ray.shutdown()
        if START_TIMEOUT not in str(error) or is_last:
            raise
        return False
    return True


def _protect_token() -> None:
    """Take other users' permission to read the token file, with which Ray creates it."""
    file = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # there is none, or it is not this user's
        if file.stat().st_mode & OTHERS:
            file.chmod(file.stat().st_mode & 0o777 & ~OTHERS)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray listen on the loopback interface, as it does by itself on macOS and Windows.

    `ray.init` has no option for it: it replaces 127.0.0.1 as the node's address by that of another interface.
    """
    before, name = ray_constants.ENABLE_RAY_CLUSTER, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with changed_environment({name: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def without_unused_processes() -> Iterator[None]:
    """Leave out processes of Ray that nothing here uses: they take half of the CPU time of its start.

    `ray.init` has no option for it.
    """
    methods = {name: getattr(Node, name) for name in UNUSED if hasattr(Node, name)}
    for name in methods:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(Node, name, method)
