"""What every demonstration source returns: clips with videos, instructions and trajectories."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from dreamgen.data.prompts import bare_instruction
from dreamgen.data.trajectory import Trajectory
from dreamgen.data.views import View
from dreamgen.run.records import RobotFeatures


@dataclass(frozen=True)
class SourceVideo:
    """One camera's frames of a demonstration.

    Args:
        path: The mp4, or the table that holds pictures.
        span_s: Where the demonstration begins and ends in an mp4 that several share, in seconds; None for one of its
            own.
        view: The part of the picture that belongs to this camera; None for the whole.
        column: Of the table's pictures; None for an mp4.
        episode_index: Whose rows of the table are meant; None for all.
    """

    path: Path
    span_s: tuple[float, float] | None = None
    view: View | None = None
    column: str | None = None
    episode_index: int | None = None


@dataclass(frozen=True)
class SourceClip:
    """One demonstration as its source describes it; its video has not been read yet.

    Args:
        name: File stem in the training set: unique there; letters, digits, `.`, `_` and `-`; from `safe_names`.
        origin: Where it is in the source, for display: a path below the source, or an episode.
        videos: One a camera; empty if the clip is refused.
        instruction: The task in words, as the source has it.
        fps: Frames a second that the source states; None to take the video's.
        load_trajectory: Reads its states and actions; None if the source has none.
        changes: Decisions that were made while reading the source, for the summary.
        refused: Why it cannot be used; None if it can.
    """

    name: str
    origin: str
    videos: tuple[SourceVideo, ...] = ()
    instruction: str = ""
    fps: Fraction | None = None
    load_trajectory: Callable[[], Trajectory] | None = None
    changes: tuple[str, ...] = ()
    refused: str | None = None


@dataclass(frozen=True)
class Source:
    """Demonstrations of one file or folder.

    Args:
        layout: The layout in words.
        clips: Demonstrations in stable order.
        features: The robot, as `train/features.json` will have it, without the views.
        cameras: Names of several cameras that are tiled into one picture; empty for one.
        findings: What the user should know about the source, a sentence each.
    """

    layout: str
    clips: tuple[SourceClip, ...]
    features: RobotFeatures
    findings: tuple[str, ...] = field(default=())
    cameras: tuple[str, ...] = ()


def safe_name(stem: str, taken: set[str]) -> str:
    """Return a file stem of plain characters that is not in `taken`, ignoring case."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-")[:100] or "clip"
    name, number = base, 2
    while name.lower() in taken:
        name, number = f"{base}_{number}", number + 1
    return name


def safe_names(stems: Iterable[str]) -> list[str]:
    """Return a unique `safe_name` for each stem, in order."""
    taken: set[str] = set()
    names = []
    for stem in stems:
        names.append(safe_name(stem, taken))
        taken.add(names[-1].lower())
    return names


def with_bare_instruction(clip: SourceClip, prompt_prefix: str) -> SourceClip:
    """Return the clip with its instruction on one line and without the prefix, which prepare adds again."""
    if clip.refused:
        return clip
    text = bare_instruction(clip.instruction, prompt_prefix)
    if not text:
        return replace(clip, refused="its caption is empty")
    return replace(clip, instruction=text)
