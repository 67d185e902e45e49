"""The settings of every stage: a default, its help, its bounds and its scope are written down in one place.

A YAML preset has the same shape as `Settings`. Numbers that belong to one model or robot are not here but in configs/.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dreamgen.config.dataset_settings import CheckSettings, ConvertSettings, ExportSettings
from dreamgen.config.options import option, section
from dreamgen.config.training_settings import FinetuneSettings, FinetuneVaeSettings, IdmSettings
from dreamgen.extensions.judge import JUDGES, threshold_settings
from dreamgen.run.shard import Shard

MAX_CRF = 63  # of AV1; h264 ends at 51


def _bound(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class ModelSettings:
    """The world model that generates clips."""

    path: str = option(
        "nvidia/Cosmos-Predict2.5-2B", "hub id, local folder, 'mini' (small, for a CPU) or 'mini-random' (untrained)"
    )
    revision: str | None = option("diffusers/base/post-trained", "hub revision; ignored for a local folder")
    dtype: Literal["bfloat16", "float32"] = option(
        "bfloat16", "precision of the frozen weights", invalidates=("finetune",)
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N", scope="machine")
    safety_checker: bool = option(
        True, "run the guardrail that the model's license requires (cosmos_guardrail)", scope="machine"
    )


@dataclass(frozen=True)
class VideoSettings:
    """The shape of every clip, prepared or generated, and how it is encoded (once)."""

    height: int = option(
        432,
        "height of a clip in pixels; each world model has its own rules, and the error names the nearest valid size",
        ge=2,
        multiple_of=2,
        invalidates=("finetune",),
    )
    width: int = option(768, "width of a clip in pixels; see height", ge=2, multiple_of=2, invalidates=("finetune",))
    num_frames: int = option(93, "frames per clip; 4k + 1 for the built-in models", ge=2, invalidates=("finetune",))
    fps: int = option(16, "frames per second that the model was trained at", ge=1, invalidates=("finetune",))
    codec: Literal["h264", "av1"] = option("h264", "codec of every written mp4; datasets copy the stream")
    crf: int = option(
        18,
        "constant rate factor: lower values give better quality and larger files",
        ge=0,
        le=MAX_CRF,
        invalidates=("export",),
    )
    gop: int = option(2, "frames between key frames; small values make seeking faster", ge=1, invalidates=("export",))


@dataclass(frozen=True)
class PrepareSettings:
    """Demonstrations -> training set."""

    camera: str | None = option(None, "video feature to use; default: the only camera that has files")
    cameras: list[str] | None = option(None, "several video features, tiled into one frame in this order")
    fit: Literal["crop", "pad"] = option(
        "crop", "how to reach the clip's aspect ratio: crop the edges, or pad with black",
        invalidates=("prepare", "export"),
    )  # fmt: skip
    max_episodes: int | None = option(None, "use only the first N episodes", ge=1)
    action_kind: Literal["absolute", "delta"] = option(
        "absolute",
        "how actions are resampled to another frame rate: absolute targets are selected, deltas summed or split",
        invalidates=("prepare", "export"),
    )  # fmt: skip
    num_workers: int | None = option(
        None, "processes that read and encode clips; default: one per core, or one for up to 64 clips", ge=1,
        scope="machine",
    )  # fmt: skip
    caption_length: Literal["long", "medium", "short"] = option("long", "which text of captions/*.json to use")


@dataclass(frozen=True)
class ImportSettings:
    """Clips and labels that other programs made -> clips and labels of the run."""

    clips: list[str] = option(
        [],
        "folders of clips: NAME.mp4 + NAME.txt, videos with metadata.csv or metadata.jsonl, or LeRobot datasets",
        scope="call",
    )
    labels: str | None = option(
        None,
        "labels of the clips: a folder of NAME.parquet or NAME.npz, or a LeRobot dataset whose episodes the names end "
        "with; default: those of the clips' own dataset",
        scope="call",
    )
    own_labels: bool = option(
        True, "take actions and states of the clips' own dataset as labels; false: leave them to dreamgen label",
        scope="call",
    )  # fmt: skip
    generator: str | None = option(
        None, "what made the clips, such as wan2.2-14b, for the datasets' provenance; default: unknown", scope="call"
    )
    labeled_by: str | None = option(
        None, "what made the labels, for the datasets' provenance; default: unknown", scope="call"
    )
    shape: Literal["auto", "settings"] = option(
        "auto",
        "size and frame rate of the clips in the run. settings: those of video.*; auto: the same, but a run without "
        "settings takes those of the first clip. Clips of another shape are resized and resampled",
        scope="call",
    )


@dataclass(frozen=True)
class PlanSettings:
    """First frames x instructions x seeds -> jobs."""

    first_frames: str | None = option(
        None,
        "folder of NAME.txt + NAME.png|jpg, a .csv or .jsonl table, or train/ of a run; default: the demonstrations",
    )
    instructions: list[str] = option([], "new instructions; each is combined with every first frame of a dataset")
    num_first_frames: int | None = option(None, "use only the first N first frames", ge=1)
    num_seeds: int = option(1, "clips for each pair of first frame and instruction", ge=1)
    condition: Literal["image", "video", "text"] = option(
        "image", "what a clip starts from besides its text: one frame, the first five frames of a video, or nothing"
    )
    num_chunks: int = option(
        1, "for long tasks: chain N chunks, each starting from the last frames of the previous one", ge=1
    )
    chunk_overlap: Literal[1, 5] = option(5, "frames that two consecutive chunks share; the joined clip has them once")
    adapter: str | None = option(
        None,
        "adapter folder, a blend FOLDER:WEIGHT,FOLDER:WEIGHT, or 'base'; default: adapter/ of the run; "
        "plan again with another one to use several in one run",
    )
    level: Literal["exact", "balanced", "turbo"] = option(
        "exact",
        "exact: the same clips as the diffusers pipeline, faster; balanced and turbo: skip forward passes at some loss",
    )
    fp8: bool = option(
        False, "compute the transformer's large matrix products in fp8, at any level; a little faster, less exact"
    )
    num_inference_steps: int = option(36, "denoising steps", ge=1)
    guidance_scale: float = option(7.0, "g in cond + g (cond - uncond); 1 or less turns guidance off", ge=0)
    negative_prompt: str | None = option(None, "negative prompt; default: that of the diffusers pipeline")


@dataclass(frozen=True)
class GenerateSettings:
    """Jobs -> clips on Ray."""

    num_workers: int | None = option(
        None, "workers, each with a copy of the model; default: one per GPU, or one without a GPU", ge=1
    )
    gpus_per_worker: float = option(1.0, "GPUs per worker (may be a fraction); 0 on a machine without GPUs", ge=0)
    cpus_per_worker: float = option(1.0, "CPU cores that Ray reserves per worker", ge=0)
    resources_per_worker: dict[str, float] = option(
        {}, "Ray's custom resources that a worker needs, to choose nodes: {accelerator_type:H100: 0.001}"
    )
    threads_per_worker: int = option(1, "torch threads of a CPU worker; fixed, because it changes rounding", ge=1)
    max_attempts: int = option(
        3, "attempts at a clip, if possible on different workers, before it counts as failed", ge=1
    )
    clip_limit_s: float | None = option(
        None, "timeout of a clip in seconds, after which its worker is replaced; default: 20 times the slowest so far",
        ge=1,
    )  # fmt: skip
    compile: bool = option(True, "compile the transformer's blocks on a GPU; the first clip takes a minute longer")
    limit: int | None = option(None, "stop after N clips", ge=1, scope="call")
    shard: str = option(
        "0/1", "i/n: generate only share i (0 to n - 1) of n; start one driver per share",
        parse=Shard.parse, scope="call",
    )  # fmt: skip
    clips_per_gpu_hour: float | None = option(
        None, "for --dry_run: a rate measured elsewhere; default: the rate of this run's clips", gt=0, scope="call"
    )


@dataclass(frozen=True)
class LabelSettings:
    """Labels of another model, and the workers that label and curate clips, here or on the cluster of RAY_ADDRESS."""

    from_folder: str | None = option(
        None,
        "folder of labels that another model made: CLIP_ID.parquet with `action` and optionally `observation.state`, "
        "one row for each frame, or CLIP_ID.npz",
        scope="call", public_name="from",
    )  # fmt: skip
    labeled_by: str | None = option(
        None, "what made the labels of label.from, for the datasets' provenance; default: unknown", scope="call"
    )
    num_workers: int | None = option(
        None, "workers; default: as many as have room on a cluster, or one per core, and one for up to 63 clips", ge=1,
        scope="machine",
    )  # fmt: skip
    gpus_per_worker: float = option(
        0.0, "GPUs per worker, such as 0.125; 0 computes labels on the CPU, where decoding takes longer than they do",
        ge=0, scope="machine",
    )  # fmt: skip
    cpus_per_worker: float = option(1.0, "CPU cores that Ray reserves per worker", ge=0, scope="machine")
    resources_per_worker: dict[str, float] = option(
        {}, "Ray's custom resources that a worker needs, to choose nodes", scope="machine"
    )
    threads_per_worker: int = option(
        1, "threads of a worker; fixed, because it changes rounding", ge=1, scope="machine"
    )


# The two that told best which dreams succeed in replay, on four of six tasks (docs/proof.md).
BEST_BY = "demonstration_difference,label_uncertainty"


@dataclass(frozen=True)
class _CurateChoices:
    judges: list[str] = option([], "judges (models) that rate the clips that the scores accept", choices=JUDGES.names)
    best_of: int | None = option(
        None, "accept at most N clips of each first frame and instruction, the best ones", ge=1
    )
    balance: float | None = option(
        None, "accept at most this many times as many clips of an instruction as of the one with the fewest", ge=1
    )
    best_share: float | None = option(
        None, "accept at most this share of the clips that are good enough, the best ones", gt=0, le=1
    )
    best_by: str = option(
        BEST_BY,
        "what best means: scores or judges' metrics, separated by commas, of which the mean rank counts; all: all that "
        "have a threshold, which also count where none of those named was measured",
    )
    min_difference: float = option(
        0.0,
        "least mean difference (gray levels, 0-255, of four frames at 8 x 8 pixels) between two accepted clips of an "
        "instruction; 0: near-duplicates are accepted",
        ge=0,
    )
    calibrate_through_vae: bool = option(
        True, "with --calibrate: demonstrations after the model's VAE count as real, too", scope="call"
    )
    measure_vae_residual: bool = option(
        False, "also measure vae_residual, with the model's VAE in each worker, which takes seconds a clip on a CPU",
        scope="call",
    )  # fmt: skip


if TYPE_CHECKING:

    class CurateSettings(_CurateChoices):
        """Thresholds of the curation scores; a clip whose score violates one is rejected."""

        def __init__(self, **thresholds: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...
else:
    # Scores and judges, those of other packages among them, declare their thresholds themselves.
    CurateSettings = dataclasses.make_dataclass(
        "CurateSettings",
        [(name, "float | None" if threshold.default is None else "float",
          option(threshold.default, threshold.help, ge=_bound(threshold.low), le=_bound(threshold.high)))
         for name, threshold in threshold_settings().items()],
        bases=(_CurateChoices,), frozen=True, module=__name__,
    )  # fmt: skip
    CurateSettings.__doc__ = "Thresholds of the curation scores; a clip whose score violates one is rejected."


@dataclass(frozen=True)
class JudgeSettings:
    """The judges: vlm, a vision-language model; ratings from a file; replay, a function that executes actions."""

    model: str | None = option(None, "name of the model on the endpoint; without one, hub id or folder to load here")
    endpoint: str | None = option(
        None, "address of an OpenAI-compatible server, such as http://HOST:8000/v1; default: the model is loaded here",
        scope="machine",
    )  # fmt: skip
    revision: str | None = option(None, "hub revision of a model that is loaded here")
    scale: Literal["binary", "five"] = option("binary", "answers: yes or no, or 1 to 5; both are recorded as 0 to 1")
    prompts: str | None = option(
        None, "folder with texts of your own: instruction_following.SCALE.txt, physical_plausibility.SCALE.txt"
    )
    ratings: str | None = option(
        None, "for the judge ratings: CSV of DreamGen Bench with the columns video_path,prompt,prediction"
    )
    replay: str | None = option(
        None, "for the judge replay: module:function, called with actions, states and the job; it returns success"
    )
    num_frames: int = option(8, "frames of a clip that are shown, evenly spaced", ge=2)
    image_px: int = option(448, "longest side of the frames that are shown", ge=28)
    num_concurrent: int = option(8, "clips that an endpoint is asked about at a time", ge=1, scope="machine")
    requests_per_minute: float | None = option(None, "limit of the endpoint", gt=0, scope="machine")
    max_attempts: int = option(5, "attempts at a request, with waits of 1, 2, 4 ... s", ge=1, scope="machine")
    timeout_s: float = option(120.0, "timeout of a request", gt=0, scope="machine")
    api_key_variable: str = option(
        "OPENAI_API_KEY", "environment variable with the endpoint's key, if it needs one", scope="machine"
    )
    usd_per_million_input_tokens: float = option(0.0, "price, for the estimate of the cost", ge=0, scope="machine")
    usd_per_million_output_tokens: float = option(0.0, "price, for the estimate of the cost", ge=0, scope="machine")


@dataclass(frozen=True)
class RejectSettings:
    """Clips that a person rejects, whatever their scores."""

    clips: list[str] = option([], "clips: ids, beginnings of ids, or their mp4 files", scope="call")
    file: str | None = option(None, "file with one clip a line, such as the list that report.html saves", scope="call")
    reason: str | None = option(None, "why, for the journal and the report", scope="call")
    undo: bool = option(False, "take the rejections of these clips back", scope="call")


@dataclass(frozen=True)
class ReportSettings:
    """The run on one page."""

    max_clips: int = option(
        10_000, "clips listed, accepted and rejected in proportion; the worst ten of each score are added", ge=0
    )


@dataclass(frozen=True)
class ViewSettings:
    """What `dreamgen view` shows."""

    episode: int = option(0, "episode of a dataset, by its number", ge=0, scope="call")
    clips: list[str] = option([], "clips of a run: ids or beginnings of ids; default: the first", scope="call")
    max_clips: int = option(4, "most clips of a run", ge=1, scope="call")
    save: str | None = option(None, "write a recording (.rrd) instead of opening a window", scope="call")


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run."""

    out: str | None = option(None, "run folder, such as runs/pick-and-place", scope="machine")
    demos: str | None = option(
        None, "demonstrations: a LeRobot dataset, a GR1 layout, or a folder of mp4 + txt", scope="machine"
    )
    seed: int = option(
        0, "seed of training and of the first of num_seeds clips", ge=0, le=2**62, invalidates=("finetune", "export")
    )  # and a few more for num_seeds: jobs.parquet holds 64 bits
    prompt_prefix: str = option(
        "The robot arm is performing a task. ", "text before every instruction", invalidates=("finetune",)
    )
    model: ModelSettings = section(ModelSettings)
    video: VideoSettings = section(VideoSettings)
    prepare: PrepareSettings = section(PrepareSettings)
    finetune: FinetuneSettings = section(FinetuneSettings)
    finetune_vae: FinetuneVaeSettings = section(FinetuneVaeSettings)
    idm: IdmSettings = section(IdmSettings)
    import_clips: ImportSettings = section(ImportSettings)
    plan: PlanSettings = section(PlanSettings)
    generate: GenerateSettings = section(GenerateSettings)
    label: LabelSettings = section(LabelSettings)
    curate: CurateSettings = section(CurateSettings)
    judge: JudgeSettings = section(JudgeSettings)
    reject: RejectSettings = section(RejectSettings)
    export: ExportSettings = section(ExportSettings)
    convert: ConvertSettings = section(ConvertSettings)
    check: CheckSettings = section(CheckSettings)
    report: ReportSettings = section(ReportSettings)
    view: ViewSettings = section(ViewSettings)
