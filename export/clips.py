"""Clips to export: an mp4 for each camera, a table of actions and an instruction, generated or real."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dreamgen.run.files import errors_name
from dreamgen.run.records import AcceptedClip, Job, stored_name
from export.label_origins import GENERATED, LabelOrigins

REAL = "real"  # as provenance has it on disk; GENERATED is the other kind
NOT_PROVENANCE = {"clip_id", "height", "width", "num_frames", "fps", "codec", "crf", "gop"}  # the video has them
KNOWN_OF_IMPORTED = {"instruction", "model", "level", "source"}


@dataclass(frozen=True)
class Clip:
    """A clip that becomes an episode.

    Args:
        clip_id: Of the job; for a real episode, a unique name.
        instruction: The task in words.
        fps: Frames a second.
        videos: Its mp4s, one a camera of the dataset.
        num_frames: Frames that each mp4 should have.
        label: Parquet with `action` and optionally `observation.state`, one row a frame.
        kind: `GENERATED` or `REAL`.
        crf: Quality that it was encoded with; None if unknown.
        gop: Frames between key frames; None if unknown.
        origin: Columns of its provenance; `scores` holds curation scores by name.
    """

    clip_id: str
    instruction: str
    fps: int
    videos: tuple[Path, ...]
    num_frames: int
    label: Path
    kind: str = GENERATED
    crf: int | None = None
    gop: int | None = None
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def video(self) -> Path:
        """The first camera's mp4."""
        return self.videos[0]

    def to_json(self) -> str:
        """Return the clip as one line of JSON."""
        paths = {"videos": [str(path) for path in self.videos], "label": str(self.label)}
        return json.dumps(vars(self) | paths, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Clip:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "videos": tuple(map(Path, values["videos"])), "label": Path(values["label"])})


def generated_clips(clips: Iterable[AcceptedClip], origins: LabelOrigins | None = None) -> Iterator[Clip]:
    """Convert a run's accepted clips; the fields of their jobs, and what made their labels, are their provenance."""
    origins = origins or LabelOrigins()
    from_job = [f.name for f in fields(Job) if f.name not in NOT_PROVENANCE]
    for clip in clips:
        job = clip.job
        # How an imported clip was sampled is not known.
        known = [name for name in from_job if not job.is_imported or name in KNOWN_OF_IMPORTED]
        origin = {stored_name(name): getattr(job, name) for name in known}
        origin |= {"safety_checker": clip.safety_checker, "scores": clip.scores, **origins.columns(clip)}
        yield Clip(
            job.clip_id, job.instruction, job.fps, (clip.video,), clip.num_frames, clip.label,
            crf=job.crf or None, gop=job.gop or None, origin=origin,
        )  # fmt: skip


class ClipList:
    """Clips in a temporary file that can be iterated several times: a hundred thousand take no RAM.

    Args:
        clips: Iterated once.
    """

    def __init__(self, clips: Iterable[Clip]) -> None:
        self._file = tempfile.TemporaryFile(prefix="dreamgen-clips-")  # noqa: SIM115
        self._length = self.num_frames = 0
        with errors_name(Path(tempfile.gettempdir()) / "dreamgen-clips"):
            for clip in clips:
                self._file.write(clip.to_json().encode() + b"\n")
                self._length += 1
                self.num_frames += clip.num_frames
            self._file.flush()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Clip]:
        offset = 0  # of this iterator: there may be several
        for _ in range(self._length):
            self._file.seek(offset)
            line = self._file.readline()
            offset += len(line)
            yield Clip.from_json(line.decode())
