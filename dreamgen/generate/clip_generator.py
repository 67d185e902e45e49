"""A loaded world model and the run folder that its clips belong to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from dreamgen.errors import UserError, quoted
from dreamgen.generate.texts import read_text, text_key
from dreamgen.models.adapter_choice import AdapterChoice, adapter_of_job
from dreamgen.models.world_model import WorldModel
from dreamgen.run.records import Job
from dreamgen.run.run_folder import RunFolder

if TYPE_CHECKING:
    import torch


class ClipGenerator:
    """A loaded world model with the run folder that holds first frames, texts and clips.

    Args:
        model: Loaded, with the base model's weights.
        run: Of the jobs.
    """

    def __init__(self, model: WorldModel, run: RunFolder) -> None:
        self.model, self.run = model, run
        self.gpu_lock = threading.Lock()  # one clip is sampled while another one is encoded
        self.safety_lock = threading.Lock()
        self._choices: dict[tuple[str | None, str | None], AdapterChoice | None] = {}

    def choice(self, job: Job) -> AdapterChoice | None:
        """Find the job's adapter; its file is read and compared with the plan once.

        Raises:
            UserError: if it is missing, or not the one that was planned for.
        """
        name = (job.adapter, job.adapter_sha256)
        if name not in self._choices:
            self.run.fetch_folder(self.run.adapter)
            choice = adapter_of_job(job, self.run)
            if (choice and choice.sha256) != job.adapter_sha256:
                raise UserError(
                    f"the adapter {job.adapter} has changed since its jobs were planned",
                    actual=f"weights with hash {choice.sha256[:12] if choice else None}",
                    allowed=(job.adapter_sha256 or "")[:12],
                    next_step=f"dreamgen plan --out {quoted(self.run.root)} adds jobs for the adapter as it is now",
                )
            self._choices[name] = choice
        return self._choices[name]

    def prepare(self, job: Job) -> None:
        """Change the model to the job's adapter and precision if it is not there yet."""
        self.model.prepare(self.choice(job), job.step_skipping)

    def text_of(self, job: Job) -> Callable[[str], torch.Tensor]:
        """Return the function that reads a prompt of the job as a worker encoded it."""
        choice = self.choice(job)
        own_projection = choice is not None and choice.holds_all_weights

        def read(prompt: str) -> torch.Tensor:
            return read_text(self.run, text_key(job, prompt, own_projection), self.model.device)

        return read
