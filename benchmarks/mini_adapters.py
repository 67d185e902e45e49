"""What adapters of the mini world model learn from a few demonstrations of new tasks, and what they forget.

    pip install 'dreamgen[sim]'
    python benchmarks/mini_adapters.py --out runs/mini_adapters --minutes 9

On tasks that mini's transformer has never seen: the base model, LoRA with several numbers of demonstrations and several
ranks, DoRA, and blends of two tasks' adapters. Each adapter is trained by `prepare` and `finetune` with the preset
`mini`. Clips from test positions and with test instructions are compared with recordings, and so are clips of tasks
that the model had learned, with the adapter and after it is taken off. docs/mini.md shows the tables.

What is missing is recorded first, unless --data has it. The same command continues after an interruption: recordings,
adapters and measurements are kept. After --minutes nothing new begins. The report is written after each variant.

Axes: N clips, T frames, H height, W width, C channels, K adapters.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapter_report import BASE, HELDOUT, SEEN, SPLITS, Values, rows_of, tables
from adapter_variants import (
    PRESET,
    Schedule,
    Training,
    TrainingOptions,
    Variant,
    all_variants,
    start_worker,
    train,
)
from clip_metrics import nearest_clips, picture_grid, success_criteria
from metaworld_clips import Clips, joined, read_clips
from metrics import write_report
from mini_quality import ClipSampler, Sampling, measure_clips
from PIL import Image
from resumable import ROOT, Deadline, as_lists, check_options, record
from state_readout import kept_readout

from dreamgen.api import load_settings
from dreamgen.models.adapter_choice import AdapterChoice, choose_adapter
from dreamgen.models.cosmos_predict25.adapter_switch import AdapterSwitch
from dreamgen.models.cosmos_predict25.loading import load_pipeline
from dreamgen.models.world_model import resolve_world_model
from dreamgen.run.files import write_text
from dreamgen.run.run_folder import RunFolder
from dreamgen.run.signals import workers_end_on_interrupt

# Those of the first run of the policy benchmark (docs/proof.md).
TASKS = ("coffee-push", "plate-slide-back-side", "push-back", "sweep")
RECORDING, ROUND_TRIP, FROZEN = "recording", "VAE round trip", "first frame repeated"
NEAREST = "nearest demonstration"
# What may change between calls that continue one another.
FREE_OPTIONS = ("out", "data", "json", "picture", "jobs", "minutes", "record_workers", "batch_size", "demo_counts",
                "ranks", "blend_weights", "schedules")  # fmt: skip


def main() -> None:
    args = parse_args()
    deadline = Deadline(args.minutes)
    args.out.mkdir(parents=True, exist_ok=True)
    check_options(args, FREE_OPTIONS)
    torch.set_float32_matmul_precision("high")
    schedules = [Schedule.parse(text) for text in args.schedules]
    variants = all_variants(args.rank, args.num_demos, args.demo_counts, args.ranks, args.blend_weights, schedules)
    if len(args.tasks) < 2:
        variants = [variant for variant in variants if variant.blend_weight is None]
    recordings = all_recordings(args)
    share = -(-args.record_workers // len(args.tasks))
    record(args, {name: words for name, words in recordings.items() if name.startswith("train/")}, share)
    with TrainingPool(args, variants, deadline.until_s) as pool, workers_end_on_interrupt():
        record(args, recordings, args.record_workers)  # while adapters are trained
        bench = Bench(args, variants)
        measure_references(bench, deadline)
        for variant in variants:
            measure_variant(bench, variant, pool, deadline)
            if variant == variants[0]:
                draw(bench, variant, deadline)
    report = write_results(bench, deadline, is_complete=True)
    print(tables(report))


def all_recordings(args: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Return the folders below --data, each with the recorder's options."""
    num_demos = max([args.num_demos, *args.demo_counts])
    only = () if args.seen_tasks is None else ("--tasks", *args.seen_tasks)
    judged = () if args.seen_tasks is None else ("--tasks", *args.tasks, *args.seen_tasks)
    return {
        **{f"train/{task}": ("--set", "heldout", "--tasks", task, "--episodes_per_task", str(num_demos))
           for task in args.tasks},
        "test": ("--set", "heldout", "--region", "test", "--tasks", *args.tasks,
                 "--episodes_per_task", str(args.test_episodes)),
        "seen": ("--set", "base", "--region", "test", *only, "--episodes_per_task", str(args.seen_episodes)),
        "readout": ("--set", "vae", *judged, "--episodes_per_task", str(args.readout_episodes)),
    }  # fmt: skip


