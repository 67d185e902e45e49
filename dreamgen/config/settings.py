"""The settings of every stage: the one place where a default, its help, its bounds and its scope are written down.

A YAML preset has the same shape as `Settings`. Numbers that belong to one model or robot are not here but in configs/.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dreamgen.config.options import option, parse_folder_name, section
from dreamgen.extensions.export_format import EXPORT_FORMATS
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
class LoraSettings:
    """Shape of the adapter."""

    rank: int = option(32, "rank of the low-rank update", ge=1)
    alpha: int | None = option(
        None, "scale: the update is multiplied by alpha / rank; default: the rank, a scale of 1", ge=1
    )
    target_modules: list[str] = option(
        ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"], "linear layers that get an adapter"
    )

    @property
    def alpha_or_rank(self) -> int:
        """The alpha that is trained with."""
        return self.rank if self.alpha is None else self.alpha


@dataclass(frozen=True)
class FinetuneSettings:
    """Training set -> adapter (rectified flow, frozen base)."""

    method: Literal["lora", "dora", "full"] = option(
        "lora", "lora: low-rank update; dora: the same with learned column norms; full: all weights, in float32"
    )
    lora: LoraSettings = section(LoraSettings)
    num_steps: int = option(2000, "optimizer steps", ge=1)
    max_minutes: float | None = option(
        None,
        "end the training after this time, reading and encoding included, if that is before num_steps; the learning "
        "rate decays by then",
        gt=0,
        invalidates=(),
    )
    batch_size: int = option(1, "windows per batch on each GPU", ge=1)
    gradient_accumulation_steps: int = option(
        1, "batches accumulated for one optimizer step", ge=1, invalidates=()
    )  # its product with the number of processes must stay the same when a training resumes
    learning_rate: float = option(2**-14.5, "peak learning rate of AdamW", gt=0)
    weight_decay: float = option(1e-3, "weight decay of AdamW", ge=0)
    max_grad_norm: float = option(1.0, "gradient clipping norm", ge=0)
    warmup_steps: int = option(1000, "optimizer steps of linear warm-up; at most half of num_steps are used", ge=0)
    decay_from: float = option(0.5, "learning-rate multiplier right after the warm-up", ge=0)
    decay_to: float = option(0.2, "learning-rate multiplier at the last step", ge=0)
    sigma_shift: float = option(5.0, "s in sigma = s t / (1 + (s - 1) t), t = sigmoid(normal)", gt=0)
    condition_on_one_latent: float = option(
        0.5, "probability of one conditioning latent frame instead of two", ge=0, le=1
    )
    conditional_frame_timestep: float = option(
        1e-4, "timestep of the conditioning frames; a negative value uses the timestep of the noise", le=1
    )
    text_dropout: float = option(0.2, "probability of training a window without its text", ge=0, le=1)
    dropped_text: Literal["zeros", "negative_prompt"] = option(
        "zeros",
        "what a window without its text is trained with: zeros, or the model's default negative prompt, so that it "
        "can guide a model that is trained from scratch",
    )
    cache: Literal["disk", "none"] = option(
        "disk", "disk: encode each window and prompt once and keep them; none: encode at every step, for large data"
    )
    cache_dir: str | None = option(
        None, "folder of the cache, to share it between runs; default: cache/ of the run", scope="machine"
    )
    cache_ram_gib: float = option(
        16.0, "RAM for cached windows of each process; those that fit are read from the disk once", ge=0,
        scope="machine",
    )  # fmt: skip
    windows_per_clip: int = option(
        4, "cached windows per clip, evenly spaced; each visit draws one (4 MB each at 432 x 768 x 93 in bf16)", ge=1
    )
    num_workers: int | None = option(
        None, "data loading processes per GPU; default: 0 with the cache and 2 without", ge=0, scope="machine"
    )
    memory_gib: float = option(
        72.0, "GPU memory that a step may use; activations that do not fit are recomputed", ge=1, invalidates=()
    )
    compile: bool = option(
        True, "compile the transformer's blocks on a GPU; faster from the second step on", invalidates=()
    )
    ema_decay: float | None = option(
        None, "write an exponential moving average of the weights with this decay, such as 0.999", gt=0, lt=1
    )
    checkpoint_every: int = option(500, "optimizer steps between checkpoints", ge=1, invalidates=())
    keep_checkpoints: int = option(
        2, "newest checkpoints to keep (0.6 GB each for rank 32 on the 2B model)", ge=1, invalidates=()
    )
    resume_from: str | None = option(
        None, "checkpoint to resume from: 'latest' or a folder; it must exist", scope="call"
    )
    log_every: int = option(10, "optimizer steps between logged losses", ge=1, invalidates=())
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = option(
        "tensorboard", "experiment tracker for the metrics", invalidates=()
    )
    validation_clips: int = option(0, "clips held out of training to measure the loss; chosen by the seed", ge=0)
    validate_every: int = option(500, "optimizer steps between validations", ge=1, invalidates=())
    sample_every: int = option(
        0, "optimizer steps between clips generated from a held-out first frame; 0: none", ge=0, invalidates=()
    )
    save_pipeline: bool = option(
        False,
        "with method full: complete the result with the model's other parts, so that --model.path can name its folder",
        invalidates=(),
    )
    push_to_hub: str | None = option(
        None, "hub id that the finished adapter is uploaded to; a new repository is private", invalidates=()
    )


@dataclass(frozen=True)
class FinetuneVaeSettings:
    """Training set -> VAE (reconstruction of whole clips)."""

    gradient_accumulation_steps: ClassVar[int] = 1
    config: str | None = option(
        None,
        "train from scratch with the sizes in `vae:` of this YAML file or preset of configs/models; default: continue "
        "from the VAE of the model",
    )
    num_steps: int = option(20000, "optimizer steps", ge=1)
    max_minutes: float | None = option(
        None,
        "end the training after this time, reading included, if that is before num_steps; the learning rate decays by "
        "then",
        gt=0,
        invalidates=(),
    )
    batch_size: int = option(8, "windows per step on each GPU", ge=1)
    learning_rate: float = option(5e-4, "peak learning rate of AdamW", gt=0)
    weight_decay: float = option(1e-4, "weight decay of AdamW", ge=0)
    max_grad_norm: float = option(1.0, "gradient clipping norm", gt=0)
    warmup_steps: int = option(200, "optimizer steps of linear warm-up; at most half of num_steps are used", ge=0)
    decay_from: float = option(1.0, "learning-rate multiplier right after the warm-up", ge=0)
    decay_to: float = option(0.02, "learning-rate multiplier at the end", ge=0)
    moving_weight: float = option(2.0, "additional weight of pixels that move", ge=0)
    detail_weight: float = option(
        3.0, "additional weight of small things: pixels unlike their neighborhood, moving or not", ge=0
    )
    error_weight: float = option(0.25, "additional weight of pixels whose error is above the mean", ge=0)
    gradient_weight: float = option(0.5, "weight of the differences between neighboring pixels and frames", ge=0)
    kl_weight: float = option(3e-5, "weight of the KL divergence, averaged over the latents", ge=0)
    ema_decay: float | None = option(
        0.999, "write an exponential moving average of the weights with this decay", gt=0, lt=1
    )
    ram_gib: float = option(
        32.0, "RAM for decoded windows; those that do not fit are decoded at each step", ge=0, scope="machine"
    )
    num_workers: int = option(4, "data loading processes per GPU", ge=0, scope="machine")
    compile: bool = option(True, "compile normalization and activation on a GPU", invalidates=())
    log_every: int = option(50, "optimizer steps between logged losses", ge=1, invalidates=())
    checkpoint_every: int = option(2000, "optimizer steps between checkpoints", ge=1, invalidates=())
    keep_checkpoints: int = option(2, "newest checkpoints to keep", ge=1, invalidates=())
    validation_clips: int = option(0, "clips held out of training to measure PSNR; chosen by the seed", ge=0)
    validate_every: int = option(1000, "optimizer steps between validations", ge=1, invalidates=())


@dataclass(frozen=True)
class IdmSettings:
    """The inverse-dynamics model: a window of frames -> the actions and states at each of them."""

    gradient_accumulation_steps: ClassVar[int] = 1
    horizon: int = option(8, "frames of a window; labels are the mean over windows that overlap by half", ge=2)
    image_px: int = option(64, "side of the square input images in pixels, of each camera", ge=16, multiple_of=16)
    width: int = option(256, "hidden size", ge=16, multiple_of=16)
    num_models: int = option(
        2, "networks that are trained beside each other; the label is their mean, the uncertainty their spread", ge=1
    )
    encoder: str | None = option(
        None,
        "hub id or folder of a pretrained vision encoder, such as facebook/dinov2-small or "
        "google/siglip2-base-patch16-224; default: a small one, trained from scratch",
    )
    freeze_encoder: bool = option(True, "keep the weights of idm.encoder as they are")
    extra_demos: list[str] = option(
        [],
        "more demonstrations of the same robot (play, random motion, failures): run folders that dreamgen prepare "
        "--demos MORE --out FOLDER made; they are trained on and never held out",
    )
    augment: bool = option(
        True, "change training frames as a video model does: background, colors, place, blur, compression"
    )
    num_steps: int = option(1500, "optimizer steps", ge=1)
    batch_size: int = option(8, "windows per batch, for each network on each GPU", ge=1)
    learning_rate: float = option(1e-3, "peak learning rate of AdamW", gt=0)
    weight_decay: float = option(0.05, "weight decay of AdamW", ge=0)
    max_grad_norm: float = option(1.0, "gradient clipping norm", gt=0)
    warmup_steps: int = option(100, "optimizer steps of linear warm-up; at most half of num_steps are used", ge=0)
    decay_from: float = option(1.0, "learning-rate multiplier right after the warm-up", ge=0)
    decay_to: float = option(0.01, "learning-rate multiplier at the last step", ge=0)
    held_out: float = option(
        0.2, "share of episodes held out of training to measure the error; at least one episode", ge=0, le=1
    )
    validate_every: int = option(500, "optimizer steps between points of the validation curve", ge=1)
    patience: int = option(
        0,
        "stop after this many points without a better R^2, with the best weights; half of the held-out episodes choose "
        "them and the other half measures the error. 0: train to the end",
        ge=0,
    )
    checkpoint_every: int = option(500, "optimizer steps between checkpoints", ge=1, invalidates=())
    keep_checkpoints: int = option(2, "newest checkpoints to keep", ge=1, invalidates=())
    log_every: int = option(50, "optimizer steps between logged losses", ge=1, invalidates=())
    num_workers: int = option(0, "data loading processes per GPU", ge=0, scope="machine")
    predict_state: bool = option(True, "predict the state of each frame as well as the action", invalidates=("label",))
    states_from: Literal["frames", "actions"] = option(
        "frames", "read states from frames, or follow the predicted actions from the first state",
        invalidates=("label",),
    )  # fmt: skip


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


@dataclass(frozen=True)
class _CurateChoices:
    judges: list[str] = option([], "judges (models) that rate the clips that the scores accept", choices=JUDGES.names)
    best_of: int | None = option(
        None, "accept at most N clips of each first frame and instruction, the best ones", ge=1
    )
    balance: float | None = option(
        None, "accept at most this many times as many clips of an instruction as of the one with the fewest", ge=1
    )
    best_by: str = option(
        "all", "what best means: a score or a judge's metric, or all: the mean rank over all that have a threshold"
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
class Hdf5Settings:
    """Images and lengths in the HDF5 formats, robomimic and aloha."""

    compression: Literal["lzf", "gzip", "none"] = option(
        "lzf",
        "compression of images, one frame per chunk: none reads fastest, gzip is smallest, lzf is read by h5py only",
    )
    next_obs: bool = option(False, "robomimic: write next_obs too, which doubles the file; for value-based methods")
    jpeg_quality: int | None = option(
        None,
        "aloha: store frames as JPEG of this quality, like ALOHA's `compress`; default: uncompressed pixels",
        ge=1,
        le=100,
    )
    equal_length: bool = option(
        False, "aloha: repeat the last frame up to the longest episode, for the original ACT, which needs one length"
    )


@dataclass(frozen=True)
class ExportSettings:
    """Accepted clips -> datasets."""

    formats: list[str] = option(
        ["lerobot-v3.0", "lerobot-v2.1", "robomimic"], "datasets to write", choices=EXPORT_FORMATS.names, invalidates=()
    )
    name: str | None = option(
        None, "write beside existing datasets, into folders FORMAT-NAME", scope="call", parse=parse_folder_name
    )
    camera: str = option("observation.images.ego_view", "name of the video feature in the dataset")
    robot_type: str | None = option(None, "robot_type of info.json; default: that of the demonstrations")
    robot: str | None = option(
        None,
        "preset for modality.json: gr1, so100, franka, droid, new_embodiment; default: that of the demonstrations",
    )
    include_state: bool = option(True, "write observation.state if the labels have states")
    lerobot_sample: bool = option(
        False,
        "compute image statistics over the frames that LeRobot's writer samples (all of a clip of up to 100) instead "
        "of 16; an export takes about three times as long",
    )
    allow_weak_labels: bool = option(
        False,
        "write datasets although the inverse-dynamics model is no better than a baseline on held-out demonstrations; "
        "their cards tell",
        invalidates=(),
    )
    dream_prefix: bool = option(
        False, "put <DREAM> before the task of each generated episode (understood by GR00T-Dreams only)"
    )
    append_to: str | None = option(
        None, "LeRobot dataset whose episodes come first in the new one; clips that it already has are not added again"
    )
    mix_with: str | None = option(None, "LeRobot dataset of real episodes to mix in; it is only read")
    real_share: float | None = option(
        None, "share of real episodes (mix_with); surplus ones of either kind are left out by seed; default: use all",
        ge=0, le=1,
    )  # fmt: skip
    real_share_of: Literal["episodes", "frames"] = option(
        "episodes", "what real_share counts: real episodes are often longer than generated ones"
    )
    fps: int | None = option(
        None, "frames per second of the datasets; clips of another rate are resampled and encoded again", ge=1
    )
    height: int | None = option(
        None, "image height of the datasets in pixels; clips of another size are encoded again", ge=16, multiple_of=2
    )
    width: int | None = option(
        None, "image width of the datasets in pixels; clips of another size are encoded again", ge=16, multiple_of=2
    )
    push_to_hub: str | None = option(
        None,
        "hub id that the datasets are uploaded to, private if new; with several formats, the format is appended",
        scope="machine",
    )  # fmt: skip
    license: str | None = option(None, "license of the datasets, such as cc-by-4.0, for dataset card and provenance")
    num_workers: int | None = option(
        None, "processes, or concurrent Ray tasks where RAY_ADDRESS names a cluster; default: one per core",
        ge=1, scope="machine",
    )  # fmt: skip
    keep_free_gib: float = option(
        1.0, "disk space in GiB that must remain free after the datasets are written", ge=0, scope="machine"
    )
    hdf5: Hdf5Settings = section(Hdf5Settings)

    def dataset_name(self, export_format: str) -> str:
        """Return the name of the folder that a dataset of a format is written to."""
        return export_format if self.name is None else f"{export_format}-{self.name}"


@dataclass(frozen=True)
class RejectSettings:
    """Clips that a person rejects, whatever their scores."""

    clips: list[str] = option([], "clips: ids, beginnings of ids, or their mp4 files", scope="call")
    file: str | None = option(None, "file with one clip a line, such as the list that report.html saves", scope="call")
    reason: str | None = option(None, "why, for the journal and the report", scope="call")
    undo: bool = option(False, "take the rejections of these clips back", scope="call")


@dataclass(frozen=True)
class ConvertSettings:
    """A LeRobot dataset -> the same in another version."""

    to: Literal["v2.1", "v3.0"] | None = option(
        None, "version to write; default: v3.0 for v2.0 and v2.1, and v2.1 for v3.0", scope="call"
    )
    reencode: bool = option(False, "re-encode episodes whose packets cannot be copied, and only these", scope="call")
    num_workers: int | None = option(None, "processes that write files; default: one per core", ge=1, scope="machine")


@dataclass(frozen=True)
class CheckSettings:
    """A dataset, from DreamGen or not -> problems that a trainer would have with it."""

    fast: bool = option(False, "read only metadata, tables and video packets; decode no frame", scope="call")
    verify: bool = option(
        False, "only compare every file with the manifest that export writes; reads no content", scope="call"
    )
    write_manifest: bool = option(
        False, "record the files as they are, if there is no error; later checks find any change", scope="call"
    )
    num_workers: int | None = option(None, "processes that check files; default: one per core", ge=1, scope="machine")


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
