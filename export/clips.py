"""What export is given: clips with an mp4, a table of actions and an instruction, dreamed or real."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dreamgen.run.records import AcceptedClip, Job, stored_name

DREAMED, REAL = "dreamed", "real"
NOT_PROVENANCE = {"clip_id", "height", "width", "num_frames", "fps", "codec", "crf", "gop"}  # the video says them


@dataclass(frozen=True)
class Clip:
    """One episode to be.

    Args:
        clip_id: Of the job; for a real episode, a name that no other has.
        instruction: The task in words.
        fps: Frames a second.
        videos: Its mp4s, one a camera of the dataset.
        num_frames: Frames that each should have.
        label: Parquet with `action` and perhaps `observation.state`, one row a frame.
        kind: dreamed or real.
        crf: Quality that it was encoded with; None where that is not known.
        gop: Frames between key frames, likewise.
        origin: Columns of its provenance; `scores` holds figures by name.
    """

    clip_id: str
    instruction: str
    fps: int
    videos: tuple[Path, ...]
    num_frames: int
    label: Path
    kind: str = DREAMED
    crf: int | None = None
    gop: int | None = None
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def video(self) -> Path:
        """The first camera's mp4."""
        return self.videos[0]

    def to_json(self) -> str:
        """Return the clip as one line of JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        paths = {"videos": [str(path) for path in self.videos], "label": str(self.label)}
        return json.dumps(values | paths, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Clip:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "videos": tuple(map(Path, values["videos"])), "label": Path(values["label"])})


def dreamed_clips(clips: Iterable[AcceptedClip]) -> Iterator[Clip]:
    """Turn a run's accepted clips into episodes to be; whatever their job says is their provenance."""
    from_job = [f.name for f in fields(Job) if f.name not in NOT_PROVENANCE]
    for clip in clips:
        job = clip.job
        origin = {stored_name(name): getattr(job, name) for name in from_job}
        origin |= {"safety_checker": clip.safety_checker, "scores": clip.scores}
        yield Clip(
            job.clip_id, job.instruction, job.fps, (clip.video,), clip.num_frames, clip.label,
            crf=job.crf, gop=job.gop, origin=origin,
        )  # fmt: skip


class ClipList:
    """Clips in a temporary file, to be gone through several times: a hundred thousand take no memory.

    Args:
        clips: Gone through once.
    """

    def __init__(self, clips: Iterable[Clip]) -> None:
        self._file = tempfile.TemporaryFile(prefix="dreamgen-clips-")  # noqa: SIM115
        self._length = self.num_frames = 0
        for clip in clips:
            self._file.write(clip.to_json().encode() + b"\n")
            self._length += 1
            self.num_frames += clip.num_frames

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Clip]:
        place = 0  # of this reader: there may be several
        while True:
            self._file.seek(place)
            line = self._file.readline()
            place = self._file.tell()
            if not line:
                return
            yield Clip.from_json(line.decode())
