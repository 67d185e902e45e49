"""What is measured of each clip: every score, once; a record in the journal keeps it, so that thresholds can change.

Nothing here is compared with a threshold; `verdict.py` does that, without reading a clip.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from dreamgen.curate.selection import SIGNATURE, signature_of
from dreamgen.data.clip_context import ClipContext
from dreamgen.errors import UserError
from dreamgen.extensions.score import SCORES, Score
from dreamgen.run.files import sha256_of_file
from dreamgen.run.records import JournalRecord

MEASURE = "measure"  # name of the journal
VERSIONS, INPUTS, PROBLEM = "versions", "inputs_sha256", "problem"  # beside the scores in its metrics


def measure_clip(clip: ClipContext) -> JournalRecord:
    """Measure a clip by every score that applies to its job.

    What was measured before, of the same files by the same version of a score, is taken over; if that is everything,
    the clip is not decoded.

    Args:
        clip: The clip, whose file exists.

    Returns:
        The record: ok, also for a clip that cannot be decoded (its metrics say so); failed, if a score raised an error.
        `clip.previous` itself, if nothing had to be measured.
    """
    inputs, previous = _inputs_sha256(clip), clip.previous
    wanted = {score.name: score for _, score in SCORES.items() if _applies(score, clip)}
    metrics: dict[str, Any] = {INPUTS: inputs, PROBLEM: None, "num_frames": None, VERSIONS: {}}
    if previous is not None and previous.metrics.get(INPUTS) == inputs:
        metrics |= {**previous.metrics, VERSIONS: dict(previous.metrics[VERSIONS])}
    versions = metrics[VERSIONS]
    current = {name: _version(score, clip) for name, score in wanted.items()}
    missing = [score for name, score in wanted.items() if versions.get(name) != current[name]]
    is_known = previous is not None and previous.status == "ok" and metrics == previous.metrics
    if previous is not None and is_known and (metrics[PROBLEM] or not missing):
        return previous
    record = JournalRecord(clip.job.clip_id, MEASURE, "ok", file=str(clip.file.relative_to(clip.run.root)))
    try:
        metrics["num_frames"] = clip.num_frames
    except UserError as error:
        metrics[PROBLEM] = f"not decodable: {error.actual or error.what}"
        return replace(record, metrics=metrics)
    try:
        for score in missing:
            value = score.measure(clip)
            metrics[score.name], versions[score.name] = None if value is None else float(value), current[score.name]
        metrics.setdefault(SIGNATURE, signature_of(clip.gray_THW))
    except Exception as error:
        return JournalRecord.of_error(record.clip_id, MEASURE, error, file=record.file, metrics=metrics)
    return replace(record, metrics=metrics)


def _applies(score: Score, clip: ClipContext) -> bool:
    return score.applies(clip.job) and (clip.vae_trip is not None or not score.needs_vae)


def _version(score: Score, clip: ClipContext) -> int | str:
    """Return what a value of the score is kept for: the score's version, and the training set where it reads that."""
    table = clip.run.train / "metadata.csv"
    if not score.reads_demonstrations or not table.is_file():
        return score.version
    return f"{score.version} {_sha256_of_table(table, table.stat().st_mtime_ns)[:12]}"


@lru_cache(maxsize=16)
def _sha256_of_table(path: Path, _: int) -> str:
    return sha256_of_file(path)


def _inputs_sha256(clip: ClipContext) -> str:
    """Return the hash of the files that scores read: the clip, and its label where there is one."""
    files = [clip.file, clip.run.label_file(clip.job.clip_id)]
    hashes = [sha256_of_file(path) if path.is_file() else "" for path in files]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:20]
