"""The settings of every stage with their defaults and help; the one place where a default is written down.

A YAML preset has the same shape as `Settings`. Numbers that belong to one model or robot are not here but in configs/.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any, Literal


def option(default: Any, text: str) -> Any:
    """Declare a setting with its default and the help that `dreamgen STAGE --help` shows."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def section(cls: type) -> Any:
    """Declare a nested group of settings."""
    return field(default_factory=cls)


@dataclass(frozen=True)
class ModelSettings:
    """The world model that dreams."""

    path: str = option("nvidia/Cosmos-Predict2.5-2B", "hub id, local folder, or 'mini' (tiny, untrained, for a CPU)")
    revision: str | None = option("diffusers/base/post-trained", "hub revision; ignored for a local folder")
    dtype: Literal["bfloat16", "float32"] = option("bfloat16", "precision of the frozen weights")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    safety_checker: bool = option(True, "run the guardrail that the model's licence asks for (cosmos_guardrail)")


@dataclass(frozen=True)
class VideoSettings:
    """The shape of every clip, training and dreamed, and how it is encoded (once)."""

    height: int = option(432, "pixels, divisible by 16")
    width: int = option(768, "pixels, divisible by 16")
    num_frames: int = option(93, "frames a clip, 4k + 1")
    fps: int = option(16, "frames a second that the model was trained at")
    codec: Literal["h264", "av1"] = option("h264", "codec of every written mp4; datasets copy the stream")
    crf: int = option(18, "quality, lower is better and larger")
    gop: int = option(2, "frames between key frames; small is fast to seek")


@dataclass(frozen=True)
class PrepareSettings:
    """Demonstrations -> training set."""

    camera: str | None = option(None, "video feature to use; the only camera with files when not given")
    cameras: list[str] | None = option(None, "several video features, in this order side by side in one picture")
    fit: Literal["crop", "pad"] = option("crop", "how the aspect ratio is kept: cut the borders or add black ones")
    max_episodes: int | None = option(None, "use only the first N episodes")
    action_kind: Literal["absolute", "delta"] = option(
        "absolute", "at another frame rate, absolute targets are picked; delta, changes a frame, are summed or shared"
    )
    caption_length: Literal["long", "medium", "short"] = option("long", "which text of captions/*.json to use")


@dataclass(frozen=True)
class LoraSettings:
    """The adapter's shape."""

    rank: int = option(32, "rank of the low-rank update")
    alpha: int = option(32, "scale: the update is multiplied by alpha / rank")
    target_modules: list[str] = option(
        ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"], "linear layers that get an adapter"
    )


@dataclass(frozen=True)
class FinetuneSettings:
    """Training set -> adapter (rectified flow, frozen base)."""

    method: Literal["lora", "dora", "full"] = option(
        "lora", "low-rank update, the same with learned column norms, or full: all weights, in float32"
    )
    lora: LoraSettings = section(LoraSettings)
    num_steps: int = option(2000, "optimizer steps")
    batch_size: int = option(1, "windows a step on each GPU")
    gradient_accumulation_steps: int = option(1, "batches summed before one optimizer step")
    learning_rate: float = option(2**-14.5, "AdamW peak learning rate")
    weight_decay: float = option(1e-3, "AdamW weight decay")
    max_grad_norm: float = option(1.0, "gradient clipping norm")
    warmup_steps: int = option(1000, "optimizer steps of linear warm-up, at most half of num_steps")
    decay_from: float = option(0.5, "learning-rate multiplier right after the warm-up")
    decay_to: float = option(0.2, "learning-rate multiplier at the last step")
    sigma_shift: float = option(5.0, "s in sigma = s t / (1 + (s - 1) t), t = sigmoid(normal)")
    condition_on_one_latent: float = option(0.5, "probability of one conditioning latent frame; two otherwise")
    conditional_frame_timestep: float = option(1e-4, "timestep of conditioning frames; negative: the noise's own")
    text_dropout: float = option(0.2, "probability of training a window without its text")
    cache: Literal["disk", "none"] = option(
        "disk", "encode each window and prompt once and keep them; none: encode at every step, for data too large"
    )
    cache_dir: str | None = option(None, "where, to share it between runs; the run's own cache/ when not given")
    windows_per_clip: int = option(
        4, "cached windows of a clip, evenly spaced, of which each visit draws one: 4 MB each at 432 x 768 x 93 in bf16"
    )
    num_workers: int | None = option(
        None, "processes that read ahead on each GPU; when not given, 0 with the cache and 2 without"
    )
    memory_gib: float = option(
        72.0, "GPU memory that a step may use: what fits is kept for the backward pass, the rest is computed again"
    )
    compile: bool = option(True, "compile the transformer's blocks on a GPU: faster from the second step on")
    ema_decay: float | None = option(
        None, "average the adapter over the steps, keeping this share at each (such as 0.999), and write the average"
    )
    checkpoint_every: int = option(500, "optimizer steps between checkpoints")
    keep_checkpoints: int = option(2, "newest checkpoints to keep; 0.6 GB each for rank 32 on the 2B model")
    resume_from: str | None = option(None, "checkpoint to go on from: 'latest' or a folder; it must be there")
    log_every: int = option(10, "optimizer steps between loss lines")
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = option("tensorboard", "where the curves go")
    validation_clips: int = option(0, "clips kept out of training to measure the loss on; chosen by the seed")
    validate_every: int = option(500, "optimizer steps between measures of the held-out clips' loss")
    sample_every: int = option(0, "optimizer steps between samples dreamed from a held-out clip; 0: none")
    push_to_hub: str | None = option(None, "hub id that the finished adapter is uploaded to, private where it is new")


