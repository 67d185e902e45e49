"""First frames x instructions x seeds -> `jobs.parquet`, with an id for each clip that hashes what determines it.

Axes: H height, W width, C channels. A `frame_HWC` is uint8, 0-255, RGB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from diffusers.pipelines.cosmos.pipeline_cosmos2_5_predict import DEFAULT_NEGATIVE_PROMPT

from dreamgen.core.errors import Problems, UserError
from dreamgen.core.jobs import read_jobs, write_jobs
from dreamgen.core.progress import log
from dreamgen.core.prompts import bare_instruction
from dreamgen.core.records import Job, StageResult, job_id
from dreamgen.core.run_folder import RunFolder
from dreamgen.core.settings import Settings
from dreamgen.core.video import write_video
from dreamgen.models.adapter_choice import AdapterChoice, check_choice_fits, choose_adapter
from dreamgen.models.shortcuts import level_shortcuts
from dreamgen.models.world import WorldModelSource, empty_transformer, resolve_world_model
from dreamgen.plan_frames import NUM_GIVEN_FRAMES, fitted_frames, store_frames
from dreamgen.plan_sources import FrameRow, FrameRows, find_rows

NUM_REFUSALS_SHOWN = 20
NUM_PROMPTS_SHOWN = 3
NOT_BUILT = "not built yet"


@dataclass(frozen=True)
class Scene:
    """A first frame with one instruction; each of its seeds becomes a job.

    Args:
        first_frame_sha256: Of what the clip begins with, at its size; None for text alone.
        instruction: Without prefix, on one line.
        seed: The first one.
        source: Where the frame came from.
    """

    first_frame_sha256: str | None
    instruction: str
    seed: int
    source: str


def plan(settings: Settings, dry_run: bool = False) -> StageResult:
    """Write the jobs that the settings ask for beside those that were planned before.

    Args:
        settings: `plan`, `video`, `model`, `seed` and `prompt_prefix` are used.
        dry_run: Write nothing; count, and show sample prompts and the disk that the clips will take.

    Returns:
        Counts of new and known jobs, and a note for each row that was refused.

    Raises:
        UserError: if the source or the model cannot be had, or no row is usable.
    """
    run = RunFolder.of(settings)
    _check_can_plan(settings)
    rows = find_rows(settings, run)
    log(f"plan: {rows.kind}")
    model = _model_of(settings, run, dry_run)
    adapter = choose_adapter(settings.plan.adapter, run)
    if adapter is not None and model.sha256 != NOT_BUILT:
        check_choice_fits(empty_transformer(model), adapter)  # jobs for one that does not fit would stay
    scenes, refused = read_scenes(rows, settings, None if dry_run else run)
    if not scenes:
        _raise_nothing_usable(refused, settings.plan.first_frames or str(run.train))

    asked = make_jobs(scenes, settings, model, adapter)
    planned = {job.clip_id: job for job in asked}
    before = read_jobs(run.jobs) if run.jobs.exists() else []
    known = {job.clip_id for job in before}
    new = [job for job in planned.values() if job.clip_id not in known]

    figures = {
        "num_jobs": len(known) + len(new),
        "num_new": len(new),
        "num_known": len(known),
        "num_first_frames": len({job.first_frame_sha256 for job in planned.values()} - {None}),
        "num_instructions": len({job.instruction for job in planned.values()}),
        "num_refused": len(refused),
    }
    notes = _notes(rows, refused, settings, run, adapter)
    if len(asked) > len(planned):
        notes.append(f"{len(asked) - len(planned)} asked for the same first frame, instruction and seed: made once")
    if known - set(planned):
        notes.append(f"{len(known - set(planned))} jobs that were planned before with other settings are kept")
    if dry_run:
        figures["max_disk_gib"] = round(_most_bytes_a_clip(rows, settings) * len(new) / 2**30, 3)
        prompts = dict.fromkeys(job.prompt for job in planned.values())
        notes.extend(f"prompt: {prompt[:300]}" for prompt in list(prompts)[:NUM_PROMPTS_SHOWN])
        notes.append("max_disk_gib: as if every frame took as much as a first frame does alone; clips are smaller")
        return StageResult("plan", {}, figures, [*notes, "dry run: nothing was written"])
    if new:
        write_jobs(run.jobs, [*before, *new])
    return StageResult("plan", {"jobs": run.jobs, "first_frames": run.first_frames}, figures, notes)


def read_scenes(rows: FrameRows, settings: Settings, run: RunFolder | None) -> tuple[list[Scene], list[UserError]]:
    """Pair each usable first frame with its instructions, and store each distinct frame once.

    Args:
        rows: From `find_rows`.
        settings: Clip size, fit, prefix, new instructions and `num_first_frames`.
        run: Where frames are stored; None stores nothing.

    Returns:
        Scenes in the rows' order, and an error for each row that cannot be used.
    """
    scenes, refused = [], list(rows.refused)
    hashes: dict[Path | None, str | None] = {None: None}
    is_text = settings.plan.condition == "text"
    most = None if is_text else settings.plan.num_first_frames
    for row in rows.rows:
        is_full = most is not None and len(set(hashes.values()) - {None}) >= most
        file = None if is_text else row.file
        if is_full and file not in hashes:
            continue
        try:
            instructions = instructions_of(row, rows.crosses, settings)
            if file not in hashes:
                hashes[file] = store_frames(file, settings, run)
        except UserError as error:
            refused.append(error)
            continue
        except OSError as error:
            refused.append(UserError(f"{row.source}: cannot be read", actual=error.strerror))
            continue
        first_seed = settings.seed if row.seed is None else row.seed
        scenes.extend(Scene(hashes[file], text, first_seed, row.source) for text in instructions)
    return scenes, refused


def instructions_of(row: FrameRow, crosses: bool, settings: Settings) -> list[str]:
    """Return what is to be dreamed from a first frame: new instructions where they apply, otherwise its own.

    Raises:
        UserError: if there is none, or it is empty.
    """
    new = settings.plan.instructions
    if new and (crosses or row.instruction is None):
        return [bare_instruction(text, settings.prompt_prefix) for text in new]
    if row.instruction is None:
        raise UserError(
            f"{row.source} has no instruction",
            allowed="NAME.txt beside the image, or a text in the row",
            next_step="write it, or give --plan.instructions='[\"...\"]' for all that have none",
        )
    text = bare_instruction(row.instruction, settings.prompt_prefix)
    if not text:
        raise UserError(
            f"{row.source}: its instruction is empty", actual=repr(row.instruction), allowed="the task in words"
        )
    return [text]


def make_jobs(
    scenes: Sequence[Scene], settings: Settings, model: WorldModelSource, adapter: AdapterChoice | None
) -> list[Job]:
    """Cross scenes with seeds; all scenes come with their first seed before any comes with its second.

    Args:
        scenes: From `read_scenes`.
        settings: Sampler, clip and codec.
        model: The world model's name and fingerprint.
        adapter: None for the base model.

    Returns:
        Jobs with their ids; equal scenes give equal ids.
    """
    video, plan, negative = settings.video, settings.plan, settings.plan.negative_prompt
    shortcuts, jobs = level_shortcuts(plan.level, plan.fp8).to_json(), []
    for number in range(plan.num_seeds):
        for scene in scenes:
            values = {
                "first_frame_sha256": scene.first_frame_sha256,
                "num_given_frames": NUM_GIVEN_FRAMES[plan.condition],
                "instruction": scene.instruction,
                "prompt": settings.prompt_prefix + scene.instruction,
                "negative_prompt": DEFAULT_NEGATIVE_PROMPT if negative is None else negative,
                "seed": scene.seed + number,
                "height": video.height,
                "width": video.width,
                # One chunk overlaps nothing: its clip does not depend on the setting.
                "num_frames": plan.num_chunks * video.num_frames - (plan.num_chunks - 1) * plan.chunk_overlap,
                "num_chunks": plan.num_chunks,
                "chunk_overlap": plan.chunk_overlap if plan.num_chunks > 1 else 0,
                "fps": video.fps,
                "num_inference_steps": plan.num_inference_steps,
                "guidance_scale": float(plan.guidance_scale),
                "level": plan.level,
                "shortcuts": shortcuts,
                "model": model.name,
                "model_sha256": model.sha256,
                "adapter": adapter and adapter.text(RunFolder.of(settings)),
                "adapter_sha256": adapter and adapter.sha256,
                "dtype": settings.model.dtype,
                "codec": video.codec,
                "crf": video.crf,
                "gop": video.gop,
                "source": scene.source,
            }
            jobs.append(Job(clip_id=job_id(values), **values))
    return jobs


def _check_can_plan(settings: Settings) -> None:
    problems = Problems()
    for text in settings.plan.instructions:
        if not bare_instruction(text, settings.prompt_prefix):
            problems.add("plan.instructions has an empty one", actual=repr(text), allowed="the task in words")
    video, wanted = settings.video, settings.plan
    if wanted.num_chunks > 1 and video.num_frames <= wanted.chunk_overlap:
        problems.add(
            "plan.chunk_overlap leaves nothing new in a chunk",
            actual=f"{wanted.chunk_overlap} of video.num_frames={video.num_frames}",
            allowed="fewer than a chunk's frames",
        )
    problems.raise_if_any("what cannot be planned")


def _raise_nothing_usable(refused: Sequence[UserError], source: str) -> NoReturn:
    problems = Problems()
    problems.errors.extend(refused)
    problems.raise_if_any("no first frame can be used")
    raise UserError("the source names no first frame", actual=source)


def _model_of(settings: Settings, run: RunFolder, dry_run: bool) -> WorldModelSource:
    if dry_run and settings.model.path == "mini" and not run.model.exists():
        return WorldModelSource("mini", str(run.model), None, NOT_BUILT)  # building it would write
    return resolve_world_model(settings.model, run)


def _most_bytes_a_clip(rows: FrameRows, settings: Settings) -> int:
    video = settings.video
    for row in rows.rows:
        try:
            if row.file is None or settings.plan.condition == "text":
                return 0  # no picture to judge from
            frame_HWC = fitted_frames(row.file, settings)[: video.height]
        except (UserError, OSError):
            continue  # refused above, with its reason
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "key_frame.mp4"
            write_video(file, [frame_HWC], video.fps, video.codec, video.crf, video.gop)
            return file.stat().st_size * video.num_frames * settings.plan.num_chunks
    return 0


def _notes(
    rows: FrameRows, refused: Sequence[UserError], settings: Settings, run: RunFolder, adapter: AdapterChoice | None
) -> list[str]:
    notes = [f"first frames: {rows.kind}"]
    num_own = sum(row.instruction is not None for row in rows.rows)
    if settings.plan.instructions and num_own and not rows.crosses:
        notes.append(
            f"{num_own} first frames keep their own instruction; plan.instructions went to the "
            f"{len(rows.rows) - num_own} without one"
        )
    if adapter is None:
        missing = "plan.adapter=base" if settings.plan.adapter else f"no adapter in {run.adapter}"
        notes.append(f"{missing}: the base model dreams (dreamgen finetune makes an adapter)")
    if 0 < settings.plan.guidance_scale <= 1:
        notes.append(f"guidance_scale {settings.plan.guidance_scale:g} is at most 1, which the pipeline takes for off")
    notes.extend("refused: " + str(error).replace("\n", "\n  ") for error in refused[:NUM_REFUSALS_SHOWN])
    if len(refused) > NUM_REFUSALS_SHOWN:
        notes.append(f"and {len(refused) - NUM_REFUSALS_SHOWN} more were refused")
    return notes
