"""The adapters that benchmarks/mini_adapters.py compares, and their training by the product's own stages."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from metaworld_clips import CAMERA

from dreamgen.api import finetune_adapter, load_settings, prepare_training_set
from dreamgen.config.settings import Settings
from dreamgen.models.adapter_files import adapter_file
from dreamgen.run.files import write_text
from dreamgen.run.run_folder import RunFolder
from dreamgen.run.signals import follow_parent

PRESET = "mini"


@dataclass(frozen=True)
class Schedule:
    """How long an adapter is trained.

    Args:
        num_steps: Of the optimizer.
        batch_size: Clips a step.
        learning_rate: The highest one; None is the preset's.
    """

    num_steps: int
    batch_size: int
    learning_rate: float | None = None

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Return the schedule that a text such as `400x8` or `400x8x0.0005` names: steps, clips a step, learning rate.

        Raises:
            ValueError: if the text is not of that form.
        """
        steps, batch_size, *rate = text.split("x")
        return cls(int(steps), int(batch_size), *map(float, rate))

    @property
    def title(self) -> str:
        """What tables call it."""
        rate = "" if self.learning_rate is None else f" at {self.learning_rate:g}"
        return f"{self.num_steps} steps of {self.batch_size}{rate}"

    def __str__(self) -> str:
        rate = [] if self.learning_rate is None else [f"{self.learning_rate:g}"]
        return "x".join([str(self.num_steps), str(self.batch_size), *rate])


@dataclass(frozen=True)
class Training:
    """The training of one adapter.

    Args:
        task: Whose demonstrations it learns from.
        method: "lora" or "dora".
        rank: Of the update.
        num_demos: The first ones of the task, so that a larger number includes those of a smaller one.
        schedule: How long; None is that of the benchmark's other options.
    """

    task: str
    method: str
    rank: int
    num_demos: int
    schedule: Schedule | None = None

    @property
    def name(self) -> str:
        """Folder of its run, below that of all trainings."""
        return f"{_file_name(self)}/{self.task}"


@dataclass(frozen=True)
class Variant:
    """A way to adapt the model to each of the tasks.

    Args:
        method, rank, num_demos: As for `Training`.
        blend_weight: Of each of two adapters that are blended, the task's own and its partner's; None: no blend.
        schedule: As for `Training`.
    """

    method: str
    rank: int
    num_demos: int
    blend_weight: float | None = None
    schedule: Schedule | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        if self.blend_weight is not None:
            return f"blend of two tasks' {self._adapter}, {self.blend_weight:g} each"
        long = "" if self.schedule is None else f", {self.schedule.num_steps} steps of {self.schedule.batch_size}"
        rate = (
            "" if self.schedule is None or not self.schedule.learning_rate else f" at {self.schedule.learning_rate:g}"
        )
        return f"{self._adapter}, {self.num_demos} demonstration{'s' if self.num_demos > 1 else ''}{long}{rate}"

    @property
    def file_name(self) -> str:
        """Name of the file of its measurements."""
        blend = "" if self.blend_weight is None else f"-blend-{self.blend_weight:g}"
        return f"{_file_name(self)}{blend}.json"

    def trainings(self, tasks: Sequence[str]) -> list[Training]:
        """Return one training a task."""
        return [Training(task, self.method, self.rank, self.num_demos, self.schedule) for task in tasks]

    def adapter(self, task: str, tasks: Sequence[str], runs: Path) -> str:
        """Return what `plan.adapter` would name for a task: a folder, or a blend.

        Args:
            task: One of the tasks.
            tasks: All of them.
            runs: Folder of the trainings.
        """
        blended = [task] if self.blend_weight is None else pair_of(task, tasks)
        folders = [RunFolder(runs / training.name).adapter.resolve() for training in self.trainings(blended)]
        return ",".join(str(folder) if self.blend_weight is None else f"{folder}:{self.blend_weight:g}"
                        for folder in folders)  # fmt: skip

    @property
    def _adapter(self) -> str:
        return f"{'DoRA' if self.method == 'dora' else 'LoRA'} rank {self.rank}"


def _file_name(one: Training | Variant) -> str:
    """Return what files of trainings and measurements are called, without the task."""
    schedule = "" if one.schedule is None else f"-{one.schedule}"
    return f"{one.method}-{one.rank}-{one.num_demos}{schedule}"


