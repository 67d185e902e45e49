"""The records that cross from one stage to the next, as files hold them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from dreamgen.data.views import View

METRICS_KEY = "figures"  # the name of `metrics` in journals and in `--json` output


@dataclass(frozen=True)
class StageResult:
    """The result of a stage: printed by its command as text or JSON.

    Args:
        stage: Name of the stage.
        outputs: What was written, by name.
        metrics: Counts and measurements by name.
        notes: Sentences for the user, such as what was refused and why.
        partial: True if something failed that can be retried; exit status 3.
    """

    stage: str
    outputs: dict[str, Path]
    metrics: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    partial: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the result as `--json` prints it."""
        return {METRICS_KEY if k == "metrics" else k: v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class RobotFeatures:
    """The robot of the demonstrations; `train/features.json`, written by prepare.

    Args:
        robot_type: As in LeRobot's info.json.
        camera: The video feature that was used, or None for a plain folder of videos.
        views: Of several cameras, where each is in the picture; empty where one fills it.
        state_names: One name a dimension; empty without states.
        action_names: One name a dimension; empty without actions.
        modality: GR00T's modality.json of the source, or None.
        source: Where the demonstrations were read, and their layout.
    """

    robot_type: str = "unknown"
    camera: str | None = None
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    modality: dict[str, Any] | None = None
    source: dict[str, Any] = field(default_factory=dict)
    views: tuple[View, ...] = ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RobotFeatures:
        """Read what `asdict` and JSON made of one."""
        names = {key: tuple(values[key]) for key in ("state_names", "action_names")}
        views = tuple(View.from_dict(view) for view in values.get("views", ()))
        return cls(**{**values, **names, "views": views})


@dataclass(frozen=True)
class Job:
    """One planned clip: a row of `jobs.parquet`. Every field below `clip_id` determines the clip.

    Args:
        clip_id: 20 hex digits, `job_id` of the other fields.
        first_frame_sha256: Hash of the pixels (height, width and RGB bytes) that the clip begins with, at its size;
            several frames stand below one another. None for a clip from text alone.
        num_conditioning_frames: Frames that the clip begins with: 1 (an image), 5 (a short video), 0 (text alone).
        instruction: The task in words, as the dataset will carry it.
        prompt: What the model reads: prefix + instruction.
        negative_prompt: What guidance steers away from.
        seed: Together with the id it draws the noise.
        num_frames: Of the whole clip.
        num_chunks: Samplings that the clip is made of, each beginning with the last frames of the one before.
        chunk_overlap: How many frames those are; they are in the clip once.
        level: Name of the sampler's level; exact, or one of those that trade likeness for speed.
        step_skipping: The level's sampling options, from `WorldModel.sampling_options`.
        model: Hub id and revision, or the folder's name.
        model_sha256: Fingerprint of the weights for a local folder; the revision for a hub model.
        adapter_sha256: Hash of the adapter's weights, or of a blend's; None without one.
        adapter: Where it lies: a folder, or FOLDER:WEIGHT,FOLDER:WEIGHT for a blend; not part of the id.
        source: Where the first frame came from; shown to the user, not part of the id.
    """

    clip_id: str
    first_frame_sha256: str | None
    num_conditioning_frames: int
    instruction: str
    prompt: str
    negative_prompt: str
    seed: int
    height: int
    width: int
    num_frames: int
    num_chunks: int
    chunk_overlap: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    level: str
    step_skipping: str
    model: str
    model_sha256: str
    adapter: str | None
    adapter_sha256: str | None
    dtype: str
    codec: str
    crf: int
    gop: int
    source: str

    @property
    def task_id(self) -> str:
        """Return the id that the worker pool knows the task by."""
        return self.clip_id

    @property
    def frames_a_chunk(self) -> int:
        """Frames that the model samples at once, 4k + 1."""
        return (self.num_frames + (self.num_chunks - 1) * self.chunk_overlap) // self.num_chunks


NOT_IN_JOB_ID = ("clip_id", "source", "model", "level", "adapter")
# Files, provenance and clip ids keep the names that these fields had first.
STORED_NAMES = {"num_conditioning_frames": "num_given_frames", "step_skipping": "shortcuts"}


def stored_name(field_name: str) -> str:
    """Return what `jobs.parquet`, provenance and the clip id call a field of `Job`."""
    return STORED_NAMES.get(field_name, field_name)


def job_id(values: dict[str, Any]) -> str:
    """Return a clip's id: the hash of all that determines it.

    Args:
        values: The fields of a `Job`; those in `NOT_IN_JOB_ID` are left out.

    Returns:
        20 hex digits of SHA-256 over canonical JSON.
    """
    content = {stored_name(f.name): values[f.name] for f in fields(Job) if f.name not in NOT_IN_JOB_ID}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:20]


Status = Literal["ok", "rejected", "failed"]


@dataclass(frozen=True)
class JournalRecord:
    """The result of one stage for one clip: a line of the journal.

    Args:
        clip_id: The job's id.
        stage: generate, label or curate.
        status: ok; rejected (a result, never retried); failed (an error, retried).
        reason: Why it was rejected, with metric and threshold.
        error: Type and message of a failure.
        traceback: Of a failure.
        file: What was written, relative to the run folder.
        metrics: Measurements by name, such as seconds and frame counts.
        attempt: Number of the attempt, from 1.
        worker: Host and process.
        time_s: Seconds since the epoch when the record was made.
    """

    clip_id: str
    stage: str
    status: Status
    reason: str | None = None
    error: str | None = None
    traceback: str | None = None
    file: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    attempt: int = 1
    worker: str | None = None
    time_s: float = 0.0

    def to_json(self) -> str:
        """Return the record as one line of JSON without empty fields."""
        values = {METRICS_KEY if k == "metrics" else k: v for k, v in asdict(self).items() if v not in (None, {})}
        return json.dumps(values, ensure_ascii=False)


@dataclass(frozen=True)
class AcceptedClip:
    """A clip that every stage accepted: export writes it as one episode.

    Args:
        job: The job that it belongs to.
        video: Its mp4.
        num_frames: Counted frames of the mp4.
        label: Parquet with `action` and perhaps `observation.state`, one row a frame.
        scores: Metrics of curate and label.
        safety_checker: Whether the guardrail checked this clip; None if its record does not contain it.
    """

    job: Job
    video: Path
    num_frames: int
    label: Path
    scores: dict[str, Any]
    safety_checker: bool | None = None
