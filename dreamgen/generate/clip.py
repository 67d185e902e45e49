"""One prompt -> its text, one job -> its clip: the plain part of generate, which knows nothing of Ray.

Axes: B batch, T frames (latent frames in `latents_BCTHW`), C channels, H height, W width.
A `video_THWC` is uint8, 0-255, RGB.
"""

from __future__ import annotations

import os
import time
import traceback
from typing import Any

import numpy as np
import torch

from dreamgen.data.conditioning_frames import read_conditioning_frames
from dreamgen.data.timeline import num_latent_frames
from dreamgen.data.video import probe, write_video
from dreamgen.generate.clip_generator import ClipGenerator
from dreamgen.generate.clip_status import STAGE
from dreamgen.generate.texts import PromptTask, write_text
from dreamgen.models.cosmos_predict25.pixels import decode, encode_conditioning
from dreamgen.models.cosmos_predict25.safety import NoSafetyChecker
from dreamgen.models.cosmos_predict25.sampler import Guidance, sample_latents
from dreamgen.models.cosmos_predict25.step_skipping import StepSkipping
from dreamgen.models.cosmos_predict25.text import encode_text
from dreamgen.run.records import Job, JournalRecord
from dreamgen.run.write_errors import storage_error

NUM_LATENT_CHANNELS, LATENT_STRIDE_PX = 16, 8  # of the Wan VAE, which every Cosmos Predict 2.5 model uses


class Rejected(Exception):
    """The guardrail refused a prompt or a clip: a result, not an error."""


def make_clip(maker: ClipGenerator, job: Job) -> JournalRecord:
    """Dream one clip and write its mp4; whatever goes wrong with it stays with it.

    Two threads may call this at once: the GPU samples one clip while the other one is encoded.

    Args:
        maker: The loaded model.
        job: What to dream.

    Returns:
        The record for the journal, which is to be written after this: ok with figures, rejected with the reason, or
        failed with type, message and traceback.

    Raises:
        CannotWrite: if the disk is full or cannot be written to, which no other clip would escape.
    """
    worker, run = f"{os.uname().nodename}:{os.getpid()}", maker.run
    file = run.clip_file(job.clip_id)
    is_guarded = not isinstance(maker.pipe.safety_checker, NoSafetyChecker)
    metrics: dict[str, Any] = {"safety_checker": is_guarded, "device": maker.pipe.device.type}
    try:
        with maker.gpu:
            start_s = time.monotonic()
            video_THWC, copied = dream_clip(maker, job)
        copied()
        dreamed_s = time.monotonic()
        video_THWC = _checked(maker, video_THWC.numpy())
        write_video(file, video_THWC, job.fps, job.codec, job.crf, job.gop)
        num_frames = probe(file).num_frames
        if num_frames != job.num_frames:
            raise RuntimeError(f"{file} has {num_frames} frames instead of {job.num_frames}")
        metrics |= {
            "num_frames": num_frames,
            "num_bytes": file.stat().st_size,
            "dream_s": round(dreamed_s - start_s, 3),
            "encode_s": round(time.monotonic() - dreamed_s, 3),
        }
        run.publish(file, keep=False)
    except Rejected as verdict:
        return JournalRecord(job.clip_id, STAGE, "rejected", reason=str(verdict), metrics=metrics, worker=worker)
    except Exception as error:  # the clip's boundary
        if stop := storage_error(error, file):
            raise stop from error
        return JournalRecord(
            job.clip_id, STAGE, "failed", error=f"{type(error).__name__}: {error}",
            traceback=traceback.format_exc(), metrics=metrics, worker=worker,
        )  # fmt: skip
    relative = str(file.relative_to(run.root))
    return JournalRecord(job.clip_id, STAGE, "ok", file=relative, metrics=metrics, worker=worker)


def encode_prompt(maker: ClipGenerator, task: PromptTask) -> JournalRecord:
    """Encode a prompt and write its projected text; whatever goes wrong stays with it.

    Args:
        maker: Whose pipeline has its text encoder.
        task: The prompt.

    Returns:
        The record, for the pool alone: that a text is there, its file says.
    """
    worker = f"{os.uname().nodename}:{os.getpid()}"
    try:
        with maker.gpu:
            if task.projected_by is not None:
                maker.prepare(task.projected_by)
            text_1LD = encode_text(maker.pipe, task.prompt)
        write_text(maker.run, task.clip_id, text_1LD)
    except Exception as error:  # the prompt's boundary
        return JournalRecord(
            task.clip_id, STAGE, "failed", error=f"{type(error).__name__}: {error}",
            traceback=traceback.format_exc(), worker=worker,
        )  # fmt: skip
    return JournalRecord(task.clip_id, STAGE, "ok", worker=worker)


