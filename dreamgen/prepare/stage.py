"""Demonstrations -> training set."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING

from dreamgen.config.settings import Settings
from dreamgen.cores import usable_cores
from dreamgen.data.conditioning_frames import NUM_STORED_FRAMES
from dreamgen.data.frames import FrameReader
from dreamgen.data.prompts import sample_prompt
from dreamgen.data.views import View, tiled_views
from dreamgen.errors import UserError
from dreamgen.models.prompt_length import check_prompt_lengths
from dreamgen.models.world_model import check_size
from dreamgen.prepare.build import ClipRow, build_clip, row_of, write_tables
from dreamgen.prepare.detect import open_source
from dreamgen.prepare.sources.source import Source
from dreamgen.prepare.survey import SurveyedClip, resampling_findings, survey
from dreamgen.progress import Progress, log
from dreamgen.run.files import atomic_folder
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder
from dreamgen.run.signals import follow_parent, workers_end_on_interrupt

if TYPE_CHECKING:
    from ctypes import Array, c_longlong

__all__ = ["inspect", "open_source", "prepare"]

# H.264 at crf 18 with a key frame every two: 0.12 at 256x256 and 0.08 at 432x768, measured on simulated kitchen demos.
VIDEO_BYTES_PER_PIXEL = 0.1
PNG_BYTES_PER_PIXEL = 1.5
NUM_SAMPLES = 3
MANY_CLIPS = 64  # for fewer, starting processes takes longer than the work
COUNT_EVERY_S = 1.0  # how often the clips that the processes have done are counted
_counts: Array[c_longlong] | None = None  # in such a process, as `_start_worker` got them


def prepare(settings: Settings, dry_run: bool = False) -> StageResult:
    """Write the training set of a run: `train/`, whole or not at all.

    Args:
        settings: `demos`, `out`, `video`, `prepare` and `prompt_prefix` are used.
        dry_run: Write nothing; see `inspect`.

    Returns:
        Counts; as notes, findings about the source and each refused clip with its reason.

    Raises:
        UserError: if the demos cannot be used, `train/` exists, or every clip is refused.
    """
    if dry_run:
        return inspect(settings)
    run = RunFolder.of(settings)
    if run.train.exists():
        raise UserError(
            f"{run.train} already exists",
            allowed="a run without a training set",
            next_step="add --resume to keep it and continue, or choose another --out",
        )
    source = _open(settings, may_download=True)
    views = source.features.views
    surveyed = list(survey(source.clips, settings, views))
    _need_one_left([row_of(clip) for clip in surveyed], source)
    texts = _text_lengths(surveyed, settings, run)
    is_new_run = not run.root.exists()
    try:
        with atomic_folder(run.train) as folder:
            rows = _build_all(folder, surveyed, settings, views)
            _need_one_left(rows, source)
            write_tables(folder, rows, source.features, settings)
    except UserError:
        if is_new_run and not any(run.root.iterdir()):
            run.root.rmdir()
        raise
    outputs = {"train": run.train, "summary": run.train / "summary.csv"}
    notes = [*_findings(source, surveyed, settings), *texts, *_refused_clips(rows)]
    return StageResult("prepare", outputs, _statistics(rows, settings), notes)


def _build_all(
    folder: Path, surveyed: Sequence[SurveyedClip], settings: Settings, views: Sequence[View]
) -> list[ClipRow]:
    """Write all clips; many of them on several processes, each of which takes clips that follow one another."""
    num_workers = settings.prepare.num_workers or (usable_cores() if len(surveyed) > MANY_CLIPS else 1)
    with Progress("prepare", len(surveyed)) as progress:
        if num_workers == 1:
            rows = []
            for row in _build(folder, surveyed, settings, views):
                rows.append(row)
                progress.add(rejected=row.status == "refused")
            return rows
        size = -(-len(surveyed) // num_workers)  # a packed mp4 is decoded up to a process's first clip
        # Spawned: a fork of a process in which libraries run threads may hang.
        context = multiprocessing.get_context("spawn")
        counts = context.RawArray("q", 2 * num_workers)
        pool = ProcessPoolExecutor(num_workers, context, _start_worker, (os.getpid(), counts))
        with pool, workers_end_on_interrupt():
            futures = [pool.submit(_build_some, share, folder, some, settings, views)
                       for share, some in enumerate(batched(surveyed, size))]  # fmt: skip
            running = set(futures)
            while running:
                finished, running = wait(running, COUNT_EVERY_S, FIRST_COMPLETED)
                for future in finished:
                    future.result()  # raises the error of its process
                num_done, num_refused = sum(counts[::2]), sum(counts[1::2])
                if num_done > progress.done:
                    progress.add(num_done - progress.done, rejected=num_refused - progress.rejected)
            return [row for future in futures for row in future.result()]


def _start_worker(parent: int, counts: Array[c_longlong]) -> None:
    """Prepare a process for `_build_some`.

    Args:
        parent: Id of the process that waits for it.
        counts: Shared with that process: for each share of the clips how many are done, and how many of these refused.
    """
    global _counts
    follow_parent(parent)
    _counts = counts


def _build_some(
    share: int, folder: Path, surveyed: Sequence[SurveyedClip], settings: Settings, views: Sequence[View]
) -> list[ClipRow]:
    assert _counts is not None, "only for processes that `_start_worker` has prepared"
    rows = []
    for row in _build(folder, surveyed, settings, views):
        rows.append(row)
        # Without a lock, which a killed process could leave closed: only this process counts its share.
        _counts[2 * share + 1] += row.status == "refused"
        _counts[2 * share] += 1
    return rows


def _build(
    folder: Path, surveyed: Sequence[SurveyedClip], settings: Settings, views: Sequence[View]
) -> Iterator[ClipRow]:
    readers = [FrameReader() for _ in views or (None,)]
    try:
        for clip in surveyed:
            yield build_clip(folder, clip, readers, settings, views)
    finally:
        for reader in readers:
            reader.close()


@dataclass(frozen=True)
class Demos:
    """What a job has to learn from.

    Args:
        lengths: Frames of each usable demonstration, at the clip's rate; at least one.
        action_names: Dimensions of the actions; empty if there are none.
        state_names: Dimensions of the states.
    """

    lengths: tuple[int, ...]
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]


def demos_of(settings: Settings, may_download: bool) -> Demos:
    """Find out what the demonstrations hold, without decoding anything.

    Raises:
        UserError: if they cannot be used.
    """
    source = _open(settings, may_download)
    rows = [row_of(clip) for clip in survey(source.clips, settings, source.features.views)]
    _need_one_left(rows, source)
    lengths = tuple(row.num_frames for row in rows if row.status != "refused")
    return Demos(lengths, source.features.action_names, source.features.state_names)


def inspect(settings: Settings) -> StageResult:
    """Report what `prepare` would do, without decoding or writing anything.

    Args:
        settings: As for `prepare`; `out` may be missing.

    Returns:
        Counts and an estimate of disk space; as notes, three sample prompts, findings and errors.

    Raises:
        UserError: if the demos cannot be used.
    """
    source = _open(settings, may_download=False)
    surveyed = list(survey(source.clips, settings, source.features.views))
    rows = [row_of(clip) for clip in surveyed]
    metrics = _statistics(rows, settings)
    kept = [row for row in rows if row.status != "refused"]
    num_first_frames = len(kept) * NUM_STORED_FRAMES
    bytes_per_pixel = metrics["frames"] * VIDEO_BYTES_PER_PIXEL + num_first_frames * PNG_BYTES_PER_PIXEL
    num_bytes = settings.video.height * settings.video.width * bytes_per_pixel
    prompts = [f"prompt of {row.name}: {sample_prompt(settings.prompt_prefix + row.instruction)}"
               for row in kept[:NUM_SAMPLES]]  # fmt: skip
    texts = _text_lengths(surveyed, settings, RunFolder(Path(settings.out or "")))
    notes = [*prompts, *_findings(source, surveyed, settings), *texts, *_refused_clips(rows)]
    return StageResult("prepare", {}, {**metrics, "disk_mib": round(num_bytes / 2**20, 3)}, notes)


def _open(settings: Settings, may_download: bool) -> Source:
    check_size(settings)
    if not settings.demos:
        raise UserError("no demonstrations given", next_step="add --demos FOLDER")
    source = open_source(settings.demos, settings.prepare, settings.prompt_prefix, may_download)
    log(f"{settings.demos}: {source.layout}, {len(source.clips)} clips")
    if not source.cameras:
        return source
    views = tiled_views(source.cameras, settings.video.height, settings.video.width)
    return replace(source, features=replace(source.features, views=views))


def _need_one_left(rows: Sequence[ClipRow], source: Source) -> None:
    if all(row.status == "refused" for row in rows):
        reasons = "\n".join(f"- {note}" for note in _refused_clips(rows))
        raise UserError(f"no clip of the {source.layout} can be used ({len(rows)} refused)\n{reasons}")


def _statistics(rows: Sequence[ClipRow], settings: Settings) -> dict[str, float]:
    counts = Counter(row.status for row in rows)
    num_frames = sum(row.num_frames for row in rows)
    return {
        **{status: counts[status] for status in ("used", "changed", "refused")},
        "frames": num_frames,
        "seconds": round(num_frames / settings.video.fps, 2),
    }


def _findings(source: Source, surveyed: Sequence[SurveyedClip], settings: Settings) -> list[str]:
    has_actions = bool(source.features.action_names)
    return [*source.findings, *(resampling_findings(surveyed, settings) if has_actions else ())]


def _text_lengths(surveyed: Sequence[SurveyedClip], settings: Settings, run: RunFolder) -> list[str]:
    """Measure the prompts of the clips that are used; nothing is downloaded for that."""
    sources: dict[str, str] = {}
    for clip in surveyed:
        if not clip.refused:
            sources.setdefault(settings.prompt_prefix + clip.clip.instruction, clip.clip.origin)
    return check_prompt_lengths(settings.model, run.model, sources, may_download=False)


def _refused_clips(rows: Sequence[ClipRow]) -> list[str]:
    return [f"refused {row.source}: {row.detail}" for row in rows if row.status == "refused"]
