"""Judges: models that watch a clip and say how well it shows its instruction.

A judge's module is imported for `--help`, so it imports numpy, torch and the like only inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dreamgen.errors import UserError
from dreamgen.extensions.registry import Registry
from dreamgen.extensions.score import SCORES, Metric, Threshold

if TYPE_CHECKING:
    import numpy as np

    from dreamgen.config.settings import Settings
    from dreamgen.data.clip_context import ClipContext


@dataclass(frozen=True)
class Judgment:
    """A judge's score of a clip for one metric.

    Args:
        value: The score, in the metric's unit; None where the judge gives none.
        reason: Why, in the judge's words; kept beside the value.
    """

    value: float | None
    reason: str | None = None


class LoadedJudge(Protocol):
    """A judge that is ready to watch clips; loaded once for all clips of a run.

    It may have `num_concurrent`, how many clips it may be asked about at a time from threads; `estimate(num_clips,
    height, width)`, which returns in words what so many clips cost.
    """

    @property
    def version(self) -> str:
        """Return what determines its answers, such as model id, revision and prompt; recorded with each verdict."""
        ...

    def judge(self, video_THWC: np.ndarray, instruction: str) -> Mapping[str, Judgment]:
        """Watch one clip.

        Args:
            video_THWC: uint8, 0-255, RGB.
            instruction: The task in words, without the prompt's prefix.

        Returns:
            A judgment for each of the judge's metrics, by name.
        """
        ...


class LoadedClipJudge(Protocol):
    """A loaded judge that reads more of a clip than its pictures."""

    @property
    def version(self) -> str:
        """Return what determines its answers."""
        ...

    def judge_clip(self, clip: ClipContext) -> Mapping[str, Judgment]:
        """Return a judgment for each of the judge's metrics, by name."""
        ...


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What a judge declares.

    Args:
        name: What users write in `curate.judges`.
        summary: What it judges and how, in one line.
        metrics: What it returns; each has a threshold setting in `curate`.
        load: Loads it, once for all clips of a run.
    """

    name: str
    summary: str
    metrics: tuple[Metric, ...]
    load: Callable[[Settings], LoadedJudge | LoadedClipJudge]


JUDGES: Registry[Judge] = Registry(
    "judge",
    "dreamgen.judges",
    {name: f"dreamgen.models.judges.{name}:JUDGE" for name in ("vlm", "ratings", "replay")},
)


def curation_metrics() -> Iterator[Metric]:
    """Yield the metrics of all registered scores, then those of all registered judges.

    Raises:
        UserError: if two of them have the same name.
    """
    seen: dict[str, str] = {}
    sources = [(f"the curation score {name}", (score,)) for name, score in SCORES.items()]
    sources += [(f"the judge {name}", judge.metrics) for name, judge in JUDGES.items()]
    for owner, metrics in sources:
        for metric in metrics:
            if metric.name in seen:
                raise UserError(
                    f"two extensions measure {metric.name}", actual=f"{seen[metric.name]} and {owner}",
                    next_step="rename one, or uninstall its package",
                )  # fmt: skip
            seen[metric.name] = owner
            yield metric


def threshold_settings() -> dict[str, Threshold]:
    """Return the settings of `curate` that extensions declare: name -> threshold."""
    return {metric.threshold.setting: metric.threshold for metric in curation_metrics()}
