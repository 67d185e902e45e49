"""Each stage as its command calls it, and the demo: refuse or keep what is done, run, record the settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamgen.config.loading import find_preset, read_yaml, settings_from_dict
from dreamgen.config.settings import Settings
from dreamgen.pipeline import STAGES, run_all
from dreamgen.progress import log
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder


def prepare_stage(settings: Settings, resume: bool = False, dry_run: bool = False) -> StageResult:
    """`dreamgen prepare`."""
    if dry_run:
        from dreamgen.prepare.stage import inspect

        return inspect(settings)
    return _single("prepare", settings, resume)


def finetune_stage(settings: Settings, resume: bool = False, dry_run: bool = False) -> StageResult:
    """`dreamgen finetune`."""
    if dry_run:
        from finetune import finetune

        return finetune(settings, dry_run=True)
    return _single("finetune", settings, resume)


def plan_stage(settings: Settings, resume: bool = False, dry_run: bool = False) -> StageResult:
    """`dreamgen plan`: adds to the jobs that are there."""
    if dry_run:
        from dreamgen.plan.stage import plan

        return plan(settings, dry_run=True)
    return _single("plan", settings, resume=False)


def generate_stage(settings: Settings, resume: bool = False, dry_run: bool = False) -> StageResult:
    """`dreamgen generate`: always goes on where it stopped."""
    if dry_run:
        from dreamgen.generate.stage import generate

        return generate(settings, dry_run=True)
    return _single("generate", settings, resume)


def status_stage(settings: Settings) -> StageResult:
    """`dreamgen status`: reads, and records nothing."""
    from dreamgen.status import status

    return status(settings)


def label_stage(settings: Settings, resume: bool = False) -> list[StageResult]:
    """`dreamgen label`: trains the inverse-dynamics model first where the run has none."""
    run = RunFolder.of(settings)
    if not run.idm.exists():
        return [_single("inverse dynamics", settings, resume), _single("label", settings, resume)]
    run.check_unchanged(settings, ["idm"], but=("idm.predict_state",))
    return [_single("label", settings, resume)]


def curate_stage(settings: Settings, resume: bool = False) -> StageResult:
    """`dreamgen curate`: judges again, so that new thresholds count."""
    return _single("curate", settings, resume)


def export_stage(settings: Settings, resume: bool = False) -> StageResult:
    """`dreamgen export`."""
    return _single("export", settings, resume)


def report_stage(settings: Settings, resume: bool = False) -> StageResult:
    """`dreamgen report`."""
    return _single("report", settings, resume)


def check_stage(path: Path, settings: Settings, fix: bool = False) -> StageResult:
    """`dreamgen check PATH`."""
    from export.check import check_stage as check

    return check(path, settings.check, fix)


def convert_stage(source: Path, target: Path, settings: Settings) -> StageResult:
    """`dreamgen convert SRC DST`."""
    from export.convert import convert_dataset

    return convert_dataset(source, target, settings.convert)


def doctor_stage(out: Path | None = None) -> StageResult:
    """`dreamgen doctor [OUT]`."""
    from dreamgen.doctor import doctor

    return doctor(out)


def _single(name: str, settings: Settings, resume: bool) -> StageResult:
    run, stage = RunFolder.of(settings, may_be_remote=name in ("plan", "generate")), STAGES[name]
    # A stage may be run again with other settings of its own; what earlier stages were made with must stay.
    run.check_unchanged(settings, [])
    output = stage.output(run) if stage.output else None
    if resume and output is not None and output.exists():
        return StageResult(name, {name: output}, {}, ["done before, kept"])
    result = stage.call(settings, resume)
    run.record(settings, [stage.section])
    return result


def run_demo(settings: Settings) -> list[StageResult]:
    """Run the whole job with the mini model on demonstrations made here, then say where things lie and what to try."""
    from dreamgen.demo.dataset import demo_instructions, write_demo_dataset

    out = Path(settings.out or "runs/demo")
    demos = out / "demos"
    if not demos.exists():
        log(f"making demonstrations: a drawn robot arm picks and places blocks -> {demos}")
        write_demo_dataset(demos)
    preset = read_yaml(find_preset("mini"))
    settings = settings_from_dict({**preset, "out": str(out), "demos": str(demos)})
    settings = replace(settings, plan=replace(settings.plan, instructions=demo_instructions(2, seed=0)))
    results = run_all(settings, resume=True)
    return [*results, StageResult("demo", _where(RunFolder(out)), {}, _next_commands(out))]


def _where(run: RunFolder) -> dict[str, Any]:
    places = {
        "report": run.report,
        "datasets": run.datasets,
        "clips": run.clips,
        "adapter": run.adapter,
        "training set": run.train,
        "settings": run.settings_file,
    }
    return {name: path for name, path in places.items() if path.exists()}


def _next_commands(out: Path) -> list[str]:
    return [
        "try next, after `source .venv/bin/activate`:",
        "dreamgen run --config_path configs/mini.yaml --demos YOUR_DATASET --out runs/mine",
        f"dreamgen plan --out {out} --num_seeds 2 && dreamgen generate --out {out}",
        f"dreamgen check {out / 'datasets' / 'lerobot-v3.0'}",
    ]
