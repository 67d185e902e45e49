"""The Ray actor: it loads the model once and calls the plain functions that encode a prompt or make a clip."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dreamgen.cluster.actors import PoolWorker
from dreamgen.config.settings import ModelSettings
from dreamgen.errors import UserError
from dreamgen.generate.clip import encode_prompt, make_clip
from dreamgen.generate.clip_generator import ClipGenerator
from dreamgen.generate.texts import PromptTask
from dreamgen.models.world_model import WorldModelSource
from dreamgen.run.records import Job, JournalRecord
from dreamgen.run.run_folder import RunFolder


@dataclass(frozen=True)
class LoadSpec:
    """What every worker loads.

    Args:
        source: The world model; a folder's path is absolute.
        model: Precision, device and safety checker.
        run: With an absolute root.
        several_adapters: Whether the jobs use more than one adapter.
        compiled: Compile the model if it runs on a GPU.
    """

    source: WorldModelSource
    model: ModelSettings
    run: RunFolder
    several_adapters: bool
    compiled: bool


class GenerationWorker(PoolWorker):
    """Loads once, then encodes prompts or makes clips: one clip is sampled while the previous one is encoded to mp4.

    Ray calls `load` first and `make` from two threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loading = threading.Lock()

    def load(self, spec: LoadSpec, num_threads: int, without_gpu: bool) -> None:
        """Load the model; a worker without a GPU of its own does not use the GPUs that it can see.

        Raises:
            UserError: if the model cannot be loaded or does not fit into the GPU's memory.
        """
        import torch  # here, because the driver imports this module and has no use for it

        torch.set_num_threads(num_threads)
        device = torch.device("cpu") if without_gpu else None
        with _out_of_memory_as_user_error():
            model = spec.source.load_class().from_source(
                spec.source, spec.model, device=device, compiled=spec.compiled, several_adapters=spec.several_adapters
            )
        self.generator = ClipGenerator(model, spec.run)

    def make(self, task: Job | PromptTask) -> JournalRecord | None:
        """Encode a prompt or make a clip. All prompts come before the first clip.

        Returns:
            The record; None if the task was withdrawn before it began.
        """
        with self.generator.gpu_lock:
            pass  # wait until the previous clip is sampled
        if self.is_withdrawn.is_set():
            return None
        self._keep_text_encoder(isinstance(task, PromptTask))
        return make_clip(self.generator, task) if isinstance(task, Job) else encode_prompt(self.generator, task)

    def _keep_text_encoder(self, is_needed: bool) -> None:
        model = self.generator.model
        with self.loading:
            if is_needed and not model.has_text_encoder:
                with _out_of_memory_as_user_error():
                    model.load_text_encoder()
            elif not is_needed and model.has_text_encoder:
                model.unload_text_encoder()


def adapter_of(task: Job | PromptTask) -> Hashable:
    """Return the adapter that a task needs; changing it takes a worker seconds."""
    job = task if isinstance(task, Job) else task.projected_by
    return None if job is None else job.adapter_sha256


@contextmanager
def _out_of_memory_as_user_error() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "a worker's copy of the model does not fit into the GPU's memory",
            actual=str(error).split(". ")[0],
            next_step="fewer workers a GPU (--generate.gpus_per_worker=1), or a GPU that nothing else uses",
        ) from None