class TrainingPool:
    """Trains all adapters in processes, in the order of the variants that need them.

    Args:
        args: The command line.
        variants: Those to train for.
        until_s: `time.time()` after which no training begins.
    """

    def __init__(self, args: argparse.Namespace, variants: Sequence[Variant], until_s: float) -> None:
        options = TrainingOptions(args.data, args.out / "trainings", args.lora_steps, args.device, args.seed)
        num_threads = max(1, (os.cpu_count() or 1) // (args.jobs + 1))
        # Spawned: a forked process cannot use a GPU that its parent has open.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(args.jobs, context, start_worker, (os.getpid(), num_threads))
        trainings = dict.fromkeys(one for variant in variants for one in variant.trainings(args.tasks))
        self._futures: dict[Training, Future[dict[str, Any] | None]] = {
            training: self._pool.submit(train, training, options, until_s) for training in trainings
        }

    def __enter__(self) -> TrainingPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def facts(self, trainings: Sequence[Training]) -> tuple[list[dict[str, Any]], list[str]]:
        """Wait for trainings.

        Returns:
            What is known of those that are done, and a text for each of the others.
        """
        done, missing = [], []
        for training in trainings:
            try:
                facts = self._futures[training].result()
            except Exception as error:
                missing.append(f"the training {training.name} failed: {error}")
                continue
            if facts is None:
                missing.append(f"no time left for the training {training.name}")
            else:
                done.append(facts)
        return done, missing


class Bench:
    """Recordings, models and measurements.

    Args:
        args: The command line.
        variants: What is compared; the first one is the reference.
    """

    def __init__(self, args: argparse.Namespace, variants: Sequence[Variant]) -> None:
        self.args, self.variants, self.device = args, variants, torch.device(args.device)
        if self.device.type == "cuda":
            torch.set_num_threads(1)  # metrics are computed by many threads, each of which would use all cores
        settings = load_settings(PRESET, model={"device": args.device})
        num_steps = args.sampling_steps or settings.plan.num_inference_steps
        self.sampling = Sampling(num_steps, settings.plan.guidance_scale, seed=args.seed)
        train_sets = {task: read_clips(args.data / "train" / task) for task in args.tasks}
        if short := [
            task for task, clips in train_sets.items() if len(clips) < max([args.num_demos, *args.demo_counts])
        ]:
            raise SystemExit(f"too few demonstrations in {args.data / 'train'}: {', '.join(short)}")
        self.demos = {task: clips[np.arange(args.num_demos)] for task, clips in train_sets.items()}
        self.heldout = _in_order(read_clips(args.data / "test").first_of_each(args.test_episodes), args.tasks)
        seen = read_clips(args.data / "seen").first_of_each(args.seen_episodes)
        self.seen = seen[seen.scene_N == ""]
        known = joined([*train_sets.values(), read_clips(args.data / "readout")])
        self.criteria = success_criteria(known)
        self.readout = kept_readout(
            args.out / "state_readout.safetensors", known, self.device, args.readout_s, args.seed
        )
        with tempfile.TemporaryDirectory() as folder:
            source = resolve_world_model(settings.model, RunFolder(Path(folder)))
        pipe = load_pipeline(source, settings.model)
        self.switch = AdapterSwitch(pipe, several=True)
        self.sampler = ClipSampler(pipe, args.batch_size, settings.prompt_prefix)
        self.base: dict[str, torch.Tensor] = {}  # dreams of each split without an adapter
        self.measured: dict[str, dict[str, Any]] = {}  # by name, in the order of the measurements

    def table_order(self) -> list[str]:
        """Return the names of the variants: by demonstrations, by rank, then DoRA and blends."""
        rank = self.variants[0].rank
        ordered = sorted(self.variants, key=lambda one: (one.blend_weight or 0, one.method == "dora", one.rank != rank,
                                                         one.rank, str(one.schedule or ""), one.num_demos))  # fmt: skip
        return [variant.name for variant in ordered]

    def clips(self, split: str) -> Clips:
        """Return a split's recordings."""
        return self.heldout if split == HELDOUT else self.seen

    def measure(self, video_NTHWC: torch.Tensor, split: str) -> dict[str, np.ndarray]:
        """Return all metrics of each clip of a split."""
        return measure_clips(video_NTHWC, self.clips(split), self.readout, self.criteria)

    def dream_heldout(
        self, choice_of: Callable[[str], AdapterChoice | None], num_clips: int | None = None
    ) -> torch.Tensor:
        """Dream the held-out clips, each with its task's adapter.

        Args:
            choice_of: Returns a task's adapter; None for the base.
            num_clips: Only the first ones of each task.
        """
        videos = []
        for task in self.args.tasks:
            self.switch.to(choice_of(task))
            clips = self.heldout[np.flatnonzero(self.heldout.task_N == task)[:num_clips]]
            videos.append(self.sampler.dream(clips, self.sampling))
        return torch.cat(videos)

    def dream_seen(self, choice: AdapterChoice | None) -> torch.Tensor:
        """Dream the clips of seen tasks with one adapter, or none."""
        self.switch.to(choice)
        return self.sampler.dream(self.seen, self.sampling)

    def choice(self, variant: Variant, task: str) -> AdapterChoice | None:
        """Return a variant's adapter of a task, as `plan.adapter` finds it."""
        runs = self.args.out / "trainings"
        return choose_adapter(variant.adapter(task, self.args.tasks, runs), RunFolder(runs))

    def once(self, file_name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what was measured before, or measure it and keep it."""
        file = self.args.out / "measured" / file_name
        if file.is_file():
            return json.loads(file.read_text())
        measured = measure()
        write_text(file, json.dumps(measured))
        return measured


def _in_order(clips: Clips, tasks: Sequence[str]) -> Clips:
    return clips[np.concatenate([np.flatnonzero(clips.task_N == task) for task in tasks])]


def measure_references(bench: Bench, deadline: Deadline) -> None:
    """Measure the base model, and what stands beside it: recordings, VAE and clips that need no world model."""
    print(f"{deadline.passed_s():.0f} s: {BASE}", flush=True)
    bench.base = {HELDOUT: bench.dream_heldout(lambda task: None), SEEN: bench.dream_seen(None)}

    def measure() -> dict[str, Any]:
        rows: dict[str, dict[str, Values]] = {}
        for split in SPLITS:
            real = bench.clips(split)
            videos = {
                RECORDING: real.video_NTHWC,
                ROUND_TRIP: bench.sampler.vae_round_trip(real),
                FROZEN: real.video_NTHWC[:, :1].expand_as(real.video_NTHWC),
                BASE: bench.base[split],
            }
            if split == HELDOUT:
                videos[NEAREST] = nearest_demonstrations(real, bench.demos)
            for name, video_NTHWC in videos.items():
                rows.setdefault(name, {})[split] = as_lists(bench.measure(video_NTHWC, split))
        return rows

    bench.measured |= bench.once("references.json", measure)
    write_results(bench, deadline)


def nearest_demonstrations(real: Clips, demos: dict[str, Clips]) -> torch.Tensor:
    """Return for each clip its task's demonstration with the nearest first frame, as video_NTHWC."""
    videos = []
    for number, task in enumerate(real.task_N):
        among = demos[str(task)]
        nearest = nearest_clips(real.video_NTHWC[number : number + 1, 0], among)[0]
        videos.append(among.video_NTHWC[int(nearest)])
    return torch.stack(videos)


def measure_variant(bench: Bench, variant: Variant, pool: TrainingPool, deadline: Deadline) -> None:
    """Measure a variant when its trainings are done: on the held-out tasks, on seen ones, and taken off again."""
    tasks = bench.args.tasks
    trainings, missing = pool.facts(variant.trainings(tasks))
    file = bench.args.out / "measured" / variant.file_name
    if missing or not (file.is_file() or deadline.has_time(variant.name)):
        deadline.left_out += [f"{variant.name}: {text}" for text in missing]
        write_results(bench, deadline)
        return

    def measure() -> dict[str, Any]:
        start_s = time.monotonic()
        heldout = bench.measure(bench.dream_heldout(lambda task: bench.choice(variant, task)), HELDOUT)
        choices = {choice.sha256: choice for task in tasks if (choice := bench.choice(variant, task))}
        seen = [bench.measure(bench.dream_seen(choice), SEEN) for choice in choices.values()]
        off = {"clips": len(bench.seen), **differences(bench.dream_seen(None), bench.base[SEEN])}
        return {
            "heldout": as_lists(heldout), "seen": as_lists(mean_over(seen)), "adapters": len(choices), "off": off,
            "seconds": round(time.monotonic() - start_s, 1),
        }  # fmt: skip

    measured = bench.once(variant.file_name, measure)
    own = trainings if variant.blend_weight is None else []
    bench.measured[variant.name] = {**measured, "trainings": own}
    write_results(bench, deadline)


def differences(one_NTHWC: torch.Tensor, other_NTHWC: torch.Tensor) -> dict[str, int]:
    """Compare clips: `equal_clips`, and `max_levels`, the largest difference of a pixel, 0-255."""
    levels_N = (one_NTHWC.int() - other_NTHWC.int()).abs().flatten(1).amax(1)
    return {"equal_clips": int((levels_N == 0).sum()), "max_levels": int(levels_N.max())}


def mean_over(measured: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return each clip's mean over several adapters."""
    return {key: np.stack([one[key] for one in measured]).mean(0) for key in measured[0]}


def draw(bench: Bench, variant: Variant, deadline: Deadline) -> None:
    """Draw the first test clip of each task: the recording, the base's dream, and the dream with the adapter."""
    if bench.args.picture.is_file() or variant.name not in bench.measured or not deadline.has_time("picture"):
        return
    base, adapted = (bench.dream_heldout(choice_of, num_clips=1)
                     for choice_of in (lambda task: None, lambda task: bench.choice(variant, task)))  # fmt: skip
    firsts = [np.flatnonzero(bench.heldout.task_N == task)[0] for task in bench.args.tasks]
    real = bench.heldout.video_NTHWC[firsts]
    groups = [[video.numpy() for video in videos] for videos in zip(real, base, adapted, strict=True)]
    bench.args.picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture_grid(groups, num_columns=6)).save(bench.args.picture, quality=85)


def write_results(bench: Bench, deadline: Deadline, is_complete: bool = False) -> dict[str, Any]:
    """Write the report of what has been measured, and return it."""
    args, reference = bench.args, bench.variants[0].name
    names = [*(name for name, one in bench.measured.items() if "trainings" not in one), *bench.table_order()]
    measured = {name: bench.measured[name] for name in names if name in bench.measured}
    report = {
        "device": torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU",
        "options": {key: value for key, value in vars(args).items() if not isinstance(value, Path)},
        "minutes": round(deadline.passed_s() / 60, 2), "complete": is_complete, "left_out": deadline.left_out,
        "reference": reference,
        "rows": [row for split in SPLITS for row in rows_of(measured, split, bench.clips(split), reference)],
        "trainings": {name: one["trainings"] for name, one in measured.items() if one.get("trainings")},
        "per_clip": {name: {split: one[split] for split in SPLITS if split in one} for name, one in measured.items()},
    }  # fmt: skip
    write_report(report, str(args.json))
    write_text(args.out / "tables.md", tables(report) + "\n")
    return report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    has_gpu, cores = torch.cuda.is_available(), os.cpu_count() or 1
    parser.add_argument("--out", type=Path, required=True, help="folder of everything; the same one continues")
    parser.add_argument("--data", type=Path, help="recordings, made where they are missing (default: OUT/data)")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/mini_adapters.json", help="the report")
    parser.add_argument("--picture", type=Path, help="JPEG or PNG of dreams (default: beside the report)")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="held-out tasks")
    parser.add_argument("--rank", type=int, default=load_settings(PRESET).finetune.lora.rank, help="of the reference")
    parser.add_argument("--num_demos", type=int, default=10, help="of the reference")
    parser.add_argument("--demo_counts", type=int, nargs="*", default=[1, 5, 10, 20])
    parser.add_argument("--ranks", type=int, nargs="*", default=[4, 8, 32])
    parser.add_argument("--blend_weights", type=float, nargs="*", default=[0.5, 1.0], help="of each of two adapters")
    parser.add_argument("--schedules", nargs="*", default=[], metavar="STEPSxBATCH[xRATE]", help="more trainings, "
                        "such as 400x8, with the usual and the largest number of demonstrations")  # fmt: skip
    parser.add_argument("--lora_steps", type=int, help="of each training (default: the preset's)")
    parser.add_argument("--sampling_steps", type=int, help="of each dream (default: the preset's)")
    parser.add_argument("--test_episodes", type=int, default=12, help="of each held-out task")
    parser.add_argument("--seen_episodes", type=int, default=2, help="of each seen task")
    parser.add_argument("--seen_tasks", nargs="+", help="only these; the read-out then learns no others either")
    parser.add_argument("--readout_episodes", type=int, default=20, help="of each task, to train the read-out")
    parser.add_argument("--readout_s", type=float, default=60, help="seconds of training the read-out")
    parser.add_argument("--batch_size", type=int, default=72 if has_gpu else 4, help="clips that are dreamed at once")
    parser.add_argument("--jobs", type=int, default=min(6, cores) if has_gpu else 1, help="trainings at a time")
    parser.add_argument("--record_workers", type=int, default=cores, help="processes of the recorder")
    parser.add_argument("--minutes", type=float, default=100_000, help="after which nothing new begins")
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu")
    parser.add_argument("--seed", type=int, default=0, help="of trainings, read-out and noise")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.data = (args.data or args.out / "data").resolve()
    args.picture = args.picture or args.json.with_suffix(".jpg")
    return args


if __name__ == "__main__":
    main()