def dream_clip(maker: ClipGenerator, job: Job) -> tuple[torch.Tensor, Any]:
    """Sample a clip, chunk by chunk; the GPU may still be at work when this returns.

    Args:
        maker: The loaded model.
        job: Prompt, size and sampler settings.

    Returns:
        video_THWC, uint8, RGB, on the CPU, and a function that waits until it is there: what the pipeline's
        `output_type="np"` gives, times 255, rounded to nearest.

    Raises:
        Rejected: if the guardrail refuses the prompt.
    """
    checker = maker.pipe.safety_checker
    with maker.guard:
        checker.to(maker.pipe.device)
        if not checker.check_text_safety(job.prompt):
            raise Rejected("the guardrail found the prompt unsafe")
    given_THWC = read_conditioning_frames(maker.run, job)
    maker.prepare(job)
    chunks = [decode(maker.pipe, sample_chunk(maker, job, 0, given_THWC))]
    for chunk in range(1, job.num_chunks):
        video_THWC = decode(maker.pipe, sample_chunk(maker, job, chunk, chunks[-1][-job.chunk_overlap :]))
        # What a chunk begins with is the end of the one before: it is in the clip once.
        chunks[-1] = chunks[-1][: len(chunks[-1]) - job.chunk_overlap]
        chunks.append(video_THWC)
    return _to_host(torch.cat(chunks))


def sample_chunk(
    maker: ClipGenerator, job: Job, chunk: int, given_THWC: np.ndarray | torch.Tensor | None
) -> torch.Tensor:
    """Sample the latents of one chunk of a clip.

    Args:
        maker: The loaded model, prepared for the job.
        job: Sampler settings.
        chunk: Its number.
        given_THWC: uint8, RGB: the frames that it begins with; None for text alone.

    Returns:
        latents_BCTHW, float32.
    """
    pipe = maker.pipe
    given_BCTHW = None if given_THWC is None else encode_conditioning(pipe, given_THWC)
    guidance = None
    if job.guidance_scale > 1:  # as the pipeline takes it
        guidance = Guidance(maker.text(job, job.negative_prompt), job.guidance_scale)
    return sample_latents(
        pipe.transformer,
        maker.table(job.num_inference_steps),
        noise_for(job, chunk).to(pipe.device),
        given_BCTHW,
        maker.text(job, job.prompt),
        guidance,
        StepSkipping.from_json(job.shortcuts),
        maker.parts,
    )


def noise_for(job: Job, chunk: int = 0) -> torch.Tensor:
    """Draw a clip's noise from its id, so that it is the same on every worker and machine.

    Returns:
        latents_BCTHW, float32, on the CPU; each chunk has noise of its own.
    """
    generator = torch.Generator("cpu").manual_seed((int(job.clip_id, 16) + chunk) & (2**63 - 1))
    size = (job.height // LATENT_STRIDE_PX, job.width // LATENT_STRIDE_PX)
    return torch.randn(1, NUM_LATENT_CHANNELS, num_latent_frames(job.frames_a_chunk), *size, generator=generator)


def _checked(maker: ClipGenerator, video_THWC: np.ndarray) -> np.ndarray:
    with maker.guard:
        video_THWC = maker.pipe.safety_checker.check_video_safety(video_THWC)
    if video_THWC is None:
        raise Rejected("the guardrail found the clip unsafe")
    return video_THWC


def _to_host(video_THWC: torch.Tensor) -> tuple[torch.Tensor, Any]:
    if video_THWC.device.type != "cuda":
        return video_THWC, lambda: None
    # Into pinned memory, so that the copy waits for this clip's last kernel alone and the next clip's are queued.
    host_THWC = torch.empty(video_THWC.shape, dtype=video_THWC.dtype, pin_memory=True)
    host_THWC.copy_(video_THWC, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return host_THWC, copied.synchronize
