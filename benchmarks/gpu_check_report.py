"""What a GPU check has found so far, its exit status, and the report as JSON and Markdown."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from measured_commands import OK, STOPPED, TIME_LIMIT, MeasuredCommands, Row
from metrics import markdown_table

from dreamgen.run.run_folder import RunFolder


@dataclass(frozen=True)
class Estimate:
    """An estimate of `--dry_run` and the measured value."""

    estimated: float | None
    measured: float | None


@dataclass(frozen=True)
class ResumeCheck:
    """How many results of a resumed stage equal those of the undisturbed run."""

    num_compared: int
    num_equal: int


@dataclass
class Check:
    """What the steps share.

    Args:
        args: The command line.
        num_gpus: GPUs of this machine.
        commands: Runs the commands.
        estimates: By what is estimated.
        resumed: By what is compared.
    """

    args: argparse.Namespace
    num_gpus: int
    commands: MeasuredCommands
    estimates: dict[str, Estimate] = field(default_factory=dict)
    resumed: dict[str, ResumeCheck] = field(default_factory=dict)

    work = property(lambda self: Path(self.args.work))
    model = property(lambda self: self.work / "model")
    demos = property(lambda self: self.work / "demos" / "datasets" / "lerobot-v3.0")
    pairs = property(lambda self: self.work / "first_frames")
    first = property(lambda self: RunFolder(self.work / "run"))
    dora = property(lambda self: RunFolder(self.work / "dora"))
    second = property(lambda self: RunFolder(self.work / "resumed"))

    @property
    def num_workers(self) -> int:
        """Workers of generate: one a GPU, one without a GPU."""
        return max(1, self.num_gpus)


def read_finished(check: Check, report: dict[str, Any]) -> None:
    """Take over what an earlier call with the same work folder has finished."""
    for values in report["rows"]:
        if values["status"] == OK:
            check.commands.rows[values["stage"]] = Row(**values)
    check.estimates |= {what: Estimate(**values) for what, values in report["estimates"].items()}
    check.resumed |= {what: ResumeCheck(**values) for what, values in report["resumed"].items()}


def is_out_of_time(check: Check) -> bool:
    """Say whether a stage was left out or stopped for lack of time."""
    return any(row.status in (TIME_LIMIT, STOPPED) for row in check.commands.rows.values())


def exit_status(check: Check) -> int:
    """Return 0 if all went well, 1 if something went wrong, 3 if only time was missing."""
    statuses = {row.status for row in check.commands.rows.values()} - {OK}
    if statuses - {TIME_LIMIT, STOPPED} or any(item.num_equal < item.num_compared for item in check.resumed.values()):
        return 1
    return 3 if statuses else 0


def report_of(check: Check, stages: Sequence[str], elapsed_s: float) -> dict[str, Any]:
    """Return everything that is known so far, as JSON holds it, with the rows in the order of `stages`."""
    args, rows = check.args, check.commands.rows
    return {
        "machine": machine(), "preset": args.preset, "size": [args.num_frames, args.height, args.width],
        "num_inference_steps": args.num_inference_steps, "compiled": not args.no_compile,
        "elapsed_s": round(elapsed_s, 1),
        "rows": [asdict(rows[stage]) for stage in stages if stage in rows],
        "estimates": {what: asdict(item) for what, item in check.estimates.items()},
        "resumed": {what: asdict(item) for what, item in check.resumed.items()},
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """Describe the machine and the libraries."""
    gpus: list[str] = []
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        gpus = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    names = ("torch", "diffusers", "transformers", "ray", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"gpus": gpus, "cpu_count": os.cpu_count(), "platform": platform.platform(), **versions}


def tables(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    gpus = report["machine"]["gpus"]
    size = "x".join(map(str, report["size"]))
    title = (
        f"{len(gpus) or 'no'} GPU{'' if len(gpus) == 1 else 's'}{': ' + gpus[0] if gpus else ''}; {report['preset']}, "
        f"{size}, {report['num_inference_steps']} denoising steps, "
        f"{'' if report['compiled'] else 'not '}compiled; {report['elapsed_s']} s in all"
    )
    rows = [
        (row["stage"], row["status"], row["seconds"], row["memory_gib"], row["busy_percent"],
         ", ".join(f"{level} {rate}" for level, rate in (row["clips_an_hour"] or {}).items()))
        for row in report["rows"]
    ]  # fmt: skip
    columns = ("stage", "status", "seconds", "GPU memory GiB", "GPU busy %", "clips an hour")
    estimates = [(what, *(shown(value) for value in item.values())) for what, item in report["estimates"].items()]
    resumed = [(what, *item.values()) for what, item in report["resumed"].items()]
    return "\n\n".join(
        [
            title,
            markdown_table(columns, rows),
            markdown_table(("--dry_run", "estimated", "measured"), estimates),
            markdown_table(("resumed", "compared with the undisturbed run", "equal"), resumed),
        ]
    )


def shown(value: float | None) -> str | None:
    """Return a number with three digits."""
    return None if value is None else f"{value:.3g}"
