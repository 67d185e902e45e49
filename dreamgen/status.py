"""Progress of generate, read from its journal from any shell while it runs or after, without its processes."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from dreamgen.config.settings import Settings
from dreamgen.progress import duration
from dreamgen.run.jobs import job_columns
from dreamgen.run.journal import latest_records
from dreamgen.run.lease import Lease, read_leases
from dreamgen.run.made_from import stale_outputs
from dreamgen.run.records import StageResult
from dreamgen.run.run_folder import RunFolder

STAGE = "generate"
WINDOW_S = 600.0  # the rate is that of the last ten minutes
NUM_SHOWN = 10
COLUMNS = ("status", "reason", "error", "worker", "time_s")


def status(settings: Settings) -> StageResult:
    """Report how many planned clips are done, the rate, the time left, and what went wrong.

    Counts are those of the journal; `dreamgen generate` checks at its start whether each file exists.

    Args:
        settings: `out` is used.

    Returns:
        Metrics; failures, rejections, nodes and drivers as dicts, for --json, and as notes.

    Raises:
        UserError: if nothing is planned.
    """
    run = RunFolder.of(settings, may_be_remote=True)
    run.need(run.jobs, "plan")
    ids = job_columns(run.jobs, ["clip_id"])["clip_id"].combine_chunks()
    records = latest_records(run.journal, STAGE, COLUMNS)
    records = records.filter(pc.is_in(records["clip_id"], value_set=ids))
    num_of = Counter({row["values"]: row["counts"] for row in pc.value_counts(records["status"]).to_pylist()})
    num_left = len(ids) - num_of["ok"] - num_of["rejected"]
    drivers = [lease for lease in read_leases(run.journal, STAGE) if not lease.is_known_dead()]
    rate = rate_of(records, drivers)
    metrics: dict[str, Any] = {
        "num_jobs": len(ids), "num_done": num_of["ok"], "num_rejected": num_of["rejected"],
        "num_failed": num_of["failed"], "num_left": num_left, "clips_per_hour": round(rate.clips_per_hour, 1),
        "eta_s": round(num_left / rate.clips_per_hour * 3600) if rate.is_now and rate.clips_per_hour else None,
        "failures": kinds(records, "failed", "error"), "rejections": kinds(records, "rejected", "reason"),
        "clips_per_hour_of_node": rate.of_node,
        "drivers": [{"shard": d.shard, "host": d.host, "pid": d.pid, "begun_s": d.begun_s} for d in drivers],
    }  # fmt: skip
    stale = [] if run.store else stale_outputs(run, settings)
    metrics["stale"] = [{"output": s.output, "reasons": list(s.reasons), "command": s.command} for s in stale]
    return StageResult("status", {"journal": run.journal}, metrics, [*_notes(metrics, rate), *map(str, stale)])


@dataclass(frozen=True)
class Rate:
    """Clips generated per hour.

    Args:
        clips_per_hour: Over the last `WINDOW_S` seconds, or the last active ones if nothing runs.
        of_node: The same for each host.
        is_now: Whether the last record is within the window, so that the rate predicts the end.
    """

    clips_per_hour: float
    of_node: dict[str, float]
    is_now: bool


def rate_of(records: Any, drivers: list[Lease], now_s: float | None = None) -> Rate:
    """Compute the rate from the times of records.

    Args:
        records: pyarrow.Table with `time_s` and `worker`.
        drivers: Running drivers; the earliest one's start bounds the window.
        now_s: Seconds since the epoch.
    """
    now_s = time.time() if now_s is None else now_s
    last_s = pc.max(records["time_s"]).as_py()
    if last_s is None:
        return Rate(0.0, {}, False)
    is_now = now_s - last_s < WINDOW_S
    end_s = now_s if drivers and is_now else last_s
    recent = records.filter(pc.greater(records["time_s"], end_s - WINDOW_S))
    first_s = pc.min(recent["time_s"]).as_py()
    # A run that began a minute ago is measured over that minute.
    begun_s = max(end_s - WINDOW_S, min([d.begun_s for d in drivers if d.begun_s <= first_s], default=first_s))
    span_s = end_s - begun_s
    if span_s <= 0:
        return Rate(0.0, {}, is_now)
    hosts = Counter((worker or "?").rpartition(":")[0] or "?" for worker in recent["worker"].to_pylist())
    of_node = {host: round(count / span_s * 3600, 1) for host, count in hosts.most_common()}
    return Rate(len(recent) / span_s * 3600, of_node, is_now)


def kinds(records: Any, state: str, column: str) -> dict[str, int]:
    """Count failures by type of error, or rejections by reason with its numbers left out.

    Returns:
        Kind -> count, the most frequent first.
    """
    texts = pc.value_counts(records.filter(pc.equal(records["status"], state))[column]).to_pylist()
    counts: Counter[str] = Counter()
    for row in texts:
        text = row["values"] or "no reason given"
        kind = text.partition(":")[0] if column == "error" else re.sub(r"-?\d+(\.\d+)?", "#", text)
        counts[kind] += row["counts"]
    return dict(counts.most_common())


def _notes(metrics: dict[str, Any], rate: Rate) -> list[str]:
    percent = 100 * (1 - metrics["num_left"] / max(metrics["num_jobs"], 1))
    notes = [f"{percent:.1f} % is done" + (f", ETA {duration(metrics['eta_s'])}" if metrics["eta_s"] else "")]
    if not metrics["drivers"]:
        notes.append("no driver is running" if metrics["num_left"] else "nothing is left to do")
    notes += [f"driver of shard {d['shard']}: {d['host']}, process {d['pid']}" for d in metrics["drivers"]]
    for name, values, unit in (
        ("node", rate.of_node, " clips an hour"), ("failed", metrics["failures"], ""),
        ("rejected", metrics["rejections"], ""),
    ):  # fmt: skip
        notes += [f"{name}: {kind}: {value:g}{unit}" for kind, value in list(values.items())[:NUM_SHOWN]]
        if len(values) > NUM_SHOWN:
            notes.append(f"{name}: and {len(values) - NUM_SHOWN} more; --json lists all")
    return notes
