"""The weights with the lowest held-out loss so far, `finetune/checkpoints/best-000500/`.

The highest number is the best one, as a better one is always of a later step. A training that continues after an
interruption finds the folder, and comes to the same weights again.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator

from dreamgen.run.files import atomic_folder, read_json, write_json
from finetune.checkpoint import TrainableState
from finetune.stopping import on_main_process

RECORD = "best.json"


class BestWeights:
    """Keeps the weights of the best step, and hands them to the finished adapter.

    Args:
        accelerator: Of the training; every process makes the same calls.
        folder: Of the checkpoints.
        trained: Its average is kept if there is one, as that is what was measured.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, trained: TrainableState) -> None:
        self._accelerator, self._folder, self._trained = accelerator, folder, trained
        path = self._path()
        self._lowest = math.inf if path is None else float(read_json(path / RECORD)["loss"])

    @property
    def step(self) -> int | None:
        """Optimizer steps of the best weights; None before the first."""
        path = self._path()
        return None if path is None else int(path.name.removeprefix("best-"))

    def add(self, step: int, measured: Mapping[float, float]) -> None:
        """Keep the weights if their loss is the lowest; every process calls this with the same values.

        Args:
            step: Optimizer steps done.
            measured: Noise level -> held-out loss.
        """
        loss = mean_of_levels(measured)
        if not loss < self._lowest:  # nan is never the best
            return
        self._lowest = loss
        path = self._folder / f"best-{step:06d}"
        on_main_process(self._accelerator, path, lambda: self._write(path, loss))

    def copy_to(self, folder: Path) -> None:
        """Copy the best weights into an existing folder, as `save_adapter` writes them."""
        path = self._path()
        assert path is not None, "nothing was measured"
        shutil.copytree(path, folder, ignore=shutil.ignore_patterns(RECORD), dirs_exist_ok=True)

    def _write(self, path: Path, loss: float) -> None:
        with atomic_folder(path) as temporary, self._trained.averaged():
            self._trained.model.save_adapter(temporary)
            write_json(temporary / RECORD, {"loss": loss})
        for old in self._all()[:-1]:
            shutil.rmtree(old)

    def _path(self) -> Path | None:
        return self._all()[-1] if self._all() else None

    def _all(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("best-*") if (path / RECORD).is_file())


def mean_of_levels(measured: Mapping[float, float]) -> float:
    """Return the geometric mean of the losses of all noise levels: low levels have several times the loss of high ones.

    Args:
        measured: Noise level -> loss.
    """
    if not all(loss > 0 for loss in measured.values()):
        return math.nan
    return math.exp(sum(map(math.log, measured.values())) / len(measured))
