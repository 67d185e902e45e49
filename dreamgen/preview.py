"""The whole job before any of it runs: what it will make, what it will cost, and what cannot work.

`dreamgen run --dry_run` prints it; `dreamgen run` makes the same checks before its first stage.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamgen.config.settings import Settings
from dreamgen.data.tables import csv_rows
from dreamgen.errors import Problems, UserError
from dreamgen.extensions.export_format import EXPORT_FORMATS, DatasetSize
from dreamgen.models.cosmos_predict25.spec import is_random_mini
from dreamgen.models.devices import this_gpu
from dreamgen.models.world_model import model_type
from dreamgen.plan.sources import find_rows
from dreamgen.plan.stage import instructions_of
from dreamgen.prepare.stage import VIDEO_BYTES_PER_PIXEL, Demos, demos_of
from dreamgen.progress import duration
from dreamgen.run.files import read_json
from dreamgen.run.idm_error import IdmError
from dreamgen.run.records import RobotFeatures
from dreamgen.run.run_folder import RunFolder

ENOUGH_COVER = 0.8  # of the median demonstration
MANY_EPOCHS = 500
FEW_DEMOS = 10
GIB = 2**30


@dataclass
class Preview:
    """What is known of a job.

    Args:
        metrics: Numbers, for --json.
        notes: What will happen, a sentence each.
        warnings: What is likely not meant.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def preview_run(settings: Settings, run: RunFolder, may_download: bool) -> Preview:
    """Inspect demonstrations and settings of a whole run, without decoding, loading or writing anything.

    Args:
        settings: Of the run.
        run: Its folder, which may not exist yet.
        may_download: Whether demonstrations of the hub may be downloaded.

    Raises:
        UserError: listing everything that a later stage would refuse.
    """
    preview, problems = Preview(), Problems()
    demos = _prepared(run) or demos_of(settings, may_download)
    _cover(demos.lengths, settings, preview)
    with problems.collected():
        _training(demos.lengths, settings, preview)
    num_clips = 0
    with problems.collected():
        num_clips = _clips(demos, settings, run, preview)
    with problems.collected():
        _labels(demos, settings, run, preview)
    with problems.collected():
        _model(settings, preview)
    _disk(demos, num_clips, settings, run, preview)
    problems.raise_if_any("the run cannot work to its end")
    return preview


def _prepared(run: RunFolder) -> Demos | None:
    """Return what the run's training set holds; None where it has none."""
    if not (run.train / "metadata.csv").is_file():
        return None
    features = RobotFeatures.from_dict(read_json(run.train / "features.json"))
    rows = [values for _, values in csv_rows(run.train / "metadata.csv") if isinstance(values, dict)]
    lengths = tuple(int(row["num_frames"]) for row in rows if str(row.get("num_frames")).isdecimal())
    return Demos(lengths, features.action_names, features.state_names) if lengths else None


def _cover(lengths: Sequence[int], settings: Settings, preview: Preview) -> None:
    """Compare a clip's length with the demonstrations'."""
    plan, video = settings.plan, settings.video
    fresh = video.num_frames - plan.chunk_overlap
    num_frames = video.num_frames + (plan.num_chunks - 1) * fresh
    median = statistics.median(lengths)
    share = num_frames / median
    preview.metrics |= {"num_demos": len(lengths), "clip_frames": num_frames, "median_demo_frames": median,
                        "clip_covers": round(share, 3)}  # fmt: skip
    text = (
        f"a clip has {num_frames} frames ({num_frames / video.fps:.1f} s) and covers {min(share, 1):.0%} of the median "
        f"demonstration ({median / video.fps:.1f} s)"
    )
    if share >= ENOUGH_COVER or fresh <= 0:
        preview.notes.append(text)
    else:
        needed = 1 + math.ceil((median - video.num_frames) / fresh)
        preview.warnings.append(f"{text}: --plan.num_chunks={needed} covers it")


