"""What benchmarks on recordings of the simulator share: a folder that the same command continues, and a time limit."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from adapter_report import Values
from environments import with_checkout

from dreamgen.run.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RECORDER = ROOT / "examples" / "metaworld" / "record.py"


class Deadline:
    """The time after which nothing new begins, and what was left out for it.

    Args:
        minutes: From now.
    """

    def __init__(self, minutes: float) -> None:
        self.start_s = time.time()
        self.until_s = self.start_s + 60 * minutes
        self.left_out: list[str] = []

    def passed_s(self) -> float:
        """Return the seconds since the start."""
        return time.time() - self.start_s

    def has_time(self, name: str) -> bool:
        """Whether a part may begin; one that may not is noted."""
        if time.time() < self.until_s:
            print(f"{self.passed_s():.0f} s: {name}", flush=True)
            return True
        self.left_out.append(f"{name}: no time left")
        return False


def record(args: argparse.Namespace, recordings: dict[str, tuple[str, ...]], num_workers: int) -> None:
    """Record datasets that are not there, some of them at the same time.

    Args:
        args: The command line.
        recordings: Of `all_recordings`.
        num_workers: Processes for each dataset.

    Raises:
        SystemExit: if the recorder failed.
    """
    missing = {name: words for name, words in recordings.items() if not (args.data / name).exists()}

    def run(name: str) -> int:
        start_s = time.monotonic()
        command = [sys.executable, str(RECORDER), "--out", str(args.data / name), "--workers", str(num_workers)]
        done = subprocess.run([*command, *missing[name]], env=with_checkout(ROOT), capture_output=True)
        print(f"recorded {name}: {time.monotonic() - start_s:.0f} s", flush=True)
        if done.returncode:
            sys.stderr.write(done.stderr.decode(errors="replace")[-2000:])
        return done.returncode

    (args.data / "train").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(min(4, args.record_workers)) as threads:
        failed = [name for name, status in zip(missing, threads.map(run, missing), strict=True) if status]
    if failed:
        raise SystemExit(f"the recorder failed: {', '.join(failed)}")


def check_options(args: argparse.Namespace, free: Sequence[str]) -> None:
    """Keep the options that measurements depend on, and refuse to continue with others.

    Args:
        args: The command line.
        free: Options that may change.

    Raises:
        SystemExit: if the folder was made with other options.
    """
    fixed = {key: value for key, value in vars(args).items() if key not in free}
    file = args.out / "options.json"
    if not file.is_file():
        write_text(file, json.dumps(fixed))
        return
    before = json.loads(file.read_text())
    if changed := [f"--{key}={before.get(key)}" for key, value in fixed.items() if before.get(key) != value]:
        raise SystemExit(f"{args.out} was made with {' '.join(changed)}; choose another --out, or these options")


def as_lists(measured: dict[str, np.ndarray]) -> Values:
    """Return metrics for JSON, which has no NaN."""
    return {key: [round(float(value), 4) if np.isfinite(value) else None for value in values_N]
            for key, values_N in measured.items()}  # fmt: skip