@dataclass(frozen=True)
class IdmSettings:
    """The inverse-dynamics model: two frames -> the actions between them."""

    horizon: int = option(16, "frames between the two that the model sees; it predicts the actions between")
    image_px: int = option(64, "side of the square images that it sees, divisible by 16")
    width: int = option(256, "hidden features")
    num_steps: int = option(1500, "optimizer steps")
    batch_size: int = option(32, "frame pairs a step")
    learning_rate: float = option(1e-3, "AdamW peak learning rate")
    held_out: float = option(0.2, "share of episodes kept out of training to measure the error; at least one")
    predict_state: bool = option(True, "predict a state for each frame beside the action")


@dataclass(frozen=True)
class PlanSettings:
    """First frames x instructions x seeds -> jobs."""

    first_frames: str | None = option(
        None, "folder of NAME.txt + NAME.png|jpg, a .csv or .jsonl, or a LeRobot dataset; the demos when not given"
    )
    instructions: list[str] = option([], "new instructions, crossed with every first frame of a dataset")
    num_first_frames: int | None = option(None, "use only the first N first frames")
    num_seeds: int = option(1, "clips for each pair of first frame and instruction")
    condition: Literal["image", "video", "text"] = option(
        "image", "what a clip begins with: one frame, the first five frames of a video, or nothing but the text"
    )
    num_chunks: int = option(1, "long tasks: chain N clips, each beginning with the last frames of the one before")
    chunk_overlap: Literal[1, 5] = option(5, "how many frames that is; they are in the joined clip once")
    adapter: str | None = option(
        None,
        "adapter's folder, a blend FOLDER:WEIGHT,FOLDER:WEIGHT, or 'base'; the run's own adapter/ when not given; "
        "plan again with another one to have several in one job",
    )
    level: Literal["exact", "balanced", "turbo"] = option(
        "exact", "exact: the pipeline's own clip, faster; balanced and turbo leave out passes, at a measured cost"
    )
    fp8: bool = option(
        False, "make the transformer's large products in 8 bits, at any level: a little faster, at a cost in likeness"
    )
    num_inference_steps: int = option(36, "denoising steps")
    guidance_scale: float = option(7.0, "cond + g (cond - uncond); at most 1 turns guidance off")
    negative_prompt: str | None = option(None, "what to avoid; the pipeline's own text when not given")


@dataclass(frozen=True)
class GenerateSettings:
    """Jobs -> clips on Ray."""

    num_workers: int | None = option(None, "replicas of the model; one a GPU when not given, one without a GPU")
    gpus_per_worker: float = option(1.0, "GPUs of a replica (may be a fraction); 0 on a machine without one")
    cpus_per_worker: float = option(1.0, "CPU cores that Ray sets aside for a replica")
    resources_per_worker: dict[str, float] = option(
        {}, "Ray's custom resources that a replica needs, to choose nodes: {accelerator_type:H100: 0.001}"
    )
    threads_per_worker: int = option(1, "torch threads of a CPU replica; fixed, as it changes rounding")
    max_attempts: int = option(3, "tries of a clip, each on another replica where there is one, before it is failed")
    clip_limit_s: float | None = option(
        None,
        "seconds at a clip after which a replica is replaced as hung; far above the slowest so far when not given",
    )
    compile: bool = option(True, "compile the transformer's blocks on a GPU: the first clip takes a minute longer")
    limit: int | None = option(None, "stop after N clips")
    shard: str = option("0/1", "i/n: make only the i-th of n shares of the clips; a driver for each share")
    clips_per_gpu_hour: float | None = option(
        None, "for --dry_run: a rate measured elsewhere; this run's own clips tell it when not given"
    )


@dataclass(frozen=True)
class CurateSettings:
    """Thresholds behind each verdict; a figure outside its threshold rejects the clip."""

    min_motion: float = option(0.5, "mean change between frames half a clip apart (0-255) below which a clip is static")
    min_first_frame_psnr_db: float = option(15.0, "likeness of the clip's first frame to the asked one")
    max_cut_score: float = option(6.0, "most abrupt frame change over its neighbours', above which there is a cut")
    judges: list[str] = option([], "judges that watch each clip that the scores accept; docs/extending/judge.md")


