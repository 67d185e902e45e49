"""Looking at each clip before anything is decoded or written: which frames it will give, or why it is refused."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dreamgen.core.errors import UserError, reason_of
from dreamgen.core.settings import Settings
from dreamgen.core.timeline import resampled_indices
from dreamgen.core.video import VideoInfo, probe
from dreamgen.prepare.sources import SourceClip

# A recorder that stops between a row and its picture loses one or two; more means that they do not belong together.
MAX_FRAMES_APART = 2


@dataclass(frozen=True)
class SurveyedClip:
    """A clip and what will be made of it.

    Args:
        clip: As the source describes it.
        info: Its video; None where it could not be opened.
        fps: Frames a second of the source.
        num_source_frames: Frames of the source that have both a picture and a row.
        indices: Frame of the source for each frame that will be written, int64.
        changes: How the clip differs from its source.
        refused: Why it cannot be used; None if it can.
    """

    clip: SourceClip
    info: VideoInfo | None = None
    fps: Fraction | None = None
    num_source_frames: int = 0
    indices: np.ndarray | None = None
    changes: tuple[str, ...] = ()
    refused: str | None = None


def survey(clips: Iterable[SourceClip], settings: Settings) -> Iterator[SurveyedClip]:
    """Probe every clip's video and check its trajectory; each file is probed once, however many clips share it."""
    probe_once = functools.lru_cache(maxsize=None)(probe)
    for clip in clips:
        if clip.refused:
            yield SurveyedClip(clip, refused=clip.refused)
            continue
        info = None
        try:
            info = probe_once(clip.video)
            yield _survey_clip(clip, info, settings)
        except UserError as error:
            yield SurveyedClip(clip, info, refused=reason_of(error))


def resampling_findings(surveyed: Iterable[SurveyedClip], settings: Settings) -> list[str]:
    """Say how actions were resampled, where that would be wrong for another kind of action."""
    if settings.prepare.action_kind == "delta":
        return []
    num_resampled = sum(
        not clip.refused and clip.fps != settings.video.fps and clip.clip.load_trajectory is not None
        for clip in surveyed
    )
    if not num_resampled:
        return []
    return [
        f"{num_resampled} clips are resampled to {settings.video.fps} fps: actions are taken as absolute targets; "
        "set --prepare.action_kind=delta for per-frame deltas"
    ]


def check_length(indices: np.ndarray, settings: Settings, num_source_frames: int, source_fps: Fraction) -> None:
    """Refuse a clip that is shorter than a training window.

    Raises:
        UserError: with both lengths.
    """
    if len(indices) < settings.video.num_frames:
        raise UserError(
            "shorter than a window",
            actual=f"{num_source_frames} frames at {rate(source_fps)} fps, "
            f"which are {len(indices)} at {settings.video.fps} fps",
            allowed=f"at least {settings.video.num_frames}",
        )


def rate(fps: Fraction) -> str:
    """Return frames a second as people write them."""
    return f"{float(fps):.6g}"


def _survey_clip(clip: SourceClip, info: VideoInfo, settings: Settings) -> SurveyedClip:
    video, changes = settings.video, list(clip.changes)
    fps = clip.fps or info.fps
    if abs(float(info.fps / fps) - 1) > 0.01:
        changes.append(f"the video states {rate(info.fps)} fps, the dataset {rate(fps)}: the dataset's is used")
    num_frames = max(0, info.num_frames - clip.from_frame)
    if clip.num_frames is not None:
        num_frames = min(num_frames, clip.num_frames)
    if clip.load_trajectory is not None:
        num_rows = clip.load_trajectory().num_rows
        if abs(num_rows - num_frames) > MAX_FRAMES_APART:
            raise UserError(
                "rows and frames do not belong together",
                actual=f"{num_rows} rows, {num_frames} frames",
                allowed=f"at most {MAX_FRAMES_APART} apart",
            )
        if num_rows != num_frames:
            changes.append(f"{num_rows} rows and {num_frames} frames: used what both have")
        num_frames = min(num_rows, num_frames)
    indices = resampled_indices(num_frames, fps, video.fps)
    check_length(indices, settings, num_frames, fps)
    if fps != video.fps:
        changes.append(f"resampled from {rate(fps)} to {video.fps} fps")
    if (info.height, info.width) != (video.height, video.width):
        same_aspect = info.height * video.width == info.width * video.height
        how = "" if same_aspect else {"crop": ", borders cut", "pad": ", black borders added"}[settings.prepare.fit]
        changes.append(f"resized from {info.height}x{info.width} to {video.height}x{video.width}{how}")
    return SurveyedClip(clip, info, fps, num_frames, indices, tuple(changes))
