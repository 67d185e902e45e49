"""The demo: all stages on the shipped demonstrations of a simulated robot arm, with the mini model on a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamgen.config.loading import find_preset, read_yaml, settings_from_dict
from dreamgen.config.settings import Settings
from dreamgen.errors import quoted
from dreamgen.pipeline import run_all
from dreamgen.progress import log
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder

# Twelve recorded episodes of one task that mini has not seen, and first frames of other starts of the same task.
DATA = Path(__file__).parent / "data"
CAMERA = "observation.images.corner2"


def run_demo(settings: Settings) -> list[StageResult]:
    """Run all stages on the shipped demonstrations; a second call continues where the first one stopped.

    Args:
        settings: `out` names the run folder; runs/demo when not given.

    Returns:
        The stages' results; the last one lists the outputs and commands to try next.
    """
    out = Path(settings.out or "runs/demo")
    preset = read_yaml(find_preset("mini"))
    settings = settings_from_dict({**preset, "out": str(out), "demos": str(DATA / "demonstrations")})
    settings = replace(
        settings,
        prepare=replace(settings.prepare, camera=CAMERA),
        plan=replace(settings.plan, first_frames=str(DATA / "first_frames" / "first_frames.csv")),
    )
    log("a simulated robot arm learns to open a drawer, a task that mini has not seen")
    # The last result lists all outputs, so the others list none.
    results = [replace(result, outputs={}) for result in run_all(settings, resume=True)]
    return [*results, StageResult("demo", _outputs(RunFolder(out)), {}, _next_commands(out))]


def _outputs(run: RunFolder) -> dict[str, Any]:
    places = {
        "report": run.report, "datasets": run.datasets, "clips": run.clips, "adapter": run.adapter,
        "training set": run.train, "settings": run.settings_file,
    }  # fmt: skip
    return {name: path for name, path in places.items() if path.exists()}


def _next_commands(out: Path) -> list[str]:
    return [
        "try next, after `source .venv/bin/activate`:",
        "dreamgen run --config_path configs/mini.yaml --demos YOUR_DATASET --out runs/mine",
        f"dreamgen plan --out {quoted(out)} --num_seeds 2 && dreamgen generate --out {quoted(out)}",
        f"dreamgen check {quoted(out / 'datasets' / 'lerobot-v3.0')}",
    ]
