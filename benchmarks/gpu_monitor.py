"""GPU memory and utilization over time, read from nvidia-smi beside the programs that are measured."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass

QUERY = "--query-gpu=index,memory.used,utilization.gpu"
PERIOD_MS = 200


@dataclass(frozen=True)
class Sample:
    """One reading of one GPU.

    Args:
        time_s: On the clock of `time.monotonic`.
        gpu: Index.
        memory_gib: Memory in use, by all processes.
        busy_percent: Share of the last sampling period in which a kernel ran, 0-100.
    """

    time_s: float
    gpu: int
    memory_gib: float
    busy_percent: float


@dataclass(frozen=True)
class GpuUsage:
    """What the GPUs did in a period; None where there is no GPU or no reading.

    Args:
        memory_gib: The most memory in use on any GPU.
        busy_percent: Mean utilization over all GPUs, 0-100.
    """

    memory_gib: float | None = None
    busy_percent: float | None = None


class GpuMonitor:
    """Reads the GPUs that CUDA shows in the background. Use as a context; without nvidia-smi there are no readings."""

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> GpuMonitor:
        if shutil.which("nvidia-smi"):
            self._process = subprocess.Popen(
                query_command(os.environ.get("CUDA_VISIBLE_DEVICES")),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def usage(self, start_s: float, end_s: float) -> GpuUsage:
        """Summarize a period.

        Args:
            start_s: On the clock of `time.monotonic`.
            end_s: Likewise.
        """
        samples = [sample for sample in self._samples.copy() if start_s <= sample.time_s <= end_s]
        if not samples:
            return GpuUsage()
        return GpuUsage(
            round(max(sample.memory_gib for sample in samples), 1),
            round(statistics.mean(sample.busy_percent for sample in samples), 1),
        )

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            sample = parse_sample(line, time.monotonic())
            if sample is not None:
                self._samples.append(sample)


def query_command(visible: str | None) -> list[str]:
    """Return the command line of nvidia-smi.

    Args:
        visible: CUDA_VISIBLE_DEVICES, whose GPUs alone are read; None for all.
    """
    command = ["nvidia-smi", QUERY, "--format=csv,noheader,nounits", f"--loop-ms={PERIOD_MS}"]
    return command if visible is None else [*command, f"--id={visible}"]


def parse_sample(line: str, time_s: float) -> Sample | None:
    """Read one line of nvidia-smi's CSV; None if a value is not available."""
    try:
        gpu, memory_mib, busy_percent = (float(value) for value in line.split(","))
    except ValueError:
        return None
    return Sample(time_s, int(gpu), memory_mib / 1024, busy_percent)
