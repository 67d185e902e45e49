"""Each distinct prompt is encoded once and stored in the run folder, where all workers read it.

A text encoder may take 15 GB of a GPU; it is unloaded before the first clip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreamgen.errors import UserError, quoted
from dreamgen.run.files import atomic_file
from dreamgen.run.records import Job
from dreamgen.run.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

# The fields of a job that determine its texts.
TEXT_FIELDS = ("prompt", "negative_prompt", "guidance_scale", "model_sha256", "adapter_sha256", "dtype")


@dataclass(frozen=True)
class PromptTask:
    """A prompt to encode.

    Args:
        clip_id: Key of the prompt, which names its file; named like a clip's, as the pool schedules both.
        prompt: The text.
        projected_by: A job whose adapter holds all weights, including the text projection; None: the base model's.
    """

    clip_id: str
    prompt: str
    projected_by: Job | None

    @property
    def task_id(self) -> str:
        """Return the id that the worker pool knows the task by."""
        return self.clip_id


def prompt_tasks(run: RunFolder, jobs: Iterable[Job], full_adapters: frozenset[str] = frozenset()) -> list[PromptTask]:
    """List the prompts of the jobs that are not encoded yet, each once.

    Args:
        run: Where texts are stored.
        jobs: Of the clips to make.
        full_adapters: Hashes of the adapters that hold all weights, including the text projection.
    """
    tasks: dict[str, PromptTask] = {}
    for job in jobs:
        own_projection = job.adapter_sha256 in full_adapters
        for prompt in prompts_of(job):
            key = text_key(job, prompt, own_projection)
            tasks.setdefault(key, PromptTask(key, prompt, job if own_projection else None))
    return [task for task in tasks.values() if not run.fetch(text_file(run, task.clip_id)).is_file()]


def prompts_of(job: Job) -> list[str]:
    """Return the prompts that a job uses; without guidance there is no negative prompt."""
    return [job.prompt, job.negative_prompt] if job.guidance_scale > 1 else [job.prompt]


def text_key(job: Job, prompt: str, own_projection: bool) -> str:
    """Return the hash of everything that determines an encoded prompt, 32 hex digits.

    Args:
        job: For its model and precision.
        prompt: The text.
        own_projection: Whether the job's adapter holds all weights, including the text projection.
    """
    content = [job.model_sha256, job.adapter_sha256 if own_projection else None, job.dtype, prompt]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:32]


def text_file(run: RunFolder, key: str) -> Path:
    """Return the file of an encoded prompt."""
    return run.texts / key[:2] / f"{key}.safetensors"


def write_text(run: RunFolder, key: str, text_1LD: torch.Tensor) -> None:
    """Write an encoded prompt, atomically."""
    from safetensors.torch import save_file

    with atomic_file(text_file(run, key)) as temporary:
        save_file({"text_1LD": text_1LD.cpu().contiguous()}, temporary)
    run.publish(text_file(run, key))


def read_text(run: RunFolder, key: str, device: torch.device) -> torch.Tensor:
    """Read an encoded prompt.

    Returns:
        text_1LD, in the model's dtype.

    Raises:
        UserError: if it is missing.
    """
    from safetensors.torch import load_file

    path = run.fetch(text_file(run, key))
    if not path.is_file():
        raise UserError(
            f"{path} is missing, the encoded prompt of a clip",
            next_step=f"dreamgen generate --out {quoted(run.root)} encodes it again",
        )
    return load_file(path)["text_1LD"].to(device)
