"""The table of all stages and commands. Command line, pipeline, status, report and Python API derive from it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dreamgen.run.files import remove_stale_temporaries, remove_temporaries
from dreamgen.run.lease import hold_command
from dreamgen.run.run_folder import RunFolder
from dreamgen.run.write_errors import storage_errors_as_user_errors

# What a stage works on; it is skipped in a run that has none.
Need = Literal["actions", "clips", "datasets"]
# Where the report reads how far a stage is.
Progress = Literal["training set", "training log", "jobs", "journal", "model", "datasets"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run, or another command.

    Args:
        name: Name in output, report and journal; also the command, where `command` is not given.
        summary: What it does, in one line.
        function: `module:function`, imported when it runs. A stage's function takes the settings and, where it can make
            use of them, `resume` and `dry_run`.
        section: Settings that may be named without their section.
        more_sections: Other sections whose settings it takes.
        flags: Switches of the command besides `--json`.
        example: A command that can be copied; empty for a stage without a command of its own.
        paths: Names of the paths that one call of the function takes before its section's settings.
        paths_help: What they are.
        paths_optional: Whether the command runs without paths.
        expand_path: `module:function` that returns the paths that one given path stands for.
        words_are: Setting of its section that words without `--` are the values of.
        takes_run: Whether the run folder may be given without `--out`.
        settings: Of a command without a section: the only settings that it takes; all when empty.
        settle: `module:function` that takes the settings and returns those that it runs with and records, where they
            depend on its input.
        command: The command that runs it.
        in_run: Whether `dreamgen run` runs it.
        run_function: `module:function` that `dreamgen run` calls instead of `function`.
        output: What exists once it is done; None for a stage that finds out itself what is left to do.
        needs: What it works on.
        first: Stage that its command runs before it, where that one's output is missing.
        first_unless: `module:function` that takes the settings and returns whether it can do without `first`.
        progress: Where the report reads how far it is; None for a stage that the report does not list.
        counts_clips_of: Of a stage that works on clips: the stage whose clips it works on.
        may_be_remote: Whether it works on a run folder in an object store.
        keeps_output: Whether `--resume` leaves existing output alone instead of running it again.
        locks: Stages that no other process may run in the same run folder meanwhile; generate and export have locks of
            their own, generate's one for each share.
        sweeps: Folders of the run that only these stages write to: half-written files of killed processes are removed.
    """

    name: str
    summary: str
    function: str
    section: str | None = None
    more_sections: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    example: str = ""
    paths: tuple[str, ...] = ()
    paths_help: str = ""
    paths_optional: bool = False
    expand_path: str | None = None
    words_are: str | None = None
    takes_run: bool = False
    settings: tuple[str, ...] = ()
    settle: str | None = None
    command: str | None = None
    in_run: bool = False
    run_function: str | None = None
    output: Callable[[RunFolder], Path] | None = None
    needs: tuple[Need, ...] = ()
    first: str | None = None
    first_unless: str | None = None
    progress: Progress | None = None
    counts_clips_of: str | None = None
    may_be_remote: bool = False
    keeps_output: bool = True
    locks: tuple[str, ...] = ()
    sweeps: tuple[str, ...] = ()

    @property
    def takes_all_settings(self) -> bool:
        """Return whether the command takes every setting, and not only some of its own."""
        return not self.paths and not self.settings

    def is_done(self, run: RunFolder) -> bool:
        """Return whether the output of a stage that has one exists."""
        return self.output is not None and self.output(run).exists()

    def call(self, *arguments: Any, in_run: bool = False, **switches: bool) -> Any:
        """Import the function and call it.

        Args:
            arguments: Passed on.
            in_run: Call `run_function`, where there is one.
            switches: `resume`, `dry_run` and the like; only those that the function takes are passed on.
        """
        function = imported((self.run_function if in_run else None) or self.function)
        taken = inspect.signature(function).parameters
        switches = {switch: value for switch, value in switches.items() if switch in taken}
        with storage_errors_as_user_errors(self._written_to(arguments)):
            if not self.locks or switches.get("dry_run"):
                return function(*arguments, **switches)
            run = RunFolder.of(arguments[0], may_be_remote=self.may_be_remote)
            with hold_command(run.store or run.root, self.locks):
                for folder in (run.root, run.root / "made_from"):
                    remove_stale_temporaries(folder)
                for folder in self.sweeps:
                    remove_temporaries(run.root / folder)
                return function(*arguments, **switches)

    def _written_to(self, arguments: Sequence[Any]) -> str | Path:
        """Return the run folder, or the last of the paths; for a command without either, the working directory."""
        if self.paths:
            return next((path for path in reversed(arguments) if isinstance(path, Path)), Path())
        return arguments[0].out or Path()


