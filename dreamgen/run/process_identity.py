"""Tell processes apart that may run on different machines, or in different containers of one machine.

A host name and a process id do not: containers may share the name, and each counts its processes from 1.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path


@cache
def process_space() -> str:
    """Return the boot of the machine and the container (PID namespace) that process ids of this process belong to."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


@cache
def machine_name() -> str:
    """Return the host's name and a hash of `process_space`: equal if process ids mean the same processes."""
    return f"{os.uname().nodename}.{hashlib.sha256(process_space().encode()).hexdigest()[:8]}"


def process_start(pid: int) -> str | None:
    """Return what identifies a process of this space beyond its reused id; None if it ended or is not visible."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" or not process_space() else f"{process_space()}:{fields[19]}"


def is_alive(pid: int) -> bool:
    """Return whether a process of this space is running, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # the process of another user; a number that no process has
        return pid < 2**31
    return True
