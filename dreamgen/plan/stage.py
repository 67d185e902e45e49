"""First frames x instructions x seeds -> `jobs.parquet`; a clip's id is a hash of everything that determines it.

Axes: H height, W width, C channels. A `frame_HWC` is uint8, 0-255, RGB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dreamgen.config.settings import Settings
from dreamgen.data.prompts import bare_instruction, sample_prompt
from dreamgen.data.video import write_video
from dreamgen.errors import Problems, UserError
from dreamgen.models.adapter_choice import AdapterChoice, choose_adapter
from dreamgen.models.cosmos_predict25.spec import is_random_mini
from dreamgen.models.generation_request import job_values
from dreamgen.models.prompt_length import check_prompt_lengths
from dreamgen.models.world_model import WorldModelSource, check_size, model_type_name, resolve_world_model
from dreamgen.plan.first_frames import fitted_frames, store_frames
from dreamgen.plan.job_grid import Conditioning, Conditionings, JobGrid, first_of_each, spool_conditionings
from dreamgen.plan.sources import FrameRow, FrameRows, find_rows
from dreamgen.progress import log
from dreamgen.run.jobs import iter_job_tables, job_columns, write_job_tables
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder
from dreamgen.run.write_errors import storage_error

NUM_ERRORS_SHOWN = 20
NUM_PROMPTS_SHOWN = 3
NOT_BUILT = "not built yet"


def plan(settings: Settings, dry_run: bool = False) -> StageResult:
    """Add the jobs of the settings to those that were planned before.

    Args:
        settings: `plan`, `video`, `model`, `seed` and `prompt_prefix` are used.
        dry_run: Write nothing; count, and show sample prompts and the disk space that the clips will take.

    Returns:
        Counts of new and known jobs, and a note for each row that is refused.

    Raises:
        UserError: if the source or the model cannot be used, or no row is usable.
    """
    run = RunFolder.of(settings, may_be_remote=True)
    check_size(settings)
    _check_can_plan(settings)
    run.fetch(run.jobs, anew=True)
    run.fetch_folder(run.adapter)
    rows = find_rows(settings, run)
    log(f"plan: {rows.kind}")
    model = _model_of(settings, run, dry_run)
    adapter = choose_adapter(settings.plan.adapter, run)
    if adapter is not None and model.sha256 != NOT_BUILT:
        model.load_class().check_adapters(model, adapter.folders)  # jobs for one that does not fit would stay
    with tempfile.TemporaryDirectory() as folder:
        counts, target = PlanCounts(), None if dry_run else run
        conditionings = spool_conditionings(
            read_conditionings(rows, settings, target, counts), Path(folder) / "conditionings"
        )
        if not counts.num_conditionings:
            _raise_nothing_usable(counts, settings.plan.first_frames or str(run.train))
        texts = check_prompt_lengths(
            settings.model, run.model, _prompts_of(conditionings, settings), may_download=not dry_run,
            planned=_planned_prompts(run, model.sha256),
        )  # fmt: skip
        common = job_values(settings, model, adapter, run)
        grid = JobGrid(conditionings, settings.plan.num_seeds, settings.prompt_prefix, common)
        ids = grid.ids()
        is_first, is_new, metrics, num_kept = _compare(run, ids)
        metrics["num_first_frames"] = len(conditionings.distinct("first_frame_sha256"))
        metrics["num_instructions"] = len(conditionings.distinct("instruction"))
        metrics["num_refused"] = counts.num_refused
        notes = _notes(rows, counts, settings, run, adapter) + texts
        notes += _count_notes(int((~is_first).sum()), num_kept)
        if dry_run:
            num_bytes = _most_bytes_a_clip(rows, settings) * metrics["num_new"]
            metrics["max_disk_gib"] = round(num_bytes / 2**30, 3)
            first = conditionings.distinct("instruction")[:NUM_PROMPTS_SHOWN].to_pylist()
            return StageResult("plan", {}, metrics, [*notes, *_dry_run_notes(settings.prompt_prefix, first)])
        if metrics["num_new"]:
            write_job_tables(run.jobs, _old_and_new(run, grid.tables(ids, is_new)))
            run.publish(run.jobs)
    outputs: dict[str, Any] = {"jobs": run.shown(run.jobs), "first_frames": run.shown(run.first_frames)}
    return StageResult("plan", outputs, metrics, notes)


def _compare(run: RunFolder, ids: pa.Array) -> tuple[np.ndarray, np.ndarray, dict[str, Any], int]:
    """Compare a plan's ids with the jobs that were planned before.

    Returns:
        For each id whether it is its first occurrence and whether it is new (bool); counts; and how many known jobs
        are not in this plan.
    """
    known = job_columns(run.jobs, ["clip_id"])["clip_id"].combine_chunks() if run.jobs.exists() else ids.slice(0, 0)
    is_first = first_of_each(ids)
    is_new = is_first & ~np.asarray(pc.is_in(ids, value_set=known))
    num_new, num_kept = int(is_new.sum()), len(known) - int(pc.sum(pc.is_in(known, value_set=ids)).as_py() or 0)
    counts = {"num_jobs": len(known) + num_new, "num_new": num_new, "num_known": len(known)}
    return is_first, is_new, counts, num_kept


class PlanCounts:
    """Counts of the rows that were read; only the first errors are kept."""

    def __init__(self) -> None:
        self.num_rows = self.num_own_instruction = self.num_conditionings = self.num_refused = 0
        self.errors: list[UserError] = []

    def refuse(self, error: UserError) -> None:
        """Count a row that cannot be used."""
        self.num_refused += 1
        if len(self.errors) < NUM_ERRORS_SHOWN:
            self.errors.append(error)


def read_conditionings(
    rows: FrameRows, settings: Settings, run: RunFolder | None, counts: PlanCounts
) -> Iterator[Conditioning]:
    """Pair each usable first frame with its instructions, and store each distinct frame once.

    Args:
        rows: From `find_rows`.
        settings: Clip size, fit, prefix, new instructions and `num_first_frames`.
        run: Where frames are stored; None stores nothing.
        counts: Updated while rows are read, with an error for each that cannot be used.

    Yields:
        Conditionings in the rows' order.
    """
    is_text = settings.plan.condition == "text"
    most = None if is_text else settings.plan.num_first_frames
    hashes: dict[Path, str] = {}
    distinct: set[str] = set()
    for row in rows.rows:
        if isinstance(row, UserError):
            counts.refuse(row)
            continue
        counts.num_rows += 1
        counts.num_own_instruction += row.instruction is not None
        file = None if is_text else row.file
        if most is not None and len(distinct) >= most and file is not None and file not in hashes:
            continue
        try:
            instructions = instructions_of(row, rows.crosses, settings)
            if file is not None and file not in hashes:
                hashes[file] = store_frames(file, settings, run, rows.views, row.num_stacked)
                distinct.add(hashes[file])
        except UserError as error:
            counts.refuse(error)
            continue
        except OSError as error:
            if cannot_write := storage_error(error, run.first_frames if run else row.file or Path()):
                raise cannot_write from error
            counts.refuse(UserError(f"{row.source}: cannot be read", actual=error.strerror))
            continue
        first_seed = settings.seed if row.seed is None else row.seed
        counts.num_conditionings += len(instructions)
        sha256 = None if file is None else hashes[file]
        yield from (Conditioning(sha256, text, first_seed, row.source) for text in instructions)


def instructions_of(row: FrameRow, crosses: bool, settings: Settings) -> list[str]:
    """Return the instructions for a first frame: new ones where they apply, otherwise its own.

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


