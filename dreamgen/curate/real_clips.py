"""`dreamgen curate --calibrate`: thresholds from the run's demonstrations, which are measured as clips are.

Axes: T frames, H height, W width, C channels, N clips.
"""

from __future__ import annotations

import csv
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import batched
from pathlib import Path

import numpy as np
import yaml

from dreamgen.config.loading import MAX_H264_CRF
from dreamgen.config.settings import Settings
from dreamgen.curate.calibration import calibrate
from dreamgen.curate.measure import measure_clip
from dreamgen.data.clip_context import ClipContext
from dreamgen.data.images import frame_sha256, write_png
from dreamgen.data.video import iter_frames, write_video
from dreamgen.errors import UserError, quoted
from dreamgen.extensions.score import SCORES
from dreamgen.models.devices import resolve_device
from dreamgen.models.world_model import WorldModelSource, model_type_name, resolve_world_model
from dreamgen.progress import Progress
from dreamgen.run.files import inside, write_text
from dreamgen.run.records import Job, StageResult
from dreamgen.run.run_folder import RunFolder

LEAST_CLIPS = 5
MAX_CLIPS = 400
MAX_VAE_CLIPS = 24  # of these also count after the VAE, which takes seconds a clip
LOWER_QUALITY = 10  # added to the crf: clips that were encoded worse are real clips too
FALSE_ALARMS = 0.02
COSMOS = "cosmos_predict25"  # in `WORLD_MODELS`


@dataclass(frozen=True)
class RealClip:
    """A part of a demonstration that is as long as a clip.

    Args:
        video_THWC: Its frames, uint8, 0-255, RGB.
        instruction: Of the demonstration.
        recording: File name of the demonstration's video.
    """

    video_THWC: np.ndarray
    instruction: str
    recording: str


def calibrate_run(settings: Settings) -> StageResult:
    """Set thresholds from the demonstrations and write them as a preset.

    Each part of a demonstration counts as it would be encoded as a clip, encoded at a lower quality, and, with
    `curate.calibrate_through_vae`, after the model's VAE: what no world model can do better must not be rejected.
    Scores of actions keep their thresholds: recorded actions are not what an inverse-dynamics model gives for clips.

    Args:
        settings: Of a run whose training set exists.

    Returns:
        The preset, with the share of real clips that thresholds from other demonstrations reject.

    Raises:
        UserError: if there are fewer than `LEAST_CLIPS` real clips, or the VAE cannot be loaded.
    """
    run = RunFolder.of(settings)
    path, metrics = run.scores / "calibrated.yaml", [score for _, score in SCORES.items() if score.is_calibrated]
    trip = _vae_trip(settings, run) if settings.curate.calibrate_through_vae else None
    rows: list[dict[str, float]] = []
    recordings: list[str] = []
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, Progress("calibrate", MAX_CLIPS) as progress:
        for number, clip in zip(range(MAX_CLIPS), real_clips(settings, run), strict=False):
            for kind, video_THWC, crf in _variants(clip, settings.video.crf, trip if number < MAX_VAE_CLIPS else None):
                rows.append(_measured(RunFolder(Path(folder) / f"{len(rows)}"), settings, clip, video_THWC, crf))
                recordings.append(clip.recording)
                kinds[kind] += 1
            progress.add()
    if kinds["as it is"] < LEAST_CLIPS:
        raise UserError(
            "too few real clips to calibrate on", actual=f"{kinds['as it is']} parts of {settings.video.num_frames} "
            f"frames in {run.train}", allowed=f"at least {LEAST_CLIPS}", next_step="prepare more demonstrations",
        )  # fmt: skip
    table = {metric.name: np.array([row[metric.name] for row in rows]) for metric in metrics}
    found = calibrate(table, recordings, metrics, FALSE_ALARMS)
    low, high = found.interval
    write_text(path, yaml.safe_dump({"curate": found.limits}, sort_keys=False))
    notes = [
        f"thresholds from other demonstrations reject {found.num_rejected} of {found.num_clips} real clips: "
        f"{found.num_rejected / found.num_clips:.1%}, 95 % interval {low:.1%} to {high:.1%}",
        *(f"{setting}: {limit:g}" for setting, limit in found.limits.items()),
        f"to use them:  dreamgen curate --out {quoted(run.root)} --config_path {quoted(path)}",
    ]
    counts = {"num_recordings": len(set(recordings)), "num_clips": kinds["as it is"], "num_after_vae": kinds["VAE"]}
    rate = {"rejected": found.num_rejected / found.num_clips, "rejected_low": low, "rejected_high": high}
    return StageResult("curate", {"thresholds": path}, {**counts, **rate}, notes)


