"""The steps of a GPU check: each runs commands of the product on the folders that the check works in."""

from __future__ import annotations

import csv
import itertools
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from gpu_check_report import Check, Estimate, ResumeCheck
from measured_commands import OK, json_result
from synthetic_run import INSTRUCTIONS, drawn_frames, make_run

from dreamgen.config.loading import configs_folder
from dreamgen.config.settings import ExportSettings, Settings
from dreamgen.data.images import write_png
from dreamgen.extensions.score import SCORES
from dreamgen.run.files import sha256_of_file
from dreamgen.run.jobs import read_jobs
from dreamgen.run.journal import read_journal
from dreamgen.run.records import METRICS_KEY, Job
from dreamgen.run.run_folder import RunFolder

HERE = Path(__file__).parent
NUM_DEMOS = 3
KILL_TRIES = 3  # a fast stage may end before it is killed; then its results are removed and it starts again
RUN_STAGES = ("prepare", "finetune", "plan", "generate", "finetune_idm", "label", "curate", "export", "check",
              "report")  # fmt: skip


def make_inputs(check: Check) -> None:
    """Save the pipeline with random weights in a process of its own, which frees the GPU, and draw videos meanwhile."""
    shutil.rmtree(check.model, ignore_errors=True)
    words = [str(HERE / "random_pipeline.py"), "--model", model_of(check.args.preset), "--out", str(check.model)]
    building = check.commands.start("build model", words)
    draw_demonstrations(check)
    check.commands.finish(building)


def draw_demonstrations(check: Check) -> None:
    """Write a LeRobot dataset with actions, and first frames with instructions that the dataset does not show."""
    from export import export_datasets

    start_s, args = time.monotonic(), check.args
    for path in (check.work / "demos", check.pairs):
        shutil.rmtree(path, ignore_errors=True)
    video = (args.height, args.width, args.num_frames)
    folder = check.work / "demos"
    make_run(folder, NUM_DEMOS, *video, dims=7, distinct=NUM_DEMOS)
    settings = replace(Settings(out=str(folder)), export=ExportSettings(formats=["lerobot-v3.0"]))
    export_datasets(settings)
    check.pairs.mkdir()
    for number in range(args.clips_per_gpu * check.num_workers):
        frame_HWC = next(drawn_frames(NUM_DEMOS + number, 1, args.height, args.width))
        write_png(check.pairs / f"{number}.png", frame_HWC)
        (check.pairs / f"{number}.txt").write_text(INSTRUCTIONS[-1 - number % len(INSTRUCTIONS)])
    check.commands.add_period("draw demonstrations", start_s, time.monotonic())


def run_all_stages(check: Check) -> None:
    """Run every stage in one command; the rows of its stages come from the times of its log lines."""
    shutil.rmtree(check.first.root, ignore_errors=True)
    words = ["-m", "dreamgen", "run", *settings_of(check), "--demos", str(check.demos), "--out", str(check.first.root)]
    command = check.commands.start("run", words)
    check.commands.finish(command)
    if command is None:
        return
    announced = [line for line in command.lines if line.text.startswith("[")]  # "[7/10] curate", perhaps ": why not"
    starts = [(line.text.partition("] ")[2].partition(":")[0], line.time_s) for line in announced]
    starts = [(name, time_s) for name, time_s in starts if name in RUN_STAGES]
    ends = [time_s for _, time_s in starts[1:]] + [command.end_s]
    for (name, start_s), end_s in zip(starts, ends, strict=True):
        is_last = name == starts[-1][0]
        status = check.commands.rows["run"].status if is_last else OK
        check.commands.add_period(f"run: {name}", start_s, end_s, status)
    if "run: generate" in check.commands.rows:
        add_clip_rates(check, "run: generate", check.first)


def train_second_adapter(check: Check) -> None:
    """Train DoRA on all GPUs; beside it, what needs no GPU: the copy of the run and its plan at level turbo."""
    for run in (check.dora, check.second):
        shutil.rmtree(run.root, ignore_errors=True)
    shutil.copytree(check.first.train, check.dora.train)
    words = ["-m", "finetune.launch", *settings_of(check), "--finetune.method=dora",
             f"--finetune.cache_dir={check.first.cache}", "--out", str(check.dora.root)]  # fmt: skip
    training = check.commands.start("finetune.launch dora", words)
    copy_run(check)
    dreamgen = ["-m", "dreamgen"]
    estimate = check.commands.run("generate --dry_run", [*dreamgen, "generate", "--out", str(check.second.root),
                                                         "--dry_run", "--json"])  # fmt: skip
    if estimate is not None:
        metrics = json_result(estimate)[METRICS_KEY]
        hours = metrics.get("cuda_hours", metrics.get("cpu_hours"))
        check.estimates["generate: GPU hours of the first run"] = Estimate(hours, None)
    check.commands.run("plan turbo", [*dreamgen, "plan", "--out", str(check.second.root), "--level=turbo"])
    check.commands.finish(training)


