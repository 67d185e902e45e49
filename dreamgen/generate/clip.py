"""One prompt -> its encoded text, one job -> its clip, without Ray.

Axes: T frames, C channels, H height, W width. A `video_THWC` is uint8, 0-255, RGB.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dreamgen.data.conditioning_frames import read_conditioning_frames
from dreamgen.data.video import probe, write_video
from dreamgen.generate.clip_generator import ClipGenerator
from dreamgen.generate.clip_status import STAGE
from dreamgen.generate.texts import PromptTask, write_text
from dreamgen.models.world_model import Rejected
from dreamgen.run.records import Job, JournalRecord
from dreamgen.run.write_errors import storage_error

if TYPE_CHECKING:
    import torch


def make_clip(generator: ClipGenerator, job: Job) -> JournalRecord:
    """Generate one clip and write its mp4; an error that concerns this clip alone becomes its record.

    Two threads may call this at once: the GPU samples one clip while the other one is encoded to mp4.

    Args:
        generator: The loaded model.
        job: The clip to make.

    Returns:
        The record, to be written to the journal after the clip: ok with metrics, rejected with the reason, or failed
        with type, message and traceback.

    Raises:
        CannotWrite: if the disk is full or not writable, so that no other clip could be written either.
    """
    worker, run = f"{os.uname().nodename}:{os.getpid()}", generator.run
    file = run.clip_file(job.clip_id)
    metrics: dict[str, Any] = {
        "safety_checker": generator.model.has_safety_checker, "device": generator.model.device.type,
    }  # fmt: skip
    try:
        with generator.gpu_lock:
            start_s = time.monotonic()
            video_THWC, wait_for_copy = generate_clip(generator, job)
        wait_for_copy()
        sampled_s = time.monotonic()
        with generator.safety_lock:
            checked_THWC = generator.model.check_video(video_THWC.numpy())
        write_video(file, checked_THWC, job.fps, job.codec, job.crf, job.gop)
        num_frames = probe(file).num_frames
        if num_frames != job.num_frames:
            raise RuntimeError(f"{file} has {num_frames} frames instead of {job.num_frames}")
        metrics |= {
            "num_frames": num_frames,
            "num_bytes": file.stat().st_size,
            "dream_s": round(sampled_s - start_s, 3),
            "encode_s": round(time.monotonic() - sampled_s, 3),
        }
        run.publish(file, keep=False)
    except Rejected as verdict:
        return JournalRecord(job.clip_id, STAGE, "rejected", reason=str(verdict), metrics=metrics, worker=worker)
    except Exception as error:  # one clip's failure does not end the run
        if stop := storage_error(error, file):
            raise stop from error
        return JournalRecord.of_error(job.clip_id, STAGE, error, metrics=metrics, worker=worker)
    relative = str(file.relative_to(run.root))
    return JournalRecord(job.clip_id, STAGE, "ok", file=relative, metrics=metrics, worker=worker)


def encode_prompt(generator: ClipGenerator, task: PromptTask) -> JournalRecord:
    """Encode a prompt and write its text; an error becomes its record.

    Args:
        generator: With a loaded text encoder.
        task: The prompt.

    Returns:
        The record, for the pool only; the file shows that the text exists.

    Raises:
        CannotWrite: if the disk is full or not writable.
    """
    worker = f"{os.uname().nodename}:{os.getpid()}"
    try:
        with generator.gpu_lock:
            if task.projected_by is not None:
                generator.prepare(task.projected_by)
            text_1LD = generator.model.encode_prompt(task.prompt)
        write_text(generator.run, task.clip_id, text_1LD)
    except Exception as error:  # the driver reports it
        if stop := storage_error(error, generator.run.texts):
            raise stop from error
        return JournalRecord.of_error(task.clip_id, STAGE, error, worker=worker)
    return JournalRecord(task.clip_id, STAGE, "ok", worker=worker)


def generate_clip(generator: ClipGenerator, job: Job) -> tuple[torch.Tensor, Callable[[], None]]:
    """Sample a clip; the GPU may still be busy when this returns.

    Args:
        generator: The loaded model.
        job: Prompt, size and sampler settings.

    Returns:
        video_THWC on the CPU, and a function that waits until its pixels are there.

    Raises:
        Rejected: if the safety checker refuses the prompt.
    """
    with generator.safety_lock:
        generator.model.check_prompt(job.prompt)
    conditioning_THWC = read_conditioning_frames(generator.run, job)
    generator.prepare(job)
    prediction = generator.model.sample_clip(job, conditioning_THWC, generator.text_of(job))
    return _to_host(prediction.video_THWC)


def _to_host(video_THWC: torch.Tensor) -> tuple[torch.Tensor, Callable[[], None]]:
    if video_THWC.device.type != "cuda":
        return video_THWC, lambda: None
    import torch

    # Into pinned memory: the copy waits for this clip's last kernel only, and the next clip's kernels can be queued.
    host_THWC = torch.empty(video_THWC.shape, dtype=video_THWC.dtype, pin_memory=True)
    host_THWC.copy_(video_THWC, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return host_THWC, copied.synchronize