@dataclass(frozen=True)
class Hdf5Settings:
    """How the HDF5 formats, robomimic and aloha, hold pictures and lengths."""

    compression: Literal["lzf", "gzip", "none"] = option(
        "lzf", "of pictures, a frame a chunk: none reads fastest, gzip is smallest, lzf (h5py only) lies between"
    )
    next_obs: bool = option(False, "robomimic: write next_obs too, which doubles the file; for methods with values")
    jpeg_quality: int | None = option(
        None, "aloha: hold frames as JPEG of this quality, 1 to 100, as ALOHA's `compress` does; pixels when not given"
    )
    equal_length: bool = option(
        False, "aloha: repeat the last frame up to the longest episode, for the first ACT, which takes one length only"
    )


@dataclass(frozen=True)
class ExportSettings:
    """Accepted clips -> datasets."""

    formats: list[str] = option(
        ["lerobot-v3.0", "lerobot-v2.1", "robomimic"], "datasets to write: these, and aloha, which ACT reads"
    )
    camera: str = option("observation.images.ego_view", "name of the video feature in the dataset")
    robot_type: str | None = option(None, "robot_type of info.json; the demos' own when not given")
    robot: str | None = option(
        None,
        "preset for modality.json: gr1, so100, franka, droid, new_embodiment; the demos' own when not given",
    )
    include_state: bool = option(True, "write observation.state where labels have one")
    lerobot_sample: bool = option(
        False,
        "count pictures' statistics over the frames that LeRobot's writer takes (all of a clip of up to 100), and not "
        "over 16: an export takes about three times as long",
    )
    dream_prefix: bool = option(False, "put <DREAM> before each task (understood by GR00T-Dreams only)")
    append_to: str | None = option(
        None, "LeRobot dataset whose episodes come first in the new one; clips that it holds are not added twice"
    )
    mix_with: str | None = option(None, "LeRobot dataset of real episodes to mix in; it is only read")
    real_share: float | None = option(
        None, "share of mix_with's episodes, 0 to 1: some of one kind are left out, by the seed; all when not given"
    )
    fps: int | None = option(None, "frames a second of the datasets: clips of another rate are resampled and encoded")
    height: int | None = option(None, "pixels of the datasets' pictures: clips of another size are encoded again")
    width: int | None = option(None, "likewise")
    push_to_hub: str | None = option(
        None,
        "hub id that the datasets are uploaded to, private where new; with several formats each adds its name",
    )
    license: str | None = option(None, "licence of the datasets, such as cc-by-4.0: goes into card and provenance")
    num_workers: int | None = option(
        None,
        "processes that look at clips and write files, or tasks at a time where RAY_ADDRESS names a cluster; one a "
        "core when not given",
    )
    keep_free_gib: float = option(1.0, "disk space that must remain free when the datasets are written")
    hdf5: Hdf5Settings = section(Hdf5Settings)


@dataclass(frozen=True)
class ConvertSettings:
    """A LeRobot dataset -> the same in another version."""

    to: Literal["v2.1", "v3.0"] | None = option(None, "version to write; v3.0 of v2.0 and v2.1, v2.1 of v3.0")
    reencode: bool = option(False, "encode episodes again whose packets cannot be copied, and only these")
    num_workers: int | None = option(None, "processes that write files; one a core when not given")


@dataclass(frozen=True)
class CheckSettings:
    """A dataset, ours or not -> what a trainer would stumble over."""

    fast: bool = option(False, "read metadata, tables and the packets of videos, and decode no picture")
    num_workers: int | None = option(None, "processes; one a core when not given")


@dataclass(frozen=True)
class ReportSettings:
    """The run's page."""

    max_clips: int = option(24, "clips shown; accepted and rejected ones in their share")


@dataclass(frozen=True)
class Settings:
    """Everything that a run is made from."""

    out: str | None = option(None, "run folder, for example runs/pick-and-place")
    demos: str | None = option(None, "demonstrations: a LeRobot dataset, a GR1 layout, or a folder of mp4 + txt")
    seed: int = option(0, "seed of training and of the first of num_seeds clips")
    prompt_prefix: str = option("The robot arm is performing a task. ", "put before every instruction")
    model: ModelSettings = section(ModelSettings)
    video: VideoSettings = section(VideoSettings)
    prepare: PrepareSettings = section(PrepareSettings)
    finetune: FinetuneSettings = section(FinetuneSettings)
    idm: IdmSettings = section(IdmSettings)
    plan: PlanSettings = section(PlanSettings)
    generate: GenerateSettings = section(GenerateSettings)
    curate: CurateSettings = section(CurateSettings)
    export: ExportSettings = section(ExportSettings)
    convert: ConvertSettings = section(ConvertSettings)
    check: CheckSettings = section(CheckSettings)
    report: ReportSettings = section(ReportSettings)


def default_of(setting: Any) -> Any:
    """Return the default of a dataclass field, whichever way it was declared."""
    return setting.default if setting.default is not MISSING else setting.default_factory()
