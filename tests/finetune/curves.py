"""What a training left behind, as the tests compare it."""

import csv
from pathlib import Path

EXACT = ("step", "loss", "learning_rate", "grad_norm")


def curve(run: Path) -> list[tuple[str, ...]]:
    """Return the rows of loss.csv as they stand there, without what depends on the machine."""
    with (run / "finetune/loss.csv").open() as stream:
        return [tuple(row[name] for name in EXACT) for row in csv.DictReader(stream)]


def checkpoint_names(run: Path, folder: str = "finetune") -> list[str]:
    """Return the names of the checkpoints that look whole."""
    return sorted(path.name for path in (run / folder / "checkpoints").glob("step-*"))