def plan_second_adapter(check: Check) -> None:
    """Add jobs for the DoRA adapter to those of the first one: one a worker."""
    words = ["-m", "dreamgen", "plan", "--out", str(check.second.root), "--level=turbo",
             f"--adapter={check.dora.adapter}", f"--num_first_frames={check.num_workers}"]  # fmt: skip
    check.commands.run("plan second adapter", words)


def generate_with_a_kill(check: Check) -> None:
    """Kill the driver once its first clip is there, resume, and compare with the undisturbed run's clips."""
    run, start_s = check.second, time.time()
    is_ok = kill_and_resume(
        check, "generate", lambda: any(run.clips.glob("*/*.mp4")), lambda: shutil.rmtree(run.clips, ignore_errors=True)
    )
    if not is_ok:
        return
    add_clip_rates(check, "generate resumed", run, start_s)
    jobs = read_jobs(check.first.jobs)
    pairs = [(check.first.clip_file(job.clip_id), run.clip_file(job.clip_id)) for job in jobs]
    check.resumed["clips"] = compare_files(pairs)
    records = read_journal(run.journal, "generate")
    seconds = [records[job.clip_id].metrics["dream_s"] for job in jobs]
    what = "generate: GPU hours of the first run"
    estimated = check.estimates[what].estimated if what in check.estimates else None
    check.estimates[what] = Estimate(estimated, sum(seconds) / 3600)


def label_with_a_kill(check: Check) -> None:
    """Kill label once its first file is there, resume, and compare."""
    run = check.second
    is_ok = kill_and_resume(
        check, "label", lambda: any(run.labels.glob("*/*.parquet")),
        lambda: shutil.rmtree(run.labels, ignore_errors=True),
    )  # fmt: skip
    if is_ok:
        jobs = read_jobs(check.first.jobs)
        pairs = [(check.first.label_file(job.clip_id), run.label_file(job.clip_id)) for job in jobs]
        check.resumed["labels"] = compare_files(pairs)


def curate_with_a_kill(check: Check) -> None:
    """Kill curate once its first record is there, resume, and compare."""
    run = check.second

    def is_begun() -> bool:
        return any(path.stat().st_size for path in run.journal.glob("curate-*.jsonl"))

    def undo() -> None:
        for path in run.journal.glob("curate-*"):
            path.unlink()

    if kill_and_resume(check, "curate", is_begun, undo):
        expected, actual = (scores_of(folder) for folder in (check.first, run))
        num_equal = sum(actual.get(clip_id) == row for clip_id, row in expected.items())
        check.resumed["scores"] = ResumeCheck(len(expected), num_equal)


def estimate_trainings(check: Check) -> None:
    """Compare the estimates of trainings that have not begun with what both trainings measured."""
    runs, commands = {"lora": check.first, "dora": check.dora}, {}
    for method in runs:
        folder = check.work / f"estimate_{method}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(check.first.train, folder / "train")
        words = ["-m", "dreamgen", "finetune", *settings_of(check), f"--finetune.method={method}", "--out", str(folder),
                 "--dry_run", "--json"]  # fmt: skip
        commands[method] = check.commands.start(f"finetune --dry_run {method}", words)
    for method, command in commands.items():
        if check.commands.finish(command):
            compare_training(check, method, json_result(command)[METRICS_KEY], loss_rows(runs[method]))


def compare_training(check: Check, method: str, estimated: dict[str, Any], rows: list[dict[str, str]]) -> None:
    """Add the estimates of a training with what it took.

    Args:
        check: For the estimates.
        method: lora or dora.
        estimated: Metrics of `finetune --dry_run`.
        rows: Of its loss.csv; the first step includes what is done once.
    """
    steps_s = [check.num_workers / float(row["samples_per_s"]) for row in rows[1:]]
    hours = estimated.get("hours")
    check.estimates[f"finetune {method}: seconds a step"] = Estimate(
        None if hours is None else 3600 * hours / check.args.num_steps,
        statistics.median(steps_s) if steps_s else None,
    )
    memory_gib = max((float(row["memory_gib"]) for row in rows), default=None) if check.num_gpus else None
    check.estimates[f"finetune {method}: memory GiB"] = Estimate(estimated.get("memory_gib"), memory_gib)


# What is done in order, the stages that each step needs, and the stages whose rows it adds.
STEPS: tuple[tuple[Callable[[Check], None], tuple[str, ...], tuple[str, ...]], ...] = (
    (make_inputs, (), ("build model", "draw demonstrations")),
    (run_all_stages, ("build model", "draw demonstrations"), ("run", *(f"run: {name}" for name in RUN_STAGES))),
    (train_second_adapter, ("run",), ("finetune.launch dora", "generate --dry_run", "plan turbo")),
    (plan_second_adapter, ("plan turbo", "finetune.launch dora"), ("plan second adapter",)),
    (generate_with_a_kill, ("plan turbo",), ("generate killed", "generate resumed")),
    (label_with_a_kill, ("generate resumed",), ("label killed", "label resumed")),
    (curate_with_a_kill, ("generate resumed",), ("curate killed", "curate resumed")),
    (estimate_trainings, ("run", "finetune.launch dora"), ("finetune --dry_run lora", "finetune --dry_run dora")),
)
STAGES = tuple(stage for _, _, gives in STEPS for stage in gives)


