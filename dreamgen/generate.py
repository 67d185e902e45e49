"""One job -> one clip: the plain part of generate, which knows nothing of Ray.

Axes: B batch, T frames (latent frames in `latents_BCTHW`), C channels, H height, W width.
A `video_THWC` or `frame_HWC` is uint8, 0-255, RGB.
"""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import Cosmos2_5_PredictBasePipeline

from dreamgen.core.errors import UserError
from dreamgen.core.journal import read_journal
from dreamgen.core.records import Job, JournalRecord
from dreamgen.core.run_folder import RunFolder
from dreamgen.core.timeline import num_latent_frames
from dreamgen.core.video import frame_sha256, probe, read_image, write_video
from dreamgen.models.safety import Unguarded

STAGE = "generate"
NUM_LATENT_CHANNELS, LATENT_STRIDE_PX = 16, 8  # of the Wan VAE, which every Cosmos Predict 2.5 model uses
TEMPORARY_CLIP = re.compile(r"\.[0-9a-f]{20}\.(?P<pid>[0-9]+)-[0-9a-f]+\.tmp\.mp4")
STALE_AFTER_S = 600.0


class Rejected(Exception):
    """The guardrail refused a prompt or a clip: a result, not an error."""


def todo(run: RunFolder, jobs: Sequence[Job]) -> list[Job]:
    """List the jobs that are not done, in planned order.

    Done is a clip whose file is as large as its record says, or one that was rejected. A failed clip is not, nor a
    record without its file, nor a file without its record.
    """
    records = read_journal(run.journal, STAGE)
    return [job for job in jobs if not _is_done(run, records.get(job.clip_id))]


def make_clip(pipe: Cosmos2_5_PredictBasePipeline, job: Job, run: RunFolder) -> JournalRecord:
    """Dream one clip and write its mp4; whatever goes wrong with it stays with it.

    Args:
        pipe: From `load_world_model`.
        job: What to dream.
        run: Where its first frame lies and its clip goes.

    Returns:
        The record for the journal, which is to be written after this: ok with figures, rejected with the reason, or
        failed with type, message and traceback.
    """
    worker = f"{os.uname().nodename}:{os.getpid()}"
    file = run.clip_file(job.clip_id)
    is_guarded = not isinstance(pipe.safety_checker, Unguarded)
    figures: dict[str, Any] = {"safety_checker": is_guarded, "device": pipe.device.type}
    try:
        start_s = time.monotonic()
        first_frame_HWC = read_first_frame(run, job)
        video_THWC = dream_clip(pipe, job, first_frame_HWC)
        dreamed_s = time.monotonic()
        write_video(file, video_THWC, job.fps, job.codec, job.crf, job.gop)
        num_frames = probe(file).num_frames
        if num_frames != job.num_frames:
            raise RuntimeError(f"{file} has {num_frames} frames instead of {job.num_frames}")
        figures |= {
            "num_frames": num_frames,
            "num_bytes": file.stat().st_size,
            "dream_s": round(dreamed_s - start_s, 3),
            "encode_s": round(time.monotonic() - dreamed_s, 3),
        }
    except Rejected as verdict:
        return JournalRecord(job.clip_id, STAGE, "rejected", reason=str(verdict), figures=figures, worker=worker)
    except Exception as error:  # the clip's boundary
        return JournalRecord(
            job.clip_id, STAGE, "failed", error=f"{type(error).__name__}: {error}",
            traceback=traceback.format_exc(), figures=figures, worker=worker,
        )  # fmt: skip
    relative = str(file.relative_to(run.root))
    return JournalRecord(job.clip_id, STAGE, "ok", file=relative, figures=figures, worker=worker)


