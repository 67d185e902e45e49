"""Judges rate the clips that the scores accept; what they say is kept with the clip's measurements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import batched
from pathlib import Path
from typing import Any

from dreamgen.config.settings import Settings
from dreamgen.curate.measure import MEASURE, VERSIONS
from dreamgen.data.clip_context import ClipContext
from dreamgen.extensions.judge import JUDGES, Judge, Judgment, LoadedClipJudge, LoadedJudge, curation_metrics
from dreamgen.models.judges.ratings import write_ratings
from dreamgen.run.records import JournalRecord

type LoadedJudges = Mapping[str, tuple[Judge, LoadedJudge | LoadedClipJudge]]
REASON = "_reason"  # appended to a metric's name: the judge's words


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


def needs_judging(measured: JournalRecord, judges: LoadedJudges) -> bool:
    """Return whether a judge has not rated the clip in its present version."""
    versions = measured.metrics[VERSIONS]
    return any(versions.get(name) != loaded.version for name, (_, loaded) in judges.items())


def judge_clip(clip: ClipContext, measured: JournalRecord, judges: LoadedJudges) -> JournalRecord:
    """Ask the judges that have not rated a clip yet.

    Args:
        clip: The clip.
        measured: Its measurements.
        judges: From `load_judges`.

    Returns:
        The measurements with the ratings; failed, if a judge raised an error.
    """
    metrics: dict[str, Any] = {**measured.metrics, VERSIONS: dict(measured.metrics[VERSIONS])}
    versions = metrics[VERSIONS]
    try:
        for name, (judge, loaded) in judges.items():
            if versions.get(name) != loaded.version:
                judgments = _judgments(loaded, clip)
                for metric in judge.metrics:
                    judgment = judgments[metric.name]
                    metrics[metric.name] = None if judgment.value is None else float(judgment.value)
                    metrics[metric.name + REASON] = judgment.reason
                versions[name] = loaded.version
    except Exception as error:
        return JournalRecord.of_error(clip.job.clip_id, MEASURE, error, file=measured.file, metrics=metrics)
    return replace(measured, metrics=metrics, time_s=0.0)


def _judgments(loaded: Any, clip: ClipContext) -> Mapping[str, Judgment]:
    if hasattr(loaded, "judge_clip"):
        return loaded.judge_clip(clip)
    return loaded.judge(clip.video_THWC, clip.job.instruction)


def write_rating_tables(
    folder: Path, judged: Iterable[tuple[ClipContext, JournalRecord]], judges: LoadedJudges
) -> None:
    """Write what judges said as DreamGen Bench does: `METRIC.csv` with video_path, prompt and prediction.

    Args:
        folder: `scores/` of the run.
        judged: Clips with their verdicts.
        judges: Those that rated them.
    """
    names = [metric.name for judge, _ in judges.values() for metric in judge.metrics]
    rows: dict[str, list[tuple[str, str, float]]] = {name: [] for name in names}
    for clip, record in judged:
        for name in names:
            if (value := record.metrics.get(name)) is not None:
                rows[name].append((str(clip.file), clip.job.instruction, value))
    for name in names:
        write_ratings(folder / f"{name}.csv", rows[name])


def judge_clips(clips: Iterable[tuple[ClipContext, JournalRecord]], judges: LoadedJudges) -> Iterator[JournalRecord]:
    """Rate clips, several at a time where every judge allows it.

    Args:
        clips: Each with its measurements.
        judges: From `load_judges`.

    Yields:
        What `judge_clip` returns, in the order of the clips.
    """
    at_once = min((getattr(loaded, "num_concurrent", 1) for _, loaded in judges.values()), default=1)
    with ThreadPoolExecutor(at_once) as threads:
        for some in batched(clips, at_once):
            yield from threads.map(lambda pair: judge_clip(pair[0], pair[1], judges), some)