def kill_and_resume(check: Check, stage: str, is_begun: Callable[[], bool], undo: Callable[[], None]) -> bool:
    """Kill a stage of the second run in the middle and run the same command again.

    Args:
        check: For the commands.
        stage: Command of dreamgen.
        is_begun: Whether its first result is there.
        undo: Removes its results, should it have ended before it was killed.

    Returns:
        Whether the stage was killed and the second command ended well.
    """
    words = ["-m", "dreamgen", stage, "--out", str(check.second.root)]
    for _ in range(KILL_TRIES):
        undo()
        if check.commands.finish(check.commands.start(f"{stage} killed", words), "killed", is_begun):
            break
        if check.commands.rows[f"{stage} killed"].status != "exit 0":
            return False
    else:
        return False
    return check.commands.run(f"{stage} resumed", words) is not None


def copy_run(check: Check) -> None:
    """Copy the first run without clips and what follows from them; its records stay, for the estimate."""
    left_out = ("clips", "labels", "scores", "datasets", "report.html", "cache", "label-*", "curate-*")
    shutil.copytree(check.first.root, check.second.root, ignore=shutil.ignore_patterns(*left_out))


def compare_files(pairs: list[tuple[Path, Path]]) -> ResumeCheck:
    """Count the pairs of files with equal bytes; a missing file differs."""
    equal = [a.is_file() and b.is_file() and sha256_of_file(a) == sha256_of_file(b) for a, b in pairs]
    return ResumeCheck(len(pairs), sum(equal))


def scores_of(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Read the score table, by clip."""
    return {row["clip_id"]: row for row in pq.read_table(run.scores / "scores.parquet").to_pylist()}


def loss_rows(run: RunFolder) -> list[dict[str, str]]:
    """Read a training's loss.csv."""
    with (run.finetune_logs / "loss.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def add_clip_rates(check: Check, stage: str, run: RunFolder, start_s: float = 0.0) -> None:
    """Put the clips an hour of each level into a stage's row."""
    rates = clip_rates(run, check.num_workers, start_s)
    check.commands.add(replace(check.commands.rows[stage], clips_an_hour=rates or None))


def clip_rates(run: RunFolder, num_workers: int, start_s: float = 0.0) -> dict[str, float]:
    """Return clips an hour of all workers together, by level.

    A clip's time is the time between its record and the one before of the same worker, so that loading and compiling,
    which the first clip waits for, are left out, as are clips for which the worker changed its adapter. A level has no
    rate if no worker recorded two of its clips in a row: where a kill came in between, for example.

    Args:
        run: Its journal and clips.
        num_workers: That worked at a time.
        start_s: Older records are left out, in seconds since the epoch.
    """
    jobs = {job.clip_id: job for job in read_jobs(run.jobs)}
    of_worker: dict[str | None, list[tuple[float, Job]]] = defaultdict(list)
    for record in read_journal(run.journal, "generate").values():
        is_made = record.status == "ok" and run.clip_file(record.clip_id).is_file()
        if is_made and record.time_s >= start_s:
            of_worker[record.worker].append((record.time_s, jobs[record.clip_id]))
    seconds = defaultdict(list)
    for made in of_worker.values():
        made.sort(key=lambda item: item[0])
        for (before_s, before), (time_s, job) in itertools.pairwise(made):
            if before.adapter_sha256 == job.adapter_sha256 and before.level == job.level:
                seconds[job.level].append(time_s - before_s)
    return {level: round(num_workers * 3600 / statistics.median(times), 1) for level, times in seconds.items()}


def settings_of(check: Check) -> list[str]:
    """Return the settings of every command that makes a run; thresholds let clips of random weights pass."""
    args = check.args
    words = [
        f"--config_path={args.preset}", f"--model.path={check.model}", "--model.safety_checker=false",
        f"--video.height={args.height}", f"--video.width={args.width}", f"--video.num_frames={args.num_frames}",
        f"--finetune.num_steps={args.num_steps}", "--finetune.log_every=1", "--finetune.tracker=none",
        "--finetune.windows_per_clip=1", f"--idm.num_steps={args.idm_num_steps}",
        f"--idm.horizon={min(16, args.num_frames // 2)}", f"--plan.first_frames={check.pairs}",
        f"--plan.num_inference_steps={args.num_inference_steps}", "--export.formats=[lerobot-v3.0]",
        "--export.allow_weak_labels=true",
    ]  # fmt: skip
    words += [f"--curate.{score.threshold.setting}={score.threshold.loosest}" for _, score in SCORES.items()]
    if args.no_compile:
        words += ["--finetune.compile=false", "--generate.compile=false"]
    return words if check.num_gpus else [*words, "--model.device=cpu", "--generate.num_workers=1"]


def model_of(preset: str) -> str:
    """Return the model of a preset: the file of configs/models whose name the preset's begins with."""
    names = [path.stem for path in (configs_folder() / "models").glob("*.yaml") if preset.startswith(path.stem)]
    if not names:
        raise SystemExit(f"configs/models has no file for the preset {preset}")
    return max(names, key=len)
