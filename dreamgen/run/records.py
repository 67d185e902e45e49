"""The records that stages exchange through files."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from dreamgen.data.views import View

IMPORTED = "imported"  # `level` of a job whose clip was made elsewhere
METRICS_KEY = "figures"  # the name of `metrics` in journals and in `--json` output


@dataclass(frozen=True)
class StageResult:
    """The result of a stage: printed by its command as text or JSON.

    Args:
        stage: Name of the stage.
        outputs: Paths of the written files, by name; a `Store` for those in an object store.
        metrics: Counts and measurements by name.
        notes: Sentences for the user, such as what was refused and why.
        partial: True if something failed that can be retried; exit status 3.
    """

    stage: str
    outputs: Mapping[str, Path | Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    partial: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the result as `--json` prints it."""
        return {METRICS_KEY if k == "metrics" else k: v for k, v in asdict(self).items()}


def robot_type_of(value: Any) -> str:
    """Return the robot_type of a file, `unknown` where it is no text or empty."""
    return value if isinstance(value, str) and value.strip() else "unknown"


@dataclass(frozen=True)
class RobotFeatures:
    """The robot of the demonstrations; `train/features.json`, written by prepare.

    Args:
        robot_type: As in LeRobot's info.json.
        camera: The video feature; None for a plain folder of videos.
        views: The tile of each camera in the image; empty for a single camera.
        state_names: One name per dimension; empty without states.
        action_names: One name per dimension; empty without actions.
        modality: GR00T's modality.json of the source, or None.
        source: Path and layout of the demonstrations.
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
        """Create the features from the result of `dataclasses.asdict`, for example after JSON."""
        names = {key: tuple(values[key]) for key in ("state_names", "action_names")}
        views = tuple(View.from_dict(view) for view in values.get("views", ()))
        robot_type = robot_type_of(values.get("robot_type"))
        return cls(**{**values, **names, "views": views, "robot_type": robot_type})


@dataclass(frozen=True)
class Job:
    """One planned clip: a row of `jobs.parquet`. Every field below `clip_id` determines the clip.

    Args:
        clip_id: 20 hex digits, `job_id` of the other fields.
        first_frame_sha256: Hash of the conditioning frames (height, width and RGB bytes) at the clip's size, stacked
            vertically. None for a clip from text alone.
        num_conditioning_frames: 1 (an image), 5 (a short video) or 0 (text alone).
        instruction: The task in words, as in the exported dataset.
        prompt: Input of the text encoder: prefix + instruction.
        negative_prompt: Text that guidance steers away from.
        seed: Determines the noise, together with the id.
        num_frames: Of the whole clip.
        num_chunks: Number of chunks sampled one after another; each is conditioned on the end of the previous one.
        chunk_overlap: Number of conditioning frames of a later chunk; the clip contains them once.
        level: Name of the sampling level: exact, or one that trades fidelity for speed; `IMPORTED` for a clip that was
            made elsewhere, whose `model` is what the user says made it and whose `model_sha256` hashes its file.
        step_skipping: The level's sampling options, from `WorldModel.sampling_options`.
        model: Hub id and revision, or the folder's name.
        model_sha256: Fingerprint of the weights for a local folder; the revision for a hub model.
        adapter_sha256: Hash of the adapter's weights, or of a blend's; None without one.
        adapter: A folder, or FOLDER:WEIGHT,FOLDER:WEIGHT for a blend; not part of the id.
        source: Origin of the first frame, shown to the user; not part of the id.
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
    def is_imported(self) -> bool:
        """Return whether the clip was made elsewhere and imported: `generate` does not make it."""
        return self.level == IMPORTED

    @property
    def task_id(self) -> str:
        """Return the task id in the worker pool."""
        return self.clip_id

    @property
    def frames_a_chunk(self) -> int:
        """Return the number of frames that the model samples at once, 4k + 1."""
        return (self.num_frames + (self.num_chunks - 1) * self.chunk_overlap) // self.num_chunks


NOT_IN_JOB_ID = ("clip_id", "source", "model", "level", "adapter")
# Files, provenance and clip ids keep the original names of these fields.
STORED_NAMES = {"num_conditioning_frames": "num_given_frames", "step_skipping": "shortcuts"}


def stored_name(field_name: str) -> str:
    """Return the name of a field of `Job` in `jobs.parquet`, provenance and the clip id."""
    return STORED_NAMES.get(field_name, field_name)


def job_id(values: dict[str, Any]) -> str:
    """Return a clip's id: the hash of all fields that determine the clip.

    Args:
        values: The fields of a `Job`; those in `NOT_IN_JOB_ID` are ignored.

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
        reason: Reason of a rejection, with metric and threshold.
        error: Type and message of a failure.
        traceback: Traceback of a failure.
        file: The written file, relative to the run folder.
        metrics: Measurements by name, such as seconds and frame counts.
        attempt: Number of the attempt, from 1.
        worker: Host and process.
        time_s: Time of the record, in seconds since the epoch.
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

    @classmethod
    def of_error(cls, clip_id: str, stage: str, error: Exception, **values: Any) -> JournalRecord:
        """Return the record of a failure; called while the error is handled, as it takes the traceback."""
        text = f"{type(error).__name__}: {error}"
        return cls(clip_id, stage, "failed", error=text, traceback=traceback.format_exc(), **values)

    def to_json(self) -> str:
        """Return the record as one line of JSON without empty fields."""
        values = {METRICS_KEY if k == "metrics" else k: v for k, v in asdict(self).items() if v not in (None, {})}
        return json.dumps(values, ensure_ascii=False)


@dataclass(frozen=True)
class AcceptedClip:
    """A clip that passed every stage; export writes it as one episode.

    Args:
        job: The job that it belongs to.
        video: Its mp4.
        num_frames: Counted frames of the mp4.
        label: Parquet file with `action` and optionally `observation.state`, one row per frame.
        scores: Metrics of curate and label.
        safety_checker: Whether the guardrail checked this clip; None if its record does not contain it.
    """

    job: Job
    video: Path
    num_frames: int
    label: Path
    scores: dict[str, Any]
    safety_checker: bool | None = None
