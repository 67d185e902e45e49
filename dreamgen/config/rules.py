"""Which values of the right type can work: ranges, sizes and what needs another setting."""

from __future__ import annotations

import math

from dreamgen.config.paths import get_path, setting_paths
from dreamgen.config.settings import Settings
from dreamgen.errors import Problems, UserError
from dreamgen.run.shard import Shard

MAX_CRF = {"h264": 51, "av1": 63}
ABOVE_ZERO = {"generate.clips_per_gpu_hour", "finetune.learning_rate", "finetune.sigma_shift", "idm.learning_rate"}
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys((
        "video.fps", "video.gop", "prepare.max_episodes", "finetune.num_steps", "finetune.batch_size",
        "finetune.gradient_accumulation_steps", "finetune.checkpoint_every", "finetune.log_every",
        "finetune.lora.rank", "finetune.lora.alpha", "finetune.keep_checkpoints", "finetune.windows_per_clip",
        "finetune.validate_every", "finetune.memory_gib", "idm.num_steps", "idm.batch_size", "idm.horizon", "idm.width",
        "plan.num_first_frames", "plan.num_seeds", "plan.num_chunks", "plan.num_inference_steps",
        "generate.num_workers", "generate.threads_per_worker", "generate.max_attempts", "generate.limit",
        "export.num_workers", "export.fps", "convert.num_workers", "check.num_workers", "generate.clip_limit_s",
    ), (1, math.inf)),
    **dict.fromkeys((
        "finetune.weight_decay", "finetune.max_grad_norm", "finetune.warmup_steps", "finetune.decay_from",
        "finetune.decay_to", "plan.guidance_scale", "generate.gpus_per_worker", "generate.cpus_per_worker",
        "finetune.num_workers", "finetune.validation_clips", "finetune.sample_every", "export.keep_free_gib",
        "report.max_clips",
    ), (0, math.inf)),
    **dict.fromkeys(
        ("finetune.text_dropout", "finetune.condition_on_one_latent", "idm.held_out", "export.real_share"), (0, 1)
    ),
    "export.hdf5.jpeg_quality": (1, 100),
    "finetune.conditional_frame_timestep": (-math.inf, 1),
    "seed": (0, 2**62),  # and a few more for num_seeds: jobs.parquet holds 64 bits
}  # fmt: skip


def check_values(settings: Settings) -> None:
    """Refuse values of the right type that cannot work, all at once.

    Raises:
        UserError: listing each.
    """
    problems, video = Problems(), settings.video
    for path in ("idm.image_px",):
        size = get_path(settings, path)
        if size < 16 or size % 16:
            near = max(16, round(size / 16) * 16)
            problems.add(
                f"{path} is not divisible by 16", actual=size, allowed="multiples of 16", next_step=f"--{path}={near}"
            )
    # The world model's own rules apply besides: `dreamgen.models.world_model.check_size`.
    for path in ("video.height", "video.width"):
        size = get_path(settings, path)
        if size < 2 or size % 2:
            problems.add(f"{path} is no size of a video", actual=size, allowed="even, at least 2")
    if video.num_frames < 2:
        problems.add("video.num_frames is no video", actual=video.num_frames, allowed="at least 2")
    try:
        Shard.parse(settings.generate.shard)
    except UserError as error:
        problems.errors.append(error)
    if not 0 <= video.crf <= MAX_CRF[video.codec]:
        problems.add(
            f"video.crf is no quality of {video.codec}", actual=video.crf, allowed=f"0 to {MAX_CRF[video.codec]}"
        )
    for path in ("export.height", "export.width"):
        size = get_path(settings, path)
        if size is not None and (size < 16 or size % 2):
            problems.add(f"{path} is no size of a video", actual=size, allowed="even, at least 16")
    if settings.export.real_share is not None and settings.export.mix_with is None:
        problems.add("export.real_share needs real episodes", next_step="--export.mix_with=path/to/lerobot_dataset")
    for path, _ in setting_paths(Settings):
        value = get_path(settings, path)
        low, high = RANGES.get(path, (-math.inf, math.inf))
        if not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            problems.add(f"{path} is not a finite number", actual=value)
        elif path in ABOVE_ZERO and value <= 0:
            problems.add(f"{path} is too small", actual=value, allowed="above 0")
        elif not low <= value <= high:
            allowed = f"at least {low}" if high == math.inf else f"{low} to {high}"
            problems.add(f"{path} is out of range", actual=value, allowed=allowed)
    decay = settings.finetune.ema_decay
    if decay is not None and not 0 < decay < 1:
        problems.add("finetune.ema_decay is not a decay", actual=decay, allowed="between 0 and 1, such as 0.999")
    known_formats = ["lerobot-v3.0", "lerobot-v2.1", "robomimic", "aloha"]
    for name in settings.export.formats:
        if name not in known_formats:
            problems.add(
                "export.formats names a format that does not exist", actual=name, allowed=", ".join(known_formats)
            )
    problems.raise_if_any("settings that cannot work")