def _training(lengths: Sequence[int], settings: Settings, preview: Preview) -> None:
    from finetune.estimate import check_memory, seconds_a_step, training_cost

    tune = settings.finetune
    num_samples = tune.num_steps * tune.batch_size * tune.gradient_accumulation_steps
    num_windows = sum(length - settings.video.num_frames + 1 for length in lengths)
    epochs = num_samples / len(lengths)
    preview.metrics |= {"num_steps": tune.num_steps, "num_epochs": round(epochs, 2), "num_windows": num_windows}
    text = (
        f"training: {tune.num_steps:,} steps on {len(lengths)} demonstrations with {num_windows:,} windows: "
        f"{epochs:,.0f} epochs"
    )
    if epochs > MANY_EPOCHS:
        enough = max(1, round(tune.num_steps * MANY_EPOCHS / epochs))
        preview.warnings.append(
            f"{text}, so the model learns these demonstrations by heart: --finetune.num_steps={enough} makes "
            f"{MANY_EPOCHS}, or add demonstrations"
        )
    else:
        preview.notes.append(text)
    check_memory(settings)
    cost = training_cost(settings)
    if cost is None:
        preview.notes.append(f"training time is not known: {settings.model.path} has not been downloaded")
        return
    step_s, basis = seconds_a_step(cost, settings)
    preview.metrics["finetune_gpu_hours"] = round(step_s * tune.num_steps / 3600, 3)
    preview.notes.append(f"training time: about {duration(step_s * tune.num_steps)}, {basis}")


def _clips(demos: Demos, settings: Settings, run: RunFolder, preview: Preview) -> int:
    """Count the clips to come, and their time."""
    plan = settings.plan
    own = plan.first_frames is None or Path(plan.first_frames).resolve() == Path(settings.demos or "").resolve()
    if own and plan.condition != "text":
        num_frames = min(len(demos.lengths), plan.num_first_frames or len(demos.lengths))
        num_pairs = num_frames * max(1, len(plan.instructions))
    else:
        num_pairs, files = 0, set()
        rows = find_rows(settings, run)
        for row in rows.rows:
            if isinstance(row, UserError) or (
                plan.num_first_frames and len(files | {row.file}) > plan.num_first_frames and row.file is not None
            ):
                continue
            try:
                num_pairs += len(instructions_of(row, rows.crosses, settings))
            except UserError:
                continue  # plan names it
            files.add(row.file)
        num_frames = len(files)
    num_clips = num_pairs * plan.num_seeds
    preview.metrics |= {"num_first_frames": num_frames, "num_clips": num_clips}
    preview.notes.append(
        f"clips to come: {num_clips:,}, of {num_frames:,} first frames and {plan.num_seeds} seeds each"
        if num_clips else "no clip to come: no first frame has an instruction"
    )  # fmt: skip
    rate = settings.generate.clips_per_gpu_hour
    if rate:
        preview.metrics["generate_gpu_hours"] = round(num_clips / rate, 3)
        preview.notes.append(f"generation: {num_clips / rate:,.1f} GPU hours at {rate:g} clips an hour, as set")
    else:
        preview.notes.append(
            "generation time is not known before a clip is made: docs/costs.md has typical rates, "
            "and --generate.clips_per_gpu_hour takes one"
        )
    if not num_clips:
        raise UserError("no first frame can be used", actual=plan.first_frames, allowed="frames with an instruction")
    return num_clips


