"""Each distinct prompt of a job encoded once: the text encoder's answer, projected, is what travels to the workers.

The real text encoder takes 15 GB of a GPU and its answer 103 MB a prompt; projected it is 1 MB, and the encoder is gone
before the first clip is begun.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dreamgen.errors import UserError
from dreamgen.run.files import atomic_file
from dreamgen.run.records import Job
from dreamgen.run.run_folder import RunFolder

# The fields of a job that its texts hang on.
DETERMINE_A_TEXT = ("prompt", "negative_prompt", "guidance_scale", "model_sha256", "adapter_sha256", "dtype")


@dataclass(frozen=True)
class PromptTask:
    """A prompt that is to be encoded.

    Args:
        clip_id: Its key, which names its file; called like a clip's, as the pool hands out both.
        prompt: The text.
        projected_by: A job whose adapter holds all weights, the text's projection among them; None: the base model's.
    """

    clip_id: str
    prompt: str
    projected_by: Job | None

    @property
    def task_id(self) -> str:
        """Return the id that the worker pool knows the task by."""
        return self.clip_id


def prompt_tasks(run: RunFolder, jobs: Iterable[Job], full_adapters: frozenset[str] = frozenset()) -> list[PromptTask]:
    """List the prompts that the jobs need and whose texts are not there yet, each once.

    Args:
        run: Where texts lie.
        jobs: To be dreamed.
        full_adapters: Hashes of those adapters that hold all weights, the text's projection among them.
    """
    tasks: dict[str, PromptTask] = {}
    for job in jobs:
        projects_itself = job.adapter_sha256 in full_adapters
        for prompt in prompts_of(job):
            key = text_key(job, prompt, projects_itself)
            tasks.setdefault(key, PromptTask(key, prompt, job if projects_itself else None))
    return [task for task in tasks.values() if not run.fetch(text_file(run, task.clip_id)).is_file()]


def prompts_of(job: Job) -> list[str]:
    """Return the texts that a job's sampling reads; without guidance there is no negative one."""
    return [job.prompt, job.negative_prompt] if job.guidance_scale > 1 else [job.prompt]


def text_key(job: Job, prompt: str, projects_itself: bool) -> str:
    """Return the hash of all that determines a projected text, 32 hex digits.

    Args:
        job: For its model and precision.
        prompt: The text.
        projects_itself: Whether the job's adapter holds all weights, the projection among them.
    """
    content = [job.model_sha256, job.adapter_sha256 if projects_itself else None, job.dtype, prompt]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:32]


def text_file(run: RunFolder, key: str) -> Path:
    """Return where a projected text lies."""
    return run.texts / key[:2] / f"{key}.safetensors"


def write_text(run: RunFolder, key: str, text_1LD: torch.Tensor) -> None:
    """Write a projected text, atomically."""
    with atomic_file(text_file(run, key)) as temporary:
        save_file({"text_1LD": text_1LD.cpu().contiguous()}, temporary)
    run.publish(text_file(run, key))


def read_text(run: RunFolder, key: str, device: torch.device) -> torch.Tensor:
    """Read a projected text.

    Returns:
        text_1LD, in the model's dtype.

    Raises:
        UserError: if it is not there.
    """
    path = run.fetch(text_file(run, key))
    if not path.is_file():
        raise UserError(
            f"{path} is missing, the text that a clip is dreamed from",
            next_step=f"dreamgen generate --out {run.root} encodes it again",
        )
    return load_file(path)["text_1LD"].to(device)
