"""Curation scores: what a score declares, and the registry that settings, help, curate and export read.

A score's module is imported for `--help`, so it imports numpy, cv2, torch and the like only inside functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dreamgen.extensions.registry import Registry

if TYPE_CHECKING:
    from dreamgen.data.clip_context import ClipContext
    from dreamgen.run.records import Job


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The setting `curate.NAME` that a metric is compared with.

    Args:
        setting: Name of the setting, such as `min_motion`: `min_` or `max_`, then the metric's name.
        default: Its default; None measures and never rejects unless the user sets a value.
        help: What `dreamgen curate --help` shows.
        low: Smallest value that the setting may have.
        high: Largest value that the setting may have.
    """

    setting: str
    default: float | None
    help: str
    low: float = -math.inf
    high: float = math.inf

    @property
    def direction(self) -> Literal["min", "max"]:
        """Return whether values below the threshold (min) or above it (max) reject a clip."""
        return "min" if self.setting.startswith("min_") else "max"

    @property
    def loosest(self) -> float:
        """Return a value of the setting that hardly any clip violates: its end, or a large number where it has none."""
        end = self.low if self.direction == "min" else self.high
        return end if math.isfinite(end) else math.copysign(1e9, end)

    def nearest(self, values: Sequence[float]) -> float:
        """Return which of some values that violate the threshold is closest to it."""
        return max(values) if self.direction == "min" else min(values)

    def is_violated(self, value: float, limit: float | None) -> bool:
        """Return whether a value rejects a clip; NaN does, and no value does where `limit` is None."""
        if limit is None:
            return False
        return not (value >= limit if self.direction == "min" else value <= limit)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number about one clip: a column of `scores.parquet` and a key of the journal's metrics.

    Args:
        name: Column name, such as `motion`.
        unit: Unit of the values, such as "dB"; empty for a ratio.
        summary: What it measures, in one line.
        threshold: The setting that it is compared with; named `min_NAME` or `max_NAME`.
        rejection: Reason for a rejection; `{value}` and `{limit}` are filled in, with a format where wanted.
        missing: Reason for a rejection where the metric applies but gives None; None accepts the clip.
        better: Which values rank a clip higher among those that are good enough; None: those far from the threshold.
    """

    name: str
    unit: str = ""
    summary: str
    threshold: Threshold
    rejection: str
    missing: str | None = None
    better: Literal["low", "high"] | None = None

    @property
    def is_high_better(self) -> bool:
        """Return whether a high value ranks a clip higher among those that are good enough."""
        return (self.better or {"min": "high", "max": "low"}[self.threshold.direction]) == "high"

    def __post_init__(self) -> None:
        allowed = (f"min_{self.name}", f"max_{self.name}")
        if self.threshold.setting not in allowed:
            raise ValueError(f"the threshold of {self.name} is {self.threshold.setting}, not {' or '.join(allowed)}")

    def reason_to_reject(self, value: float | None, limit: float | None) -> str | None:
        """Compare a value with its threshold.

        Args:
            value: What was measured; None where it could not be.
            limit: The threshold's value in this run's settings.

        Returns:
            Why the clip is rejected; None if it is not.
        """
        if value is None:
            return self.missing
        if self.threshold.is_violated(value, limit):
            return self.rejection.format(value=value, limit=limit)
        return None


def every_clip(job: Job) -> bool:
    """Apply to every clip."""
    return True


@dataclass(frozen=True, kw_only=True)
class Score(Metric):
    """A metric that a function measures on each clip.

    Args:
        measure: Measures one clip; returns None where there is nothing to measure.
        applies: Whether a job's clip is measured and compared at all, such as only one with a first frame.
        is_calibrated: Whether `curate --calibrate` sets its threshold.
        needs_vae: Whether it is measured only where the VAE of the run's model is loaded.
        version: Raised with each change of what is measured; values of other versions are measured again.
        reads_demonstrations: Whether its values depend on the training set; they are measured again when that changes.
    """

    measure: Callable[[ClipContext], float | None]
    applies: Callable[[Job], bool] = every_clip
    version: int = 1
    is_calibrated: bool = True
    needs_vae: bool = False
    reads_demonstrations: bool = False


SCORES: Registry[Score] = Registry(
    "curation score",
    "dreamgen.scores",
    {
        "motion": "dreamgen.curate.scores.motion:SCORE",
        "first_frame_psnr_db": "dreamgen.curate.scores.first_frame_psnr_db:SCORE",
        "cut_score": "dreamgen.curate.scores.cut_score:SCORE",
        "frozen": "dreamgen.curate.scores.frozen:SCORE",
        "jump": "dreamgen.curate.scores.jump:SCORE",
        "disorder": "dreamgen.curate.scores.disorder:SCORE",
        "flicker": "dreamgen.curate.scores.flicker:SCORE",
        "kept_sharpness": "dreamgen.curate.scores.kept_sharpness:SCORE",
        "noise": "dreamgen.curate.scores.noise:SCORE",
        "color_drift": "dreamgen.curate.scores.color_drift:SCORE",
        "flow_speed": "dreamgen.curate.scores.flow_speed:SCORE",
        "flow_roughness": "dreamgen.curate.scores.flow_roughness:SCORE",
        "action_speed": "dreamgen.curate.scores.action_speed:SCORE",
        "action_jerk": "dreamgen.curate.scores.action_jerk:SCORE",
        "state_consistency": "dreamgen.curate.scores.state_consistency:SCORE",
        "action_outside_demos": "dreamgen.curate.scores.action_outside_demos:SCORE",
        "label_uncertainty": "dreamgen.curate.scores.label_uncertainty:SCORE",
        "end_deviation": "dreamgen.curate.scores.end_deviation:SCORE",
        "end_frame_difference": "dreamgen.curate.scores.end_frame_difference:SCORE",
        "demonstration_difference": "dreamgen.curate.scores.demonstration_difference:SCORE",
        "epipolar_error": "dreamgen.curate.scores.epipolar_error:SCORE",
        "vae_residual": "dreamgen.curate.scores.vae_residual:SCORE",
    },
)