def pair_of(task: str, tasks: Sequence[str]) -> list[str]:
    """Return two tasks in their order, one of which is the given one: the first two, the next two and so on."""
    number = tasks.index(task)
    partner = number ^ 1 if number ^ 1 < len(tasks) else 0
    return [tasks[index] for index in sorted((number, partner))]


def all_variants(
    rank: int, num_demos: int, demo_counts: Sequence[int], ranks: Sequence[int], blend_weights: Sequence[float],
    schedules: Sequence[Schedule] = (),
) -> list[Variant]:  # fmt: skip
    """Return the variants, the most important ones first; the first one is the reference, LoRA at the usual sizes.

    Args:
        rank: Of the variants that differ in something else.
        num_demos: Likewise.
        demo_counts: Numbers of demonstrations for LoRA.
        ranks: Ranks for LoRA.
        blend_weights: Of blends of two LoRA adapters.
        schedules: Of LoRA trainings that are longer or shorter, each with the usual and the largest number of demos.
    """
    variants = [Variant("lora", rank, num_demos)]
    variants += [Variant("lora", rank, count) for count in demo_counts]
    variants += [Variant("dora", rank, num_demos)]
    variants += [Variant("lora", rank, num_demos, weight) for weight in blend_weights]
    variants += [Variant("lora", one, num_demos) for one in ranks]
    counts = (num_demos, max([num_demos, *demo_counts]))
    variants += [Variant("lora", rank, count, schedule=one) for one in schedules for count in counts]
    return list(dict.fromkeys(variants))


@dataclass(frozen=True)
class TrainingOptions:
    """What all trainings share.

    Args:
        data: Folder with a dataset `train/TASK` for each task.
        runs: Folder of the trainings' runs and logs.
        num_steps: Of each training; the preset's when None.
        device: "cpu", "cuda" or "cuda:N".
        seed: Of the initial weights and the batches.
    """

    data: Path
    runs: Path
    num_steps: int | None
    device: str
    seed: int


def training_settings(training: Training, options: TrainingOptions) -> Settings:
    """Return the settings of a run: the preset's, with what the variant changes."""
    finetune: dict[str, Any] = {
        "method": training.method, "lora": {"rank": training.rank}, "tracker": "none",
        "cache_dir": str(options.runs / "cache"),
    }  # fmt: skip
    if options.num_steps is not None:
        finetune["num_steps"] = options.num_steps
    if training.schedule is not None:
        finetune |= {key: value for key, value in asdict(training.schedule).items() if value is not None}
    return load_settings(
        PRESET, demos=options.data / "train" / training.task, out=options.runs / training.name, seed=options.seed,
        model={"device": options.device}, prepare={"camera": CAMERA, "max_episodes": training.num_demos},
        finetune=finetune,
    )  # fmt: skip


def train(training: Training, options: TrainingOptions, until_s: float) -> dict[str, Any] | None:
    """Prepare the demonstrations and train an adapter on them, unless that is done.

    Args:
        training: Which one.
        options: What all share.
        until_s: `time.time()` after which no training begins.

    Returns:
        The training's fields, `num_steps`, `step_s`, `final_loss`, `seconds` of both stages, and `adapter_mb`; None if
        there was no time.

    Raises:
        UserError: if a stage refuses its input.
        RuntimeError: if a signal stopped the training.
    """
    folder = options.runs / training.name
    facts_file = folder / "training.json"
    if facts_file.is_file():
        return json.loads(facts_file.read_text())
    if time.time() > until_s:
        return None
    start_s = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a", encoding="utf-8") as log, redirect_stderr(log), redirect_stdout(log):
        settings = training_settings(training, options)
        prepare_training_set(settings, resume=True)
        result = finetune_adapter(settings, resume=True)
        if result.partial:
            raise RuntimeError(f"stopped; see {folder / 'log.txt'}")
    facts = asdict(training) | {key: result.metrics.get(key) for key in ("num_steps", "step_s", "final_loss")}
    num_bytes = adapter_file(RunFolder(folder).adapter).stat().st_size
    facts |= {"seconds": round(time.monotonic() - start_s, 2), "adapter_mb": round(num_bytes / 1e6, 3)}
    write_text(facts_file, json.dumps(facts))
    return facts


def start_worker(parent: int, num_threads: int) -> None:
    """Prepare a process that runs trainings.

    Args:
        parent: Process id of the benchmark; the worker exits with it.
        num_threads: Of the worker's share of the cores.
    """
    follow_parent(parent)
    torch.set_num_threads(num_threads)
