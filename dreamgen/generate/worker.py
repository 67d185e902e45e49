"""The actor: it loads once and calls the plain functions that make a text or a clip."""

from __future__ import annotations

import signal
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
import torch

from dreamgen.config.settings import ModelSettings
from dreamgen.errors import UserError
from dreamgen.generate.clip import encode_prompt, make_clip
from dreamgen.generate.clip_generator import ClipGenerator
from dreamgen.generate.texts import PromptTask
from dreamgen.models.cosmos_predict25.loading import (
    WorldModelSource,
    drop_text_encoder,
    load_text_encoder,
    load_world_model,
)
from dreamgen.run.records import Job, JournalRecord
from dreamgen.run.run_folder import RunFolder


@dataclass(frozen=True)
class Load:
    """What every worker loads.

    Args:
        source: The world model; a folder's path is absolute.
        model: Precision, device and guardrail.
        run: With an absolute root.
        several_adapters: Whether the jobs ask for more than one.
        compiled: Compile the transformer's blocks where there is a GPU.
    """

    source: WorldModelSource
    model: ModelSettings
    run: RunFolder
    several_adapters: bool
    compiled: bool


class GenerationWorker:
    """Loads once, then encodes prompts or makes clips: one is sampled while the one before is encoded to mp4.

    Ray calls `load` first and `make` from two threads.
    """

    def __init__(self) -> None:
        # Here, not in `load`: only the process's first thread may. Ctrl-C is the driver's to handle; the clip in hand
        # is finished.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.is_withdrawn = threading.Event()
        self.loading = threading.Lock()

    def node(self) -> str:
        """Return the node that it runs on."""
        return ray.get_runtime_context().get_node_id()

    def load(self, what: Load, num_threads: int, without_gpu: bool) -> None:
        """Load the model; a worker that Ray gave no GPU stays off the GPUs that it can see.

        Raises:
            UserError: as `load_world_model` does, or if the GPU has no room for the model.
        """
        torch.set_num_threads(num_threads)
        device = torch.device("cpu") if without_gpu else None
        self.what = what
        with _room_for_the_model():
            pipe = load_world_model(what.source, what.model, device=device, text_encoder=False)
        compiled = what.compiled and pipe.device.type == "cuda"
        self.maker = ClipGenerator(pipe, what.run, what.several_adapters, compiled)

    def make(self, task: Job | PromptTask) -> JournalRecord | None:
        """Encode a prompt or make a clip, and say how it went. All prompts come before the first clip.

        Returns:
            None if the task was withdrawn before it was begun.
        """
        with self.maker.gpu:
            pass  # its turn has come: the clip before is sampled
        if self.is_withdrawn.is_set():
            return None
        self._keep_text_encoder(isinstance(task, PromptTask))
        return make_clip(self.maker, task) if isinstance(task, Job) else encode_prompt(self.maker, task)

    def withdraw(self) -> None:
        """Begin nothing more; what is at work is finished."""
        self.is_withdrawn.set()

    def _keep_text_encoder(self, is_needed: bool) -> None:
        pipe = self.maker.pipe
        with self.loading:
            if is_needed and pipe.text_encoder is None:
                with _room_for_the_model():
                    load_text_encoder(pipe, self.what.source, self.what.model)
            elif not is_needed and pipe.text_encoder is not None:
                drop_text_encoder(pipe)


def adapter_of(task: Job | PromptTask) -> Hashable:
    """Return what a worker has to have fused for a task; a change costs it seconds."""
    job = task if isinstance(task, Job) else task.projected_by
    return None if job is None else job.adapter_sha256


@contextmanager
def _room_for_the_model() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the GPU has no room for a worker's copy of the model",
            actual=str(error).split(". ")[0],
            next_step="fewer workers a GPU (--generate.gpus_per_worker=1), or a GPU that nothing else uses",
        ) from None