def _prompts_of(conditionings: Conditionings, settings: Settings) -> dict[str, str]:
    """Return each distinct prompt and where it comes from."""
    prompts = {}
    for text, source in conditionings.first_sources():
        prompts[settings.prompt_prefix + text] = source
    if settings.plan.negative_prompt:
        prompts.setdefault(settings.plan.negative_prompt, "plan.negative_prompt")
    return prompts


def _planned_prompts(run: RunFolder, model_sha256: str) -> list[str]:
    """Return the distinct prompts of the jobs that were planned before with the same model."""
    if not run.jobs.exists():
        return []
    jobs = job_columns(run.jobs, ["prompt", "model_sha256"])
    return pc.unique(jobs.filter(pc.equal(jobs["model_sha256"], model_sha256))["prompt"]).cast(pa.string()).to_pylist()


def _count_notes(num_again: int, num_kept: int) -> list[str]:
    notes = []
    if num_again:
        notes.append(f"{num_again} jobs have the same first frame, instruction and seed as another: made once")
    if num_kept:
        notes.append(f"{num_kept} jobs that were planned before with other settings are kept")
    return notes


def _dry_run_notes(prefix: str, instructions: list[str]) -> list[str]:
    return [
        *(f"prompt: {sample_prompt(prefix + text)}" for text in instructions),
        "max_disk_gib: an upper limit, with every frame as large as a key frame",
        "dry run: nothing was written",
    ]


