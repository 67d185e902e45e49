"""A loaded model with what its clips share.

Axes: B batch, L text tokens, D features.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch
from diffusers import Cosmos2_5_PredictBasePipeline

from dreamgen.errors import UserError
from dreamgen.generate.texts import read_text, text_key
from dreamgen.models.adapter_choice import AdapterChoice, AdapterSwitch, adapter_of_job
from dreamgen.models.cosmos_predict25.adapter import is_full
from dreamgen.models.cosmos_predict25.fp8 import Fp8Switch
from dreamgen.models.cosmos_predict25.guided_velocity import BlockParts, KeysValues, compiled_parts, text_keys_values
from dreamgen.models.cosmos_predict25.pixels import use_channels_last
from dreamgen.models.cosmos_predict25.solver import StepTable, step_table
from dreamgen.models.cosmos_predict25.step_skipping import StepSkipping
from dreamgen.run.records import Job
from dreamgen.run.run_folder import RunFolder

NUM_TEXTS_KEPT = 4  # keys and values of a text take 0.1 GB in the 2B model, 0.4 GB in the 14B


class ClipGenerator:
    """A loaded model with what clips share: compiled blocks, solver tables, texts, and which adapter is fused.

    Args:
        pipe: From `load_world_model`, without an adapter; its text encoder is not needed.
        run: Where first frames and texts lie and clips go.
        several_adapters: Whether its clips will ask for more than one.
        compiled: Compile the blocks; the first clip then takes a minute longer.
    """

    def __init__(
        self,
        pipe: Cosmos2_5_PredictBasePipeline,
        run: RunFolder,
        several_adapters: bool = False,
        compiled: bool = False,
    ) -> None:
        self.pipe, self.run = pipe, run
        if pipe.vae.device.type == "cuda":
            use_channels_last(pipe)
        self.parts = compiled_parts() if compiled else BlockParts()
        self.adapters = AdapterSwitch(pipe, several_adapters)
        self.fp8 = Fp8Switch()
        self.gpu = threading.Lock()  # one clip is sampled while another one is encoded
        self.guard = threading.Lock()
        self._choices: dict[tuple[str | None, str | None], AdapterChoice | None] = {}
        self._tables: dict[int, StepTable] = {}
        self._texts: OrderedDict[tuple[str | None, str], list[KeysValues]] = OrderedDict()

    def choice(self, job: Job) -> AdapterChoice | None:
        """Find the job's adapter; its file is read and compared with the plan once.

        Raises:
            UserError: if it is not there, or is another one than was planned for.
        """
        name = (job.adapter, job.adapter_sha256)
        if name not in self._choices:
            self.run.fetch_folder(self.run.adapter)
            choice = adapter_of_job(job, self.run)
            if (choice and choice.sha256) != job.adapter_sha256:
                raise UserError(
                    f"the adapter {job.adapter} is another one than was planned for",
                    actual=f"weights with hash {choice.sha256[:12]}",
                    allowed=job.adapter_sha256[:12],
                    next_step=f"dreamgen plan --out {self.run.root} adds jobs for the adapter as it is now",
                )
            self._choices[name] = choice
        return self._choices[name]

    def prepare(self, job: Job) -> None:
        """Fuse the job's adapter and bring the blocks to its precision, where they are not so already."""
        choice = self.choice(job)
        uses_fp8 = StepSkipping.from_json(job.shortcuts).fp8
        if (choice and choice.sha256) != self.adapters.fused or not uses_fp8:
            self.fp8.off(self.pipe.transformer)
        self.adapters.to(choice)
        if uses_fp8:
            self.fp8.on(self.pipe.transformer)

    def table(self, num_steps: int) -> StepTable:
        """Return the solver's table, read off the scheduler once."""
        if num_steps not in self._tables:
            self._tables[num_steps] = step_table(self.pipe.scheduler, num_steps)
        return self._tables[num_steps]

    def text(self, job: Job, prompt: str) -> list[KeysValues]:
        """Return a text's keys and values under the fused adapter; the last few are kept."""
        name = (self.adapters.fused, prompt)
        if name not in self._texts:
            choice = self.choice(job)
            key = text_key(job, prompt, choice is not None and is_full(choice.parts[0][0]))
            with torch.no_grad():
                text_1LD = read_text(self.run, key, self.pipe.transformer.device)
                self._texts[name] = text_keys_values(self.pipe.transformer, text_1LD)
        self._texts.move_to_end(name)
        while len(self._texts) > NUM_TEXTS_KEPT:
            self._texts.popitem(last=False)
        return self._texts[name]