def _labels(demos: Demos, settings: Settings, run: RunFolder, preview: Preview) -> None:
    from export.robots import fitting_modality, robot_preset

    num_action, num_state = len(demos.action_names), len(demos.state_names)
    preview.metrics |= {"has_actions": bool(num_action), "action_dim": num_action, "state_dim": num_state}
    if not num_action:
        preview.warnings.append(
            "the demonstrations have no actions: the run ends with clips and verdicts, without labels and datasets"
        )
        return
    robot = settings.export.robot
    if robot is not None:
        with_state = settings.export.include_state and settings.idm.predict_state
        fitting_modality(robot, robot_preset(robot), num_action, num_state if with_state else 0)
    if (run.idm / "config.json").is_file():
        if (error := IdmError.of_run(run)) is not None:
            preview.notes.append(f"labels: {error.text()}")
            preview.warnings += [f"labels: {warning}"] if (warning := error.warning()) is not None else []
        return
    text = (
        f"labels: {num_action} values a frame, by an inverse-dynamics model trained on {len(demos.lengths)} "
        f"demonstrations ({sum(demos.lengths):,} frames); its error is measured on {settings.idm.held_out:.0%} of them "
        "before a clip is labeled"
    )
    if len(demos.lengths) < FEW_DEMOS:
        preview.warnings.append(f"{text}. With so few, labels are often no better than the mean action")
    else:
        preview.notes.append(text)


def _model(settings: Settings, preview: Preview) -> None:
    """Check that the world model can be loaded, without loading or hashing it."""
    path, needs_no_folder = settings.model.path, model_type(settings.model).paths
    if path in needs_no_folder:
        if is_random_mini(path):
            preview.warnings.append("this mini model is untrained: its clips are noise")
    elif Path(path).is_dir():
        if not any(Path(path).iterdir()):
            raise UserError(f"the model folder {path} is empty", allowed="a folder written by save_pretrained")
    elif path.count("/") == 1 and not path.startswith((".", "/", "~")):
        from huggingface_hub import constants, get_token, try_to_load_from_cache

        cached = try_to_load_from_cache(path, "model_index.json", revision=settings.model.revision)
        if isinstance(cached, str):
            preview.notes.append(f"{path} is on this machine")
        elif constants.HF_HUB_OFFLINE:
            raise UserError(f"{path} is not on this machine, and HF_HUB_OFFLINE forbids to download it",
                            next_step="unset HF_HUB_OFFLINE, or give a folder")  # fmt: skip
        else:
            login = "" if get_token() else "; you are not logged in to the hub, which models with a license need"
            preview.notes.append(f"{path} will be downloaded{login}")
    if path not in needs_no_folder and settings.model.device in ("auto", "cuda") and this_gpu(settings) is None:
        preview.warnings.append("there is no GPU here: training and generation of this model need one")


def _disk(demos: Demos, num_clips: int, settings: Settings, run: RunFolder, preview: Preview) -> None:
    """Estimate the disk that the whole job takes, and compare it with what is free."""
    pixels = settings.video.height * settings.video.width
    clip_frames = preview.metrics["clip_frames"]
    train_bytes = int(sum(demos.lengths) * pixels * VIDEO_BYTES_PER_PIXEL)
    clip_bytes = int(num_clips * clip_frames * pixels * VIDEO_BYTES_PER_PIXEL)
    size = DatasetSize(clip_bytes, num_clips * clip_frames, 3 * pixels)
    formats = [EXPORT_FORMATS.get(name) for name in settings.export.formats] if demos.action_names else []
    dataset_bytes = sum(known.estimate_bytes(size, settings.export) for known in formats)
    total = train_bytes + clip_bytes + dataset_bytes
    nearest = next(path for path in (run.root, *run.root.absolute().parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    preview.metrics |= {"disk_gib": round(total / GIB, 3), "free_gib": round(free / GIB, 1)}
    text = (
        f"disk: about {total / GIB:.2g} GiB (training set {train_bytes / GIB:.2g}, clips {clip_bytes / GIB:.2g}, "
        f"datasets up to {dataset_bytes / GIB:.2g}, without checkpoints and the training cache)"
    )
    if total > free:
        preview.warnings.append(f"{text}, and {free / GIB:.2g} are free in {nearest}")
    else:
        preview.notes.append(text)