def dream_clip(pipe: Cosmos2_5_PredictBasePipeline, job: Job, first_frame_HWC: np.ndarray) -> np.ndarray:
    """Sample a clip that begins with a given frame.

    Args:
        pipe: From `load_world_model`.
        job: Prompt, size and sampler settings.
        first_frame_HWC: uint8, RGB, at the clip's size.

    Returns:
        video_THWC, uint8, RGB: what the pipeline's `output_type="np"` gives, times 255, rounded to nearest.

    Raises:
        Rejected: if the guardrail refuses the prompt or the clip.
    """
    checker = pipe.safety_checker
    checker.to(pipe.device)
    if not checker.check_text_safety(job.prompt):
        raise Rejected("the guardrail found the prompt unsafe")
    # Latents, because the pipeline's own check of the pixels fails on a clip that the guardrail blocks.
    latents_BCTHW = pipe(
        image=first_frame_HWC,
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        height=job.height,
        width=job.width,
        num_frames=job.num_frames,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        latents=noise_for(job).to(pipe.device),
        output_type="latent",
    ).frames
    video_THWC = checker.check_video_safety(decode(pipe, latents_BCTHW))
    if video_THWC is None:
        raise Rejected("the guardrail found the clip unsafe")
    return video_THWC


def noise_for(job: Job) -> torch.Tensor:
    """Draw a clip's noise from its id, so that it is the same on every worker and machine.

    Returns:
        latents_BCTHW, float32, on the CPU.
    """
    generator = torch.Generator("cpu").manual_seed(int(job.clip_id, 16) & (2**63 - 1))
    size = (job.height // LATENT_STRIDE_PX, job.width // LATENT_STRIDE_PX)
    return torch.randn(1, NUM_LATENT_CHANNELS, num_latent_frames(job.num_frames), *size, generator=generator)


@torch.no_grad()
def decode(pipe: Cosmos2_5_PredictBasePipeline, latents_BCTHW: torch.Tensor) -> np.ndarray:
    """Turn sampled latents into pixels.

    Args:
        pipe: Its VAE is used.
        latents_BCTHW: One clip, normalised as the transformer sees it.

    Returns:
        video_THWC, uint8, RGB.
    """
    mean = pipe.latents_mean.to(latents_BCTHW)
    inverse_std = pipe.latents_std.to(latents_BCTHW)  # despite its name
    latents_BCTHW = latents_BCTHW / inverse_std + mean
    video_BCTHW = pipe.vae.decode(latents_BCTHW.to(pipe.vae.dtype), return_dict=False)[0]
    video_THWC = (video_BCTHW[0].float() * 0.5 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return video_THWC.permute(1, 2, 3, 0).contiguous().cpu().numpy()


def read_first_frame(run: RunFolder, job: Job) -> np.ndarray:
    """Read a job's first frame and make sure that it is the one that was planned.

    Returns:
        frame_HWC, uint8, RGB, at the clip's size.

    Raises:
        UserError: if it is missing, damaged or another one.
    """
    path = run.first_frame_file(job.first_frame_sha256)
    frame_HWC = read_image(path)
    found = frame_sha256(frame_HWC)
    if found != job.first_frame_sha256:
        raise UserError(
            f"{path} is not the first frame that was planned",
            actual=f"pixels with hash {found[:12]}",
            allowed=job.first_frame_sha256[:12],
            next_step=f"dreamgen plan --out {run.root} writes it anew",
        )
    return frame_HWC


def remove_stale_temporaries(run: RunFolder) -> int:
    """Remove half-written clips of processes that are gone.

    A process on another machine cannot be seen from here, so a file that was written to lately is left alone.

    Returns:
        How many were removed.
    """
    num_removed = 0
    for path in run.clips.glob("??/.*.tmp.mp4"):
        match = TEMPORARY_CLIP.fullmatch(path.name)
        if match and not _is_alive(int(match["pid"])) and time.time() - path.stat().st_mtime > STALE_AFTER_S:
            path.unlink(missing_ok=True)
            num_removed += 1
    return num_removed


def mean_figure(records: Sequence[JournalRecord], *names: str) -> float | None:
    """Return the mean, over the clips that were made, of the sum of the named figures; None without clips."""
    sums = [sum(record.figures[name] for name in names) for record in records if record.status == "ok"]
    return sum(sums) / len(sums) if sums else None


def _is_done(run: RunFolder, record: JournalRecord | None) -> bool:
    if record is None or record.status == "failed":
        return False
    if record.status == "rejected":
        return True
    file = run.clip_file(record.clip_id)
    return file.is_file() and record.figures.get("num_bytes") in (None, file.stat().st_size)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True