def _old_and_new(run: RunFolder, new: Iterator[Any]) -> Iterator[pa.Table]:
    if run.jobs.exists():
        yield from iter_job_tables(run.jobs)
    yield from new


def _check_can_plan(settings: Settings) -> None:
    problems = Problems()
    for text in settings.plan.instructions:
        if not bare_instruction(text, settings.prompt_prefix):
            problems.add(
                "plan.instructions contains an empty instruction", actual=repr(text), allowed="the task in words"
            )
    video, wanted = settings.video, settings.plan
    if wanted.num_chunks > 1 and video.num_frames <= wanted.chunk_overlap:
        problems.add(
            "plan.chunk_overlap leaves nothing new in a chunk",
            actual=f"{wanted.chunk_overlap} of video.num_frames={video.num_frames}",
            allowed="fewer than a chunk's frames",
        )
    problems.raise_if_any("plan: settings that cannot work")


def _raise_nothing_usable(counts: PlanCounts, source: str) -> NoReturn:
    problems = Problems()
    problems.errors.extend(counts.errors)
    if counts.num_refused > len(counts.errors):
        problems.add(f"and {counts.num_refused - len(counts.errors)} more")
    problems.raise_if_any("no first frame can be used")
    raise UserError("the source names no first frame", actual=source)


def _model_of(settings: Settings, run: RunFolder, dry_run: bool) -> WorldModelSource:
    if dry_run and is_random_mini(settings.model.path) and not run.model.exists():
        # Building it would write.
        return WorldModelSource("mini-random", str(run.model), None, NOT_BUILT, model_type_name(settings.model))
    return resolve_world_model(settings.model, run)


def _most_bytes_a_clip(rows: FrameRows, settings: Settings) -> int:
    video = settings.video
    for row in rows.rows:
        try:
            if isinstance(row, UserError):
                continue
            if row.file is None or settings.plan.condition == "text":
                return 0  # there is no image to estimate from
            frame_HWC = fitted_frames(row.file, settings, rows.views, row.num_stacked)[: video.height]
        except (UserError, OSError):
            continue  # refused above, with its reason
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "key_frame.mp4"
            write_video(file, [frame_HWC], video.fps, video.codec, video.crf, video.gop)
            return file.stat().st_size * video.num_frames * settings.plan.num_chunks
    return 0


def _notes(
    rows: FrameRows, counts: PlanCounts, settings: Settings, run: RunFolder, adapter: AdapterChoice | None
) -> list[str]:
    notes = [f"first frames: {rows.kind}", *rows.notes]
    if settings.plan.instructions and counts.num_own_instruction and not rows.crosses:
        notes.append(
            f"{counts.num_own_instruction} first frames keep their own instruction; plan.instructions went to the "
            f"{counts.num_rows - counts.num_own_instruction} without one"
        )
    if adapter is None:
        missing = "plan.adapter=base" if settings.plan.adapter else f"no adapter in {run.adapter}"
        notes.append(f"{missing}: the base model generates the clips (dreamgen finetune trains an adapter)")
    if adapter is not None and (scales := sorted(set(adapter.distilled().values()))):
        named = ", ".join(f"{scale:g}" for scale in scales)
        notes.append(f"guidance of scale {named} is folded into the adapter: one pass a step")
    elif 0 < settings.plan.guidance_scale <= 1:
        notes.append(f"guidance_scale {settings.plan.guidance_scale:g} is at most 1, which turns guidance off")
    notes.extend("refused: " + str(error).replace("\n", "\n  ") for error in counts.errors)
    if counts.num_refused > NUM_ERRORS_SHOWN:
        notes.append(f"and {counts.num_refused - NUM_ERRORS_SHOWN} more were refused")
    return notes
