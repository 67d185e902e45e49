"""The settings of what is trained: adapters, VAEs and inverse-dynamics models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dreamgen.config.options import option, section


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
    init_adapter: str | None = option(
        None,
        "start from this LoRA or DoRA adapter, of the same method, rank, alpha and layers, instead of a new one",
        invalidates=(),  # its hash must stay the same when a training resumes
    )
    distill_guidance: float | None = option(
        None,
        "fold guidance of this scale into the adapter: it learns to predict in one pass what the model, with "
        "init_adapter if there is one, predicts in two. Generate with plan.guidance_scale=1",
        gt=1,
    )
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
    cuda_graphs: bool = option(
        False,
        "replay compiled blocks as CUDA graphs: on one GPU twice as fast for a model of 10 M weights, whose kernels "
        "are shorter than their launches; takes more GPU memory, and needs compile and gradient_accumulation_steps=1",
        invalidates=(),
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
    keep_best: bool = option(
        False,
        "write the weights with the lowest held-out loss, the geometric mean over the noise levels, instead of those "
        "of the last step; needs validation_clips",
    )
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
        32.0, "RAM of each process for decoded windows; those that do not fit are decoded at each step", ge=0,
        scope="machine",
    )  # fmt: skip
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
    num_workers: int | None = option(
        None, "data loading processes per GPU; default: 4, or one a core if there are fewer, with `augment` on a GPU, "
        "0 otherwise", ge=0, scope="machine",
    )  # fmt: skip
    predict_state: bool = option(True, "predict the state of each frame as well as the action", invalidates=("label",))
    states_from: Literal["frames", "actions"] = option(
        "frames", "read states from frames, or follow the predicted actions from the first state",
        invalidates=("label",),
    )  # fmt: skip
