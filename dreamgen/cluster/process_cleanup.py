"""Ends what a local Ray leaves behind, also when its driver is killed.

A killed driver cleans nothing up, and Ray's helper processes then live on for a minute, some workers for half of one.
So the driver marks the environment of Ray's processes and starts this file as a script. It waits until the driver is
gone, then kills every process with the mark. It imports the standard library only, because it starts with each Ray.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "DREAMGEN_RAY"
PROCESSES = Path("/proc")
GIVE_UP_AFTER_S = 5.0  # a process in the middle of a system call may take a moment to end
POLL_S = 0.05


@contextmanager
def processes_end_with_driver() -> Iterator[None]:
    """Kill the processes that the body starts when it is left, or when this process dies in it.

    Processes that leave the body's environment variables out are not found. Systems without /proc clean nothing up.
    """
    if not PROCESSES.is_dir():
        yield
        return
    mark = uuid.uuid4().hex
    # A session of its own: Ctrl-C in the terminal must not reach it. The pipe to it closes when this process ends.
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, mark],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert watcher.stdin is not None
    # Ray renames its processes in a way that overwrites their environment, unless SPT_NOENV is set.
    added = {MARK: mark, "SPT_NOENV": "1"}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        watcher.stdin.close()
        watcher.wait()


def end_processes(mark: str) -> None:
    """Kill all processes of this user with a mark, until none is left."""
    deadline_s = time.monotonic() + GIVE_UP_AFTER_S
    while (left := marked_processes(mark)) and time.monotonic() < deadline_s:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def marked_processes(mark: str) -> list[int]:
    """Return the process ids of this user's other processes that were started with a mark in their environment."""
    entry, found = f"{MARK}={mark}".encode(), []
    for folder in PROCESSES.iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def main() -> None:
    """Wait until the pipe on stdin closes, then end the processes with the mark that the command line names."""
    sys.stdin.buffer.read()
    end_processes(sys.argv[1])


if __name__ == "__main__":
    main()
