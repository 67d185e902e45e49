"""What every kind of demonstration is read into, and which kind a folder is."""

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
        path: The mp4.
        from_frame: Its first frame there.
        num_frames: How many; None: all that are there.
        view: Which part of the picture it is; None for the whole.
    """

    path: Path
    from_frame: int = 0
    num_frames: int | None = None
    view: View | None = None


@dataclass(frozen=True)
class SourceClip:
    """One demonstration as its source describes it; nothing of its video has been read yet.

    Args:
        name: File stem in the training set: unique there, letters, digits, `.`, `_` and `-`.
        origin: Where it is in the source, for people: a path below the source, or an episode.
        videos: One a camera; none when the clip is refused.
        instruction: The task in words, as the source has it.
        fps: Frames a second that the source states; None where only the video knows.
        load_trajectory: Reads its state and action; None where the source has none.
        changes: What was decided while reading the source, for the summary.
        refused: Why it cannot be used; None if it may.
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
    """Demonstrations that were opened.

    Args:
        layout: Which layout it is, in words.
        clips: In stable order.
        features: The robot, as `train/features.json` will hold it but for the views.
        cameras: Names of several whose pictures go into one; empty for one.
        findings: Quirks of the source that the user should know, a sentence each.
    """

    layout: str
    clips: tuple[SourceClip, ...]
    features: RobotFeatures
    findings: tuple[str, ...] = field(default=())
    cameras: tuple[str, ...] = ()


def safe_name(stem: str, taken: set[str]) -> str:
    """Return a file stem of plain characters that is not among `taken`, whatever the case of its letters."""
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
    """Return the clip with its text on one line and without the prefix, which would else be put before it twice."""
    if clip.refused:
        return clip
    text = bare_instruction(clip.instruction, prompt_prefix)
    if not text:
        return replace(clip, refused="its caption is empty")
    return replace(clip, instruction=text)
