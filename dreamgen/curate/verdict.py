"""The verdict on one clip: what was measured, compared with the thresholds. No clip is read here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dreamgen.config.settings import CurateSettings
from dreamgen.curate.judging import REASON, LoadedJudges, judge_clip
from dreamgen.curate.measure import PROBLEM, measure_clip
from dreamgen.data.clip_context import ClipContext
from dreamgen.extensions.score import SCORES, Metric
from dreamgen.run.records import Job, JournalRecord


def curate_clip(clip: ClipContext, limits: CurateSettings, judges: LoadedJudges) -> JournalRecord:
    """Measure one clip and give its verdict, apart from what depends on other clips.

    Judges cost far more than scores, so they see only clips that the scores accept.

    Args:
        clip: The clip, whose file exists.
        limits: The thresholds.
        judges: From `load_judges`.

    Returns:
        The record: ok; rejected, with every reason that applies; or failed, if a score or a judge raised an error.
    """
    measured = measure_clip(clip)
    if measured.status == "ok" and not score_reasons(clip.job, measured.metrics, limits):
        measured = judge_clip(clip, measured, judges)
    return verdict(clip.job, measured, limits, judges)


def verdict(
    job: Job, measured: JournalRecord, limits: CurateSettings, judges: LoadedJudges, left_out: str | None = None
) -> JournalRecord:
    """Compare what was measured with the thresholds.

    Args:
        job: The clip's job.
        measured: From `measure_clip` or `judge_clip`.
        limits: The thresholds.
        judges: Those that rated it.
        left_out: Why it is left out because of other clips; from `deselected`.

    Returns:
        The record of `curate`: every value with its threshold, and every reason that applies.
    """
    metrics = _columns(job, measured.metrics, limits, judges)
    record = JournalRecord(job.clip_id, "curate", "failed", file=measured.file, metrics=metrics)
    if measured.status == "failed":
        return replace(record, error=measured.error, traceback=measured.traceback)
    reasons = score_reasons(job, measured.metrics, limits)
    reasons = reasons or judge_reasons(measured.metrics, limits, judges) or ([left_out] if left_out else [])
    return replace(record, status="rejected" if reasons else "ok", reason="; ".join(reasons) or None)


def score_reasons(job: Job, measured: dict[str, Any], limits: CurateSettings) -> list[str]:
    """Return the reasons to reject a clip by its scores."""
    if measured[PROBLEM]:
        return [measured[PROBLEM]]
    reasons = []
    if measured["num_frames"] != job.num_frames:
        reasons.append(f"wrong length: {measured['num_frames']} frames instead of {job.num_frames}")
    for _, score in SCORES.items():
        if score.applies(job):
            reasons.append(score.reason_to_reject(measured.get(score.name), limit_of(limits, score)))
    return [reason for reason in reasons if reason]


def judge_reasons(measured: dict[str, Any], limits: CurateSettings, judges: LoadedJudges) -> list[str]:
    """Return the reasons to reject a clip by its ratings."""
    reasons = []
    for judge, _ in judges.values():
        for metric in judge.metrics:
            words = measured.get(metric.name + REASON)
            if reason := metric.reason_to_reject(measured.get(metric.name), limit_of(limits, metric)):
                reasons.append(f"{reason} ({words})" if words else reason)
    return reasons


def limit_of(limits: CurateSettings, metric: Metric) -> float | None:
    """Return a metric's threshold; its default, where it was registered after the settings were read."""
    return getattr(limits, metric.threshold.setting, metric.threshold.default)


def _columns(job: Job, measured: dict[str, Any], limits: CurateSettings, judges: LoadedJudges) -> dict[str, Any]:
    """Return the metrics of the verdict's record, the same names for every clip."""
    columns: dict[str, Any] = {"num_frames": measured.get("num_frames"), "wanted_num_frames": job.num_frames}
    for _, score in SCORES.items():
        applies = score.applies(job)
        columns[score.name] = measured.get(score.name) if applies else None
        columns[score.threshold.setting] = limit_of(limits, score) if applies else None
    for name, (judge, loaded) in judges.items():
        columns[f"{name}_version"] = loaded.version
        for metric in judge.metrics:
            columns |= {metric.name: measured.get(metric.name), metric.threshold.setting: limit_of(limits, metric)}
            columns[metric.name + REASON] = measured.get(metric.name + REASON)
    return columns
