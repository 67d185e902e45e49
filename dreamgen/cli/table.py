"""Every command: what it does, the function that does it, and the switches it takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """One word of the command line.

    Args:
        summary: What it does, in a line.
        function: `module:name`, imported when the command runs.
        section: The settings that may be named without their section.
        flags: Switches it takes beside `--json`.
        example: A command that can be copied.
    """

    summary: str
    function: str
    section: str | None
    flags: tuple[str, ...]
    example: str

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)


COMMANDS = {
    "prepare": Command(
        "demonstrations -> training set",
        "dreamgen.cli.commands:prepare_stage", "prepare", ("dry_run", "resume"),
        "dreamgen prepare --demos path/to/lerobot_dataset --out runs/pick",
    ),
    "finetune": Command(
        "training set -> LoRA or DoRA adapter",
        "dreamgen.cli.commands:finetune_stage", "finetune", ("dry_run", "resume"),
        "dreamgen finetune --out runs/pick --method dora --lora.rank=16",
    ),
    "plan": Command(
        "first frames x instructions x seeds -> jobs",
        "dreamgen.cli.commands:plan_stage", "plan", ("dry_run", "resume"),
        "dreamgen plan --out runs/pick --first_frames path/to/pairs --num_seeds 5",
    ),
    "generate": Command(
        "jobs -> clips on Ray; does what is not done yet",
        "dreamgen.cli.commands:generate_stage", "generate",
        ("dry_run", "resume"), "dreamgen generate --out runs/pick --limit 4",
    ),
    "status": Command(
        "a job from another shell: done, rate, time left, failures",
        "dreamgen.cli.commands:status_stage", None, (),
        "dreamgen status --out runs/pick --json",
    ),
    "label": Command(
        "clips -> actions, by inverse dynamics trained on the demonstrations",
        "dreamgen.cli.commands:label_stage", "idm",
        ("resume",), "dreamgen label --out runs/pick",
    ),
    "curate": Command(
        "clips -> verdicts",
        "dreamgen.cli.commands:curate_stage", "curate", ("resume",),
        "dreamgen curate --out runs/pick --min_motion=1.0",
    ),
    "export": Command(
        "accepted clips -> LeRobot and HDF5 datasets",
        "dreamgen.cli.commands:export_stage", "export", ("resume",),
        "dreamgen export --out runs/pick --formats='[lerobot-v3.0]'",
    ),
    "check": Command(
        "verify a LeRobot, robomimic or ACT dataset, ours or not",
        "dreamgen.cli.commands:check_stage", "check", ("fix",),
        "dreamgen check runs/pick/datasets/lerobot-v3.0",
    ),
    "convert": Command(
        "LeRobot v2.0 or v2.1 -> v3.0, or v3.0 -> v2.1; streams are copied", "dreamgen.cli.commands:convert_stage",
        "convert", (), "dreamgen convert path/to/lerobot_v21 path/to/lerobot_v30",
    ),
    "run": Command(
        "all stages in order", "dreamgen.pipeline:run_all", None, ("dry_run", "resume"),
        "dreamgen run --config_path configs/mini.yaml --demos path/to/lerobot_dataset --out runs/pick",
    ),
    "report": Command(
        "the run on one page, report.html",
        "dreamgen.cli.commands:report_stage", "report", ("resume",),
        "dreamgen report --out runs/pick",
    ),
    "doctor": Command(
        "versions, GPU, codecs, disk, login: one block for a bug report",
        "dreamgen.cli.commands:doctor_stage", None, (),
        "dreamgen doctor",
    ),
    "demo": Command(
        "the whole job on demonstrations that it makes itself, on a CPU",
        "dreamgen.cli.commands:run_demo", None, (),
        "dreamgen demo --out runs/demo",
    ),
}  # fmt: skip

FLAG_HELP = {
    "dry_run": "write nothing: counts, sample prompts, estimates",
    "resume": "go on in an existing run folder; what is done is kept",
    "fix": "repair what is safe (totals, splits, statistics, index columns); originals are kept beside",
    "json": "print the result as JSON",
}
