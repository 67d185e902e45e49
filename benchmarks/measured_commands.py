"""Run commands one after another, each with a log, a row of measurements, and a share of one time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from gpu_monitor import GpuMonitor

OK, TIME_LIMIT, STOPPED = "ok", "not run: time limit", "time limit"
LEAST_S = 10.0  # a command that has less time left is not started
CLEAN_UP_S = 10.0  # the longest that a child of a killed command may live on
NUM_LINES_SHOWN = 40


@dataclass(frozen=True)
class Row:
    """What one stage did.

    Args:
        stage: Name.
        status: "ok", or what went wrong.
        seconds: Wall-clock time.
        memory_gib: The most memory in use on any GPU.
        busy_percent: Mean utilization of all GPUs, 0-100.
        clips_an_hour: Of all GPUs together, by level.
    """

    stage: str
    status: str
    seconds: float | None = None
    memory_gib: float | None = None
    busy_percent: float | None = None
    clips_an_hour: dict[str, float] | None = None


@dataclass(frozen=True)
class Line:
    """A line of a command's output and when it came, on the clock of `time.monotonic`."""

    time_s: float
    text: str


class Command:
    """A running command; its output goes to a log, and its lines are kept with their times.

    Args:
        name: Of the stage; names the log.
        words: The command line.
        log: File for both of its streams.
    """

    def __init__(self, name: str, words: Sequence[str], log: Path) -> None:
        self.name, self.log = name, log
        self.lines: list[Line] = []
        self.start_s = self.end_s = time.monotonic()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env=environment, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self, deadline_s: float, kill_when: Callable[[], bool] | None = None) -> str:
        """Wait for the end, or for the moment to kill it.

        Args:
            deadline_s: When it is killed at the latest, on the clock of `time.monotonic`.
            kill_when: Once it returns True the process gets SIGKILL.

        Returns:
            "exit N", "killed", "processes left behind" (children outlived a killed process) or "time limit".
        """
        while self.process.poll() is None:
            if kill_when is not None and kill_when():
                return self._end("killed" if self.kill() else "processes left behind")
            if time.monotonic() > deadline_s:
                self.kill()
                return self._end(STOPPED)
            time.sleep(0.05 if kill_when is None else 0.001)
        return self._end(f"exit {self.process.returncode}")

    def kill(self) -> bool:
        """Send SIGKILL to the process alone, as the kernel does when memory is short, and wait for its children.

        Returns:
            Whether the children ended by themselves; those that did not are killed.
        """
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        deadline_s = time.monotonic() + CLEAN_UP_S
        while (alive := [child for child in children if is_at_work(child)]) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        for child in alive:
            with suppress(psutil.NoSuchProcess):
                words = " ".join(child.cmdline())[:120]
                print(f"left behind after {CLEAN_UP_S:.0f} s: {child.status()} {words}", file=sys.stderr)
                child.kill()
        return not alive

    def last_lines(self) -> str:
        """Return the end of the log."""
        return "\n".join(line.text for line in self.lines[-NUM_LINES_SHOWN:])

    def _end(self, outcome: str) -> str:
        self.end_s = time.monotonic()
        self._reader.join(CLEAN_UP_S)
        return outcome

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.log.open("w", encoding="utf-8") as log:
            for text in self.process.stdout:
                now_s = time.monotonic()
                self.lines.append(Line(now_s, text.rstrip("\n")))
                log.write(f"{now_s - self.start_s:8.2f} {text}")
                log.flush()


def is_at_work(process: psutil.Process) -> bool:
    """Tell whether a process still runs; one that ended and that nobody waited for (a zombie) does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def deferred(number: signal.Signals) -> Iterator[None]:
    """Handle a signal that comes within the block after it."""
    received: list[int] = []
    handler = signal.signal(number, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(number, handler)
        if received:
            signal.raise_signal(number)


class MeasuredCommands:
    """Runs commands within one time limit and keeps a row for each; every row is in the report at once.

    Args:
        logs: Folder of the logs.
        monitor: Of the GPUs.
        limit_s: For all commands together.
        on_row: Called after each row.
    """

    def __init__(self, logs: Path, monitor: GpuMonitor, limit_s: float, on_row: Callable[[], None]) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, Row] = {}
        self._logs, self._monitor, self._on_row = logs, monitor, on_row
        self._deadline_s = time.monotonic() + limit_s
        self._running: list[Command] = []

    def is_ok(self, *stages: str) -> bool:
        """Say whether all of these stages ended well."""
        return all(stage in self.rows and self.rows[stage].status == OK for stage in stages)

    def start(self, stage: str, words: Sequence[str]) -> Command | None:
        """Start a command; None, with a row that says so, if too little time is left."""
        if self._deadline_s - time.monotonic() < LEAST_S:
            self.add(Row(stage, TIME_LIMIT))
            return None
        with deferred(signal.SIGTERM):  # a process that starts while its handler raises would be left behind
            print(f"{stage} ...", file=sys.stderr, flush=True)
            command = Command(stage, words, self._logs / f"{stage.replace(' ', '_')}.log")
            self._running.append(command)
        return command

    def finish(
        self, command: Command | None, expected: str = "exit 0", kill_when: Callable[[], bool] | None = None
    ) -> bool:
        """Wait for a command and add its row; print the end of its log if it did not end as expected.

        Returns:
            Whether it did.
        """
        if command is None:
            return False
        outcome = command.wait(self._deadline_s, kill_when)
        self._running.remove(command)
        status = OK if outcome == expected else outcome
        self.add_period(command.name, command.start_s, command.end_s, status)
        if status != OK:
            print(f"{command.name}: {status}; the end of {command.log}:\n{command.last_lines()}", file=sys.stderr)
        return status == OK

    def run(self, stage: str, words: Sequence[str]) -> Command | None:
        """Start a command and wait for it; None if it did not end well."""
        command = self.start(stage, words)
        return command if self.finish(command) else None

    def stop_all(self) -> None:
        """Kill the running commands and add their rows, as if the time limit had come."""
        for command in self._running:
            command.kill()
            self.add_period(command.name, command.start_s, time.monotonic(), STOPPED)
        self._running.clear()

    def add_period(self, stage: str, start_s: float, end_s: float, status: str = OK) -> None:
        """Add a row for a period, with what the GPUs did in it."""
        usage = self._monitor.usage(start_s, end_s)
        self.add(Row(stage, status, round(end_s - start_s, 2), usage.memory_gib, usage.busy_percent))

    def add(self, row: Row) -> None:
        """Add a row or replace the one of the same stage."""
        self.rows[row.stage] = row
        self._on_row()


def json_result(command: Command) -> dict[str, Any]:
    """Return the first result of a command that ran with `--json`, from the first line that opens the list."""
    texts = [line.text for line in command.lines]
    results, _ = json.JSONDecoder().raw_decode("\n".join(texts[texts.index("[") :]))
    return results[0]