def real_clips(settings: Settings, run: RunFolder) -> Iterator[RealClip]:
    """Yield the parts of the training set's videos, one after another; a rest shorter than a clip is left out."""
    num = settings.video.num_frames
    with run.need(run.train / "metadata.csv", "prepare").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for number, row in enumerate(rows, start=2):
        video = inside(run.train, row["file_name"], f"{run.train / 'metadata.csv'}, line {number}")
        for frames in batched(iter_frames(video), num):
            if len(frames) == num:
                yield RealClip(np.stack(frames), row["instruction"], video.stem)


def _variants(
    clip: RealClip, crf: int, trip: Callable[[np.ndarray], np.ndarray] | None
) -> Iterator[tuple[str, np.ndarray, int]]:
    """Yield what happens to a real clip: its name, the frames to encode, and the crf."""
    yield "as it is", clip.video_THWC, crf
    yield "encoded worse", clip.video_THWC, min(crf + LOWER_QUALITY, MAX_H264_CRF)
    if trip is not None:
        yield "VAE", trip(clip.video_THWC), crf


def _measured(run: RunFolder, settings: Settings, clip: RealClip, video_THWC: np.ndarray, crf: int) -> dict[str, float]:
    """Write a real clip as generate would, measure it, and remove it again."""
    job = _job(settings, clip, crf)
    write_png(run.first_frame_file(job.first_frame_sha256 or ""), clip.video_THWC[0])
    write_video(
        run.clip_file(job.clip_id), video_THWC, settings.video.fps, settings.video.codec, crf, settings.video.gop
    )
    record = measure_clip(ClipContext(run, job))
    shutil.rmtree(run.root)
    if record.status == "failed":
        raise UserError(f"a part of {clip.recording} cannot be measured", actual=record.error)
    values = (record.metrics.get(score.name) for _, score in SCORES.items())
    return {
        score.name: math.nan if value is None else value
        for (_, score), value in zip(SCORES.items(), values, strict=True)
    }


def _job(settings: Settings, clip: RealClip, crf: int) -> Job:
    """Return the job that a real clip could have been made for."""
    num, height, width, _ = clip.video_THWC.shape
    sha256 = frame_sha256(clip.video_THWC[0])
    return Job(
        clip_id=sha256[:20], first_frame_sha256=sha256, num_conditioning_frames=1, instruction=clip.instruction,
        prompt=clip.instruction, negative_prompt="", seed=0, height=height, width=width, num_frames=num, num_chunks=1,
        chunk_overlap=1, fps=settings.video.fps, num_inference_steps=1, guidance_scale=1.0, level="exact",
        step_skipping="{}", model="", model_sha256="", adapter=None, adapter_sha256=None, dtype="float32",
        codec=settings.video.codec, crf=crf, gop=settings.video.gop, source=clip.recording,
    )  # fmt: skip


def source_of_vae(settings: Settings, run: RunFolder) -> WorldModelSource | None:
    """Return the run's model, whose VAE can be loaded; None for a kind of model that has none."""
    if model_type_name(settings.model) != COSMOS:
        return None
    source = resolve_world_model(settings.model, run)
    if Path(source.path).is_dir():
        source = replace(source, path=str(Path(source.path).resolve()))  # workers run in another folder
    return source


def _vae_trip(settings: Settings, run: RunFolder) -> Callable[[np.ndarray], np.ndarray] | None:
    """Load the VAE of the run's model, if it has one."""
    source = source_of_vae(settings, run)
    if source is None:
        return None
    from dreamgen.models.cosmos_predict25.round_trip import vae_round_trip

    return vae_round_trip(source, resolve_device(settings.model.device))
