"""What clips will take on a GPU that was measured: for estimates before a run has made a clip of its own."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.run.jobs import JobRows, job_columns

SIZES = ("num_frames", "height", "width", "num_inference_steps")
COLUMNS = ("model", "level", "guidance_scale", *SIZES)


def known_seconds(jobs: JobRows) -> tuple[float, str] | None:
    """Add up the seconds of jobs on one GPU, from the table `clip_seconds` of configs/hardware/gpus.yaml.

    The time of another size is taken as proportional to pixels and denoising steps; without guidance it is half.

    Args:
        jobs: Clips to make.

    Returns:
        Seconds, and what they are based on; None if a job's model or level is not in the table.
    """
    measured = read_yaml(configs_folder() / "hardware" / "gpus.yaml")["clip_seconds"]
    table = job_columns(jobs.path, COLUMNS).take(jobs.rows)
    columns = [column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
               for column in table.columns]  # fmt: skip
    counts = pa.table(columns, names=table.column_names).group_by(list(COLUMNS)).aggregate([([], "count_all")])
    seconds = 0.0
    for row in counts.to_pylist():
        clip_s = _clip_seconds(measured, row)
        if clip_s is None:
            return None
        seconds += row["count_all"] * clip_s
    size = f"{measured['num_frames']} x {measured['height']} x {measured['width']}"
    basis = f"{measured['gpu']} at {size} and {measured['num_inference_steps']} denoising steps"
    return seconds, basis


def _clip_seconds(measured: dict[str, Any], row: dict[str, Any]) -> float | None:
    levels = next((levels for name, levels in measured["models"].items() if name in (row["model"] or "")), {})
    if row["level"] not in levels:
        return None
    ratio = math.prod(row[name] / measured[name] for name in SIZES)
    return levels[row["level"]] * ratio * (1.0 if row["guidance_scale"] > 1 else 0.5)
