"""The report of benchmarks/mini_adapters.py: means and paired tests of what was measured, and its tables.

Axes: N clips.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from metaworld_clips import Clips
from metrics import markdown_table, shown
from mini_quality import COLUMNS
from policy.significance import paired_p_value

HELDOUT, SEEN = SPLITS = ("heldout", "seen")
BASE = "base"
TESTED = ("psnr_moving", "hand_cm", "object_end_cm", "success")
Values = dict[str, list[float | None]]  # of each clip, by metric


def rows_of(measured: dict[str, dict[str, Any]], split: str, real: Clips, reference: str) -> list[dict[str, Any]]:
    """Return a row for everything that was measured on a split.

    Args:
        measured: By name: the values of each clip, by split and metric.
        split: "heldout" or "seen".
        real: The recordings of the clips.
        reference: Name of the variant that the others are compared with, beside the base.

    Returns:
        Of each row: `name`, `split`, `clips`, the mean of each metric, `tasks` with the means of each task, and for
        dreams the p-values of the paired test, `p_base` and `p_reference`.
    """
    rows = []
    for name, one in measured.items():
        if split not in one:
            continue
        values = {key: np.array(values, float) for key, values in one[split].items()}
        tasks = {str(task): {key: _mean(values_N[real.task_N == task], 3) for key, values_N in values.items()}
                 for task in np.unique(real.task_N)}  # fmt: skip
        row: dict[str, Any] = {"name": name, "split": split, "clips": len(real), "tasks": tasks}
        row |= {key: _mean(values_N, 4) for key, values_N in values.items()}
        if "off" in one:
            row |= {"adapters": one["adapters"], "off": one["off"]}
            for key, other in (("p_base", BASE), ("p_reference", reference)):
                if other in measured and other != name:
                    row[key] = p_values(values, measured[other][split])
        rows.append(row)
    return rows


def _mean(values_N: np.ndarray, digits: int) -> float | None:
    return round(float(np.nanmean(values_N)), digits) if np.isfinite(values_N).any() else None


def p_values(values: dict[str, np.ndarray], other: Values) -> dict[str, float]:
    """Return the p-value of the paired test of each metric, over clips that have it."""
    found = {}
    for key in TESTED:
        one_N, other_N = values[key], np.array(other[key], float)
        both_N = np.isfinite(one_N) & np.isfinite(other_N)
        found[key] = round(paired_p_value(one_N[None, both_N], other_N[None, both_N]), 5)
    return found


def tables(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = []
    for split in SPLITS:
        rows = [row for row in report["rows"] if row["split"] == split]
        if not rows:
            continue
        columns = {key: column for key, column in COLUMNS.items() if any(row.get(key) is not None for row in rows)}
        head = [f"{split} ({rows[0]['clips']} clips)", *(title for title, _ in columns.values()), "p of hand",
                "p of object", "p of success", *(["adapter off: same clips"] if split == SEEN else [])]  # fmt: skip
        cells = []
        for row in rows:
            p = row.get("p_base", {})
            cells.append([row["name"], *(shown(row.get(key), form) for key, (_, form) in columns.items()),
                          *(shown(p.get(key), ".2g") for key in ("hand_cm", "object_end_cm", "success"))])  # fmt: skip
            if split == SEEN and "off" in row:
                cells[-1].append(f"{row['off']['equal_clips']} of {row['off']['clips']}")
        lines += [markdown_table(head, cells), ""]
    if report["trainings"]:
        lines += [_compared(report), "", _trained(report), ""]
    if report["left_out"]:
        lines += [f"Left out: {'; '.join(report['left_out'])}.", ""]
    return "\n".join(lines)


def _compared(report: dict[str, Any]) -> str:
    """Return how variants differ from the reference on held-out tasks."""
    rows = {row["name"]: row for row in report["rows"] if row["split"] == HELDOUT}
    metrics = [key for key in TESTED if key != "success"]
    head = [f"difference from {report['reference']}", *(text for key in metrics for text in (COLUMNS[key][0], "p"))]
    cells = []
    for name, row in rows.items():
        if "p_reference" in row:
            cells.append([name])
            for key in metrics:
                cells[-1] += [f"{row[key] - rows[report['reference']][key]:+.2f}", f"{row['p_reference'][key]:.2g}"]
    return markdown_table(head, cells)


def _trained(report: dict[str, Any]) -> str:
    cells = []
    for name, trainings in report["trainings"].items():
        seconds, step_s, loss, size_mb = (
            np.mean([one[key] for one in trainings]) for key in ("seconds", "step_s", "final_loss", "adapter_mb")
        )
        cells.append([name, f"{seconds:.1f}", f"{step_s:.3f}", f"{loss:.4f}", f"{size_mb:.2f}"])
    return markdown_table(["trainings, mean over tasks", "s", "s a step", "final loss", "MB"], cells)
