"""Check each clip before anything is decoded or written: which frames it gives, or why it is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from dreamgen.config.settings import Settings
from dreamgen.data.display import UPRIGHT
from dreamgen.data.lerobot.pictures import stored_pictures
from dreamgen.data.timeline import MAX_FRAMES_APART, resampled_indices, row_frames, states_wrong_rate
from dreamgen.data.video import VideoInfo, probe
from dreamgen.data.views import View, short_name
from dreamgen.errors import UserError, reason_of
from dreamgen.prepare.sources.source import SourceClip, SourceVideo
from dreamgen.progress import Progress


@dataclass(frozen=True)
class SurveyedClip:
    """A clip with the frames that will be written.

    Args:
        clip: The clip as the source describes it.
        infos: Its videos; empty if one could not be opened.
        fps: Frames a second of the source; 0 if it is refused.
        num_source_frames: Frames of the source that have both a picture and a row.
        indices: Source row of each frame that will be written, int64.
        frames: The frame of each row in its video, int64, one a camera.
        changes: How the clip differs from its source, a sentence each.
        refused: Why it cannot be used; None if it can.
    """

    clip: SourceClip
    infos: tuple[VideoInfo, ...] = ()
    fps: Fraction = Fraction(0)
    num_source_frames: int = 0
    indices: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    frames: tuple[np.ndarray, ...] = ()
    changes: tuple[str, ...] = ()
    refused: str | None = None


def survey(clips: Sequence[SourceClip], settings: Settings, views: tuple[View, ...] = ()) -> Iterator[SurveyedClip]:
    """Probe every clip's videos and check its trajectory; each file is probed once, however many clips share it.

    Args:
        clips: Clips of the source.
        settings: Settings of the run.
        views: Tiles of several cameras; empty for one.
    """
    probe_once = functools.lru_cache(maxsize=None)(probe)
    with Progress("survey", len(clips)) as progress:
        for clip in clips:
            surveyed = _surveyed(clip, probe_once, settings, views)
            progress.add(rejected=surveyed.refused is not None)
            yield surveyed


def _surveyed(
    clip: SourceClip, probe_once: Callable[[Path], VideoInfo], settings: Settings, views: tuple[View, ...]
) -> SurveyedClip:
    if clip.refused:
        return SurveyedClip(clip, refused=clip.refused)
    infos: tuple[VideoInfo, ...] = ()
    try:
        infos = tuple(probe_once(video.path) if video.column is None else
                      stored_pictures(video.path, video.column, video.episode_index, clip.fps or Fraction(1))
                      for video in clip.videos)  # fmt: skip
        return _survey_clip(clip, infos, settings, views)
    except UserError as error:
        return SurveyedClip(clip, infos, refused=reason_of(error))


def resampling_findings(surveyed: Iterable[SurveyedClip], settings: Settings) -> list[str]:
    """Report how actions were resampled, where that would be wrong for another kind of action."""
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
    """Format frames a second."""
    return f"{float(fps):.6g}"


def _survey_clip(
    clip: SourceClip, infos: tuple[VideoInfo, ...], settings: Settings, views: tuple[View, ...]
) -> SurveyedClip:
    video, changes, fps = settings.video, list(clip.changes), clip.fps or infos[0].fps
    num_rows = clip.load_trajectory().num_rows if clip.load_trajectory is not None else None
    if num_rows is None and clip.fps is None and not all(info.times.is_regular(info.fps) for info in infos):
        fps, frames = Fraction(video.fps), tuple(info.times.at_rate(video.fps) for info in infos)
        changes.append(f"its frame rate varies, {_steps(infos)}: the nearest frame is taken each 1/{video.fps} s")
    else:
        frames = _frames_of_rows(clip, infos, fps, num_rows)
        for info, source in zip(infos, clip.videos, strict=True):
            if states_wrong_rate(info.times, fps, source.span_s, num_rows):
                note = f"the video states {rate(info.fps)} fps, the dataset {rate(fps)}: the dataset's is used"
                changes += [note] if note not in changes else []
    num_frames = _num_common_frames(clip, frames)
    if num_rows is not None:
        if abs(num_rows - num_frames) > MAX_FRAMES_APART:
            raise UserError(
                "numbers of rows and frames do not match",
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
    changes += _display_changes(infos)
    for source, info, view in zip(clip.videos, infos, views or (None,), strict=True):
        height, width = (view.height, view.width) if view else (video.height, video.width)
        source_height, source_width = _size_of(source, info)
        if (source_height, source_width) != (height, width):
            same_aspect = source_height * width == source_width * height
            how = "" if same_aspect else {"crop": ", borders cut", "pad": ", black borders added"}[settings.prepare.fit]
            camera = f"{view.camera} " if view else ""
            changes.append(f"{camera}resized from {source_height}x{source_width} to {height}x{width}{how}")
    return SurveyedClip(clip, infos, fps, num_frames, indices, frames, tuple(changes))


def _frames_of_rows(
    clip: SourceClip, infos: tuple[VideoInfo, ...], fps: Fraction, num_rows: int | None
) -> tuple[np.ndarray, ...]:
    """Return the frame of each row by time; of a video without rows, all frames in their order."""
    if num_rows is None and clip.fps is None:
        return tuple(np.arange(info.num_frames) for info in infos)
    return tuple(row_frames(info.times, fps, video.span_s, num_rows)
                 for info, video in zip(infos, clip.videos, strict=True))  # fmt: skip


def _steps(infos: tuple[VideoInfo, ...]) -> str:
    steps_s = np.concatenate([np.diff(info.times.pts_T) * float(info.times.unit_s) for info in infos])
    return f"{1000 * steps_s.min():.0f} to {1000 * steps_s.max():.0f} ms from frame to frame"


def _display_changes(infos: tuple[VideoInfo, ...]) -> list[str]:
    """Describe what is done to frames because their file says how they are to be shown."""
    changes = []
    for display in dict.fromkeys(info.display for info in infos):
        if display.orientation != UPRIGHT:
            changes.append("turned upright, as its display matrix says")
        if display.pixel_aspect != 1:
            changes.append(f"its pixels of {display.pixel_aspect} made square")
        if display.color.hdr:
            changes.append(f"its colors are HDR ({display.color.hdr}): taken as they are, without tone mapping")
    return changes


def _size_of(source: SourceVideo, info: VideoInfo) -> tuple[int, int]:
    part = source.view
    if part is None:
        return info.height, info.width
    if part.top + part.height > info.height or part.left + part.width > info.width:
        raise UserError(
            f"its frames are too small for the camera {short_name(part.camera)}",
            actual=f"{info.width} x {info.height}",
            allowed=f"{part.width} x {part.height} at {part.left},{part.top}, as features.json says",
        )  # fmt: skip
    return part.height, part.width


def _num_common_frames(clip: SourceClip, frames: tuple[np.ndarray, ...]) -> int:
    counts = [len(of_camera) for of_camera in frames]
    if max(counts) - min(counts) > MAX_FRAMES_APART:
        raise UserError(
            "the cameras' videos differ in length",
            actual=", ".join(f"{count} frames in {video.path.parent.name}/{video.path.name}"
                             for count, video in zip(counts, clip.videos, strict=True)),
            allowed=f"at most {MAX_FRAMES_APART} apart",
        )  # fmt: skip
    return min(counts)
