"""What a verdict owes to other clips: near-duplicates, the best clips of all or of siblings, balance over instructions.

Axes: N clips, K pixels.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dreamgen.config.settings import CurateSettings
from dreamgen.errors import UserError
from dreamgen.extensions.score import Metric
from dreamgen.run.records import Job

type Values = Mapping[str, float | None]

SIGNATURE = "signature"  # key in what was measured of a clip
SIGNATURE_FRAMES, SIGNATURE_PX = 4, 8


@dataclass(frozen=True)
class Candidate:
    """A clip that scores and judges accept.

    Args:
        job: Its job.
        values: Metric -> value.
        signature: From `signature_of`; None where there is none.
    """

    job: Job
    values: Values
    signature: str | None


def signature_of(gray_THW: np.ndarray) -> str:
    """Return a small picture of a clip as hex: `SIGNATURE_FRAMES` frames, averaged down to `SIGNATURE_PX` squared."""
    num, height, width = gray_THW.shape
    chosen = gray_THW[np.linspace(0, num - 1, SIGNATURE_FRAMES).round().astype(int)]
    size = SIGNATURE_PX
    cells = chosen.reshape(SIGNATURE_FRAMES, size, height // size, size, width // size).mean((2, 4))
    return cells.round().clip(0, 255).astype(np.uint8).tobytes().hex()


def deselected(candidates: Sequence[Candidate], limits: CurateSettings, metrics: Sequence[Metric]) -> dict[str, str]:
    """Choose among clips that are each good enough.

    Args:
        candidates: In planned order.
        limits: `min_difference`, `best_of`, `best_share`, `balance` and `best_by`.
        metrics: Those of scores and judges, for the ranking.

    Returns:
        Clip id -> why it is left out.

    Raises:
        UserError: if `best_by` names no metric.
    """
    of_clips = clip_quality([c.values for c in candidates], limits.best_by, metrics)
    quality = dict(zip((c.job.clip_id for c in candidates), of_clips, strict=True))
    out = _near_duplicates(candidates, limits.min_difference)
    if limits.best_of is not None:
        siblings: dict[tuple[str | None, str], list[Candidate]] = defaultdict(list)
        for candidate in candidates:
            if candidate.job.clip_id not in out:
                siblings[candidate.job.first_frame_sha256, candidate.job.instruction].append(candidate)
        for group in siblings.values():
            for rank, one in enumerate(_best_first(group, quality)[limits.best_of :], start=limits.best_of + 1):
                out[one.job.clip_id] = (
                    f"not among the best {limits.best_of} of its first frame and instruction: rank {rank} of "
                    f"{len(group)}, quality {quality[one.job.clip_id]:.3g}"
                )
    if limits.best_share is not None:
        group = _best_first([c for c in candidates if c.job.clip_id not in out], quality)
        most = math.ceil(limits.best_share * len(group) - 1e-9)
        for rank, one in enumerate(group[most:], start=most + 1):
            out[one.job.clip_id] = (
                f"not in the best {limits.best_share:.0%}: rank {rank} of {len(group)}, quality "
                f"{quality[one.job.clip_id]:.3g}"
            )
    if limits.balance is not None:
        kept = [c for c in candidates if c.job.clip_id not in out]
        counts = Counter(c.job.instruction for c in kept)
        most = int(limits.balance * min(counts.values(), default=0))
        for instruction, count in counts.items():
            group = _best_first([c for c in kept if c.job.instruction == instruction], quality)
            for rank, one in enumerate(group[most:], start=most + 1):
                out[one.job.clip_id] = (
                    f"balance: {count} clips of its instruction, {most} are accepted; rank {rank}, quality "
                    f"{quality[one.job.clip_id]:.3g}"
                )
    return out


def clip_quality(values: Sequence[Values], by: str, metrics: Sequence[Metric]) -> np.ndarray:
    """Return a number for each clip, higher is better: a metric, or the mean rank from 0 to 1 over several.

    Args:
        values: What was measured of each clip.
        by: Names of metrics, separated by commas, or `all`. All count where no clip has a value of those named.
        metrics: Those of scores and judges.

    Raises:
        UserError: if `by` names what is no metric.
    """
    table = _goodness(values, ranking_metrics(by, metrics))
    if np.isnan(table).all():
        table = _goodness(values, metrics)
    if table.shape[1] == 1:
        return np.nan_to_num(table[:, 0], nan=-np.inf)
    measured = ~np.isnan(table)
    return np.where(measured, _ranks(table), 0).sum(1) / np.maximum(measured.sum(1), 1)


def ranking_metrics(by: str, metrics: Sequence[Metric]) -> list[Metric]:
    """Return the metrics that `best_by` names.

    Args:
        by: Names of metrics, separated by commas, or `all`.
        metrics: Those of scores and judges.

    Raises:
        UserError: if `by` names what is no metric.
    """
    if by == "all":
        return list(metrics)
    known = {metric.name: metric for metric in metrics}
    names = [name.strip() for name in by.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"curate.best_by names no metric: {', '.join(unknown)}", allowed="all, " + ", ".join(known))
    return [known[name] for name in names]


def ranks_clips(limits: CurateSettings) -> bool:
    """Return whether clips are left out because others are better."""
    return any(limit is not None for limit in (limits.best_of, limits.best_share, limits.balance))


def _goodness(values: Sequence[Values], metrics: Sequence[Metric]) -> np.ndarray:
    """Return each metric of each clip, a column each, with the sign that makes higher better; NaN where it is none."""
    table = np.full((len(values), len(metrics)), np.nan)
    for column, metric in enumerate(metrics):
        sign = 1.0 if metric.is_high_better else -1.0
        for row, of_clip in enumerate(values):
            value = of_clip.get(metric.name)
            table[row, column] = np.nan if value is None else sign * value
    return table


def _ranks(table: np.ndarray) -> np.ndarray:
    """Return for each value which share of its column it exceeds."""
    ranks = np.zeros_like(table)
    for column in range(table.shape[1]):
        known = np.sort(table[:, column][~np.isnan(table[:, column])])
        ranks[:, column] = np.searchsorted(known, table[:, column]) / max(len(known) - 1, 1)
    return ranks


def _best_first(group: list[Candidate], quality: dict[str, float]) -> list[Candidate]:
    """Sort by quality; equal clips stay in planned order."""
    return sorted(group, key=lambda candidate: -quality[candidate.job.clip_id])


def _near_duplicates(candidates: Sequence[Candidate], min_difference: float) -> dict[str, str]:
    """Leave out each clip that hardly differs from an earlier one of its instruction that is not left out."""
    out: dict[str, str] = {}
    if min_difference <= 0:
        return out
    by_instruction: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        if candidate.signature is not None:
            by_instruction[candidate.job.instruction].append(candidate)
    for group in by_instruction.values():
        pictures_NK = np.stack([np.frombuffer(bytes.fromhex(c.signature or ""), np.uint8) for c in group])
        pictures_NK = pictures_NK.astype(np.int16)
        kept: list[int] = []
        for number, candidate in enumerate(group):
            differences = np.abs(pictures_NK[kept] - pictures_NK[number]).mean(1)
            if kept and differences.min() < min_difference:
                nearest = int(differences.argmin())
                out[candidate.job.clip_id] = (
                    f"near-duplicate of {group[kept[nearest]].job.clip_id}: difference {differences[nearest]:.2f} < "
                    f"{min_difference:g}"
                )
            else:
                kept.append(number)
    return out
