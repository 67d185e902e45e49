"""The verdict on one clip: measured by all scores, then by judges, and compared with the thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreamgen.config.settings import CurateSettings, Settings
from dreamgen.data.clip_context import ClipContext
from dreamgen.errors import UserError
from dreamgen.extensions.judge import JUDGES, Judge, LoadedJudge, curation_metrics
from dreamgen.extensions.score import SCORES, Metric
from dreamgen.run.records import JournalRecord

type LoadedJudges = Mapping[str, tuple[Judge, LoadedJudge]]


def chosen_judges(settings: Settings) -> dict[str, Judge]:
    """Return the judges that `curate.judges` names.

    Raises:
        UserError: if one is unknown, or two extensions measure the same metric.
    """
    list(curation_metrics())  # raises if two have the same name
    return {name: JUDGES.get(name) for name in settings.curate.judges}


def load_judges(settings: Settings) -> LoadedJudges:
    """Load the judges that `curate.judges` names.

    Raises:
        UserError: if one is unknown or cannot be loaded, or two extensions measure the same metric.
    """
    return {name: (judge, judge.load(settings)) for name, judge in chosen_judges(settings).items()}


def curate_clip(clip: ClipContext, limits: CurateSettings, judges: LoadedJudges) -> JournalRecord:
    """Measure one clip and compare each metric with its threshold.

    Judges cost far more than scores, so they see only clips that the scores accept.

    Args:
        clip: The clip, whose file exists.
        limits: The thresholds.
        judges: From `load_judges`.

    Returns:
        The record: ok; rejected, with every reason that applies; or failed, if a score or a judge raised an error.
    """
    file = str(clip.file.relative_to(clip.run.root))
    metrics = _empty_metrics(clip, limits, judges)
    try:
        clip.check_is_whole()
        metrics["num_frames"] = len(clip.video_THWC)
    except UserError as error:
        reasons = [f"not decodable: {error.actual or error.what}"]
    else:
        try:
            reasons = _measure(clip, limits, metrics) or _judge(clip, limits, judges, metrics)
        except Exception as error:
            return JournalRecord.of_error(clip.job.clip_id, "curate", error, file=file, metrics=metrics)
    status = "rejected" if reasons else "ok"
    reason = "; ".join(reasons) or None
    return JournalRecord(clip.job.clip_id, "curate", status, reason=reason, file=file, metrics=metrics)


def limit_of(limits: CurateSettings, metric: Metric) -> float | None:
    """Return a metric's threshold; its default, where it was registered after the settings were read."""
    return getattr(limits, metric.threshold.setting, metric.threshold.default)


def _empty_metrics(clip: ClipContext, limits: CurateSettings, judges: LoadedJudges) -> dict[str, Any]:
    metrics: dict[str, Any] = {"num_frames": None, "wanted_num_frames": clip.job.num_frames}
    for _, score in SCORES.items():
        metrics[score.name] = None
        metrics[score.threshold.setting] = limit_of(limits, score) if score.applies(clip.job) else None
    for name, (judge, loaded) in judges.items():
        metrics[f"{name}_version"] = loaded.version
        for metric in judge.metrics:
            metrics |= {metric.name: None, metric.threshold.setting: limit_of(limits, metric)}
            metrics[f"{metric.name}_reason"] = None
    return metrics


def _measure(clip: ClipContext, limits: CurateSettings, metrics: dict[str, Any]) -> list[str]:
    """Fill in the scores; return the reasons to reject the clip."""
    reasons = []
    if metrics["num_frames"] != clip.job.num_frames:
        reasons.append(f"wrong length: {metrics['num_frames']} frames instead of {clip.job.num_frames}")
    for _, score in SCORES.items():
        if score.applies(clip.job):
            value = score.measure(clip)
            metrics[score.name] = value = None if value is None else float(value)
            reasons.append(score.reason_to_reject(value, limit_of(limits, score)))
    return [reason for reason in reasons if reason]


def _judge(clip: ClipContext, limits: CurateSettings, judges: LoadedJudges, metrics: dict[str, Any]) -> list[str]:
    """Fill in the judgments; return the reasons to reject the clip."""
    reasons = []
    for judge, loaded in judges.values():
        judgments = loaded.judge(clip.video_THWC, clip.job.instruction)
        for metric in judge.metrics:
            judgment = judgments[metric.name]
            metrics[metric.name] = value = None if judgment.value is None else float(judgment.value)
            metrics[f"{metric.name}_reason"] = judgment.reason
            if reason := metric.reason_to_reject(value, limit_of(limits, metric)):
                reasons.append(f"{reason} ({judgment.reason})" if judgment.reason else reason)
    return reasons