def imported(reference: str) -> Callable[..., Any]:
    """Import the function that `module:function` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


_TABLE = (
    Stage(
        name="prepare", summary="demonstrations -> training set", function="dreamgen.prepare.stage:prepare",
        section="prepare", flags=("dry_run", "resume"), in_run=True,
        example="dreamgen prepare --demos path/to/lerobot_dataset --out runs/pick",
        output=lambda run: run.train, progress="training set", locks=("prepare",),
    ),
    Stage(
        name="import", summary="clips and labels that other programs made -> clips and labels of the run",
        function="dreamgen.prepare.import_clips:import_clips", section="import_clips", words_are="clips",
        flags=("dry_run",), settle="dreamgen.prepare.import_clips:settle_shape",
        example="dreamgen import path/to/clips --out runs/pick --labels=path/to/labels --generator=wan2.2-14b",
        locks=("plan", "label"), sweeps=("labels",),
    ),
    Stage(
        name="finetune", summary="training set -> LoRA or DoRA adapter", function="finetune:finetune",
        section="finetune", flags=("dry_run", "resume"), in_run=True,
        example="dreamgen finetune --out runs/pick --method dora --lora.rank=16",
        output=lambda run: run.adapter, progress="training log", locks=("finetune",),
    ),
    Stage(
        name="finetune_vae", summary="training set -> VAE, from scratch or from the model's own",
        function="finetune.vae.train:finetune_vae", section="finetune_vae", flags=("resume",),
        example="dreamgen finetune_vae --out runs/vae --config mini --max_minutes 10",
        output=lambda run: run.vae, locks=("finetune_vae",),
    ),
    Stage(
        name="plan", summary="first frames x instructions x seeds -> jobs, added to those already planned",
        function="dreamgen.plan.stage:plan", section="plan", flags=("dry_run", "resume"), in_run=True,
        example="dreamgen plan --out runs/pick --first_frames path/to/pairs --num_seeds 5",
        output=lambda run: run.jobs, progress="jobs", may_be_remote=True, keeps_output=False, locks=("plan",),
        sweeps=("first_frames",),
    ),
    Stage(
        name="generate", summary="jobs -> clips, with Ray; generates only what is missing",
        function="dreamgen.generate.stage:generate", section="generate", flags=("dry_run", "resume"), in_run=True,
        example="dreamgen generate --out runs/pick --limit 4", progress="journal", may_be_remote=True,
    ),
    Stage(
        name="status", summary="progress of generate from any shell: done, rate, time left, failures",
        function="dreamgen.status:status", example="dreamgen status runs/pick --json",
        takes_run=True, may_be_remote=True,
    ),
    Stage(
        name="finetune_idm", summary="training set -> inverse-dynamics model, which label uses",
        function="finetune.inverse_dynamics:finetune_idm", section="idm", flags=("resume",), in_run=True,
        example="dreamgen finetune_idm --out runs/pick --extra_demos='[runs/play]'",
        output=lambda run: run.idm, needs=("actions",), progress="model", locks=("idm",),
    ),
    Stage(
        name="label", summary="clips -> actions, by the run's inverse-dynamics model; trains it if there is none",
        function="dreamgen.label.stage:label", section="idm", flags=("resume",), in_run=True,
        run_function="dreamgen.pipeline:label_and_curate",
        more_sections=("label",), first_unless="dreamgen.label.external:needs_no_model",
        example="dreamgen label --out runs/pick", needs=("actions", "clips"), first="finetune_idm",
        progress="journal", counts_clips_of="generate", locks=("label", "curate"),
        sweeps=("labels",),
    ),
    Stage(
        name="curate", summary="clips -> scores and verdicts", function="dreamgen.curate.stage:curate",
        section="curate", flags=("resume", "calibrate"), in_run=True,
        example="dreamgen curate --out runs/pick --min_motion=1.0",
        needs=("clips",), progress="journal", counts_clips_of="label", locks=("curate",),
        sweeps=("scores",),
    ),
    Stage(
        name="reject", summary="remove clips from the datasets for good, whatever their scores; --undo takes it back",
        function="dreamgen.curate.reject:reject", section="reject", words_are="clips",
        example="dreamgen reject 3f2a91c0 --out runs/pick --reason='hand in the picture'",
    ),
    Stage(
        name="export", summary="accepted clips -> LeRobot and HDF5 datasets", function="export:export_datasets",
        section="export", flags=("resume", "overwrite"), in_run=True,
        example="dreamgen export --out runs/pick --formats='[lerobot-v3.0]'", needs=("actions", "clips"),
        progress="datasets",
    ),
    Stage(
        name="check", summary="validate LeRobot, robomimic and ACT datasets, written by DreamGen or not",
        function="export.check:check_stage", section="check", flags=("fix",), in_run=True,
        run_function="dreamgen.pipeline:check_datasets", example="dreamgen check runs/pick/datasets/lerobot-v3.0",
        paths=("PATH",), paths_help="one or more datasets, or run folders, whose datasets are checked",
        expand_path="export.check.run_datasets:datasets_of", needs=("actions", "datasets"),
    ),
    Stage(
        name="convert", summary="LeRobot v2.0 or v2.1 -> v3.0, or v3.0 -> v2.1; video streams are copied",
        function="export.convert:convert_dataset", section="convert",
        example="dreamgen convert path/to/lerobot_v21 path/to/lerobot_v30",
        paths=("SRC", "DST"), paths_help="a LeRobot dataset, and a folder that does not exist yet",
    ),
    Stage(
        name="run", summary="all stages in order", function="dreamgen.pipeline:run_all",
        flags=("dry_run", "resume", "overwrite"),
        example="dreamgen run --config_path configs/mini.yaml --demos path/to/lerobot_dataset --out runs/pick",
    ),
    Stage(
        name="report", summary="write report.html: the run on one page", function="dreamgen.report:report",
        section="report", flags=("resume",), in_run=True, example="dreamgen report runs/pick", takes_run=True,
    ),
    Stage(
        name="view", summary="open a clip, a run's clips or an episode of a LeRobot dataset in Rerun",
        function="dreamgen.view.stage:view", section="view", example="dreamgen view runs/pick --clips='[3f2a91c0]'",
        paths=("PATH",), paths_help="a video, a run folder, or a LeRobot dataset",
    ),
    Stage(
        name="doctor", summary="print versions, GPU, codecs, disk and login as one block for a bug report",
        function="dreamgen.doctor:doctor", example="dreamgen doctor",
        paths=("OUT",), paths_help="a run folder whose disk is checked; optional", paths_optional=True,
    ),
    Stage(
        name="demo", summary="all stages on a CPU, on shipped demonstrations of a simulated arm that opens a drawer",
        function="dreamgen.demo.run:run_demo", example="dreamgen demo --out runs/demo",
        settings=("out",),
    ),
)  # fmt: skip

STAGES = {stage.name: stage for stage in _TABLE}
PIPELINE = {name: stage for name, stage in STAGES.items() if stage.in_run}  # in the order of `dreamgen run`
COMMANDS = {name: stage for name, stage in STAGES.items() if stage.command is None}
CLIP_STAGES = tuple(name for name, stage in STAGES.items() if stage.progress == "journal")
