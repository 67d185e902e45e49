"""One pass over generated clips for several stages: each clip is decoded once for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import Any, ClassVar, Self

import numpy as np

from dreamgen.data.clip_context import ClipContext
from dreamgen.progress import Progress
from dreamgen.run.jobs import JobRows
from dreamgen.run.journal import Journal
from dreamgen.run.records import StageResult, Status
from dreamgen.run.run_folder import RunFolder


class ClipStage(ABC):
    """A stage that works on one clip after another; as a context, it keeps its journal open.

    Args:
        run: The run folder.
        jobs: Jobs whose clips it wants.
    """

    name: ClassVar[str]

    def __init__(self, run: RunFolder, jobs: JobRows) -> None:
        self.run, self.jobs, self._open = run, jobs, ExitStack()

    def __enter__(self) -> Self:
        self._journal = self._open.enter_context(Journal(self.run.journal, self.name))
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    @abstractmethod
    def process(self, clip: ClipContext) -> Status:
        """Work on one clip, write the outcome, and return it; an error of one clip does not stop the others."""

    @abstractmethod
    def result(self) -> StageResult:
        """Return what was done; called after the last clip, outside the context."""


def process_clips(*stages: ClipStage) -> list[StageResult]:
    """Give each clip to the stages that want it, in their order, before the next clip is read.

    Args:
        stages: Stages of one run.

    Returns:
        Their results, in the same order.
    """
    rows = np.unique(np.concatenate([np.asarray(stage.jobs.rows, np.int64) for stage in stages]))
    wants = [np.isin(rows, stage.jobs.rows) for stage in stages]
    with ExitStack() as contexts:
        for stage in stages:
            contexts.enter_context(stage)
        progress = contexts.enter_context(Progress(" + ".join(stage.name for stage in stages), len(rows)))
        for number, job in enumerate(JobRows(stages[0].jobs.path, rows)):
            clip = ClipContext(stages[0].run, job)
            outcomes = [stage.process(clip) for stage, wanted in zip(stages, wants, strict=True) if wanted[number]]
            progress.add(rejected=int("rejected" in outcomes), failed=int("failed" in outcomes))
    return [stage.result() for stage in stages]
