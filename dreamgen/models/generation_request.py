"""Requests of the Python API: one image and one prompt become the job that `dreamgen plan` would write.

Axes: T frames, H height, W width, C channels; uint8, 0-255, RGB.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamgen.config.loading import configs_folder, find_preset, read_yaml, settings_from_dict
from dreamgen.config.settings import ModelSettings, Settings
from dreamgen.data.images import fit_frame, frame_sha256, read_image
from dreamgen.data.prompts import bare_instruction
from dreamgen.errors import UserError, closest_match
from dreamgen.models.adapter_choice import AdapterChoice, choose_adapter
from dreamgen.models.world_model import (
    Prediction,
    WorldModel,
    WorldModelSource,
    check_size,
    model_type,
    resolve_world_model,
)
from dreamgen.run.records import Job, job_id
from dreamgen.run.run_folder import RunFolder

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as PILImage

    type Image = str | Path | np.ndarray | PILImage | None

VIDEO_ARGUMENTS = ("height", "width", "num_frames")
PLAN_ARGUMENTS = ("num_inference_steps", "guidance_scale", "level", "fp8", "negative_prompt")


@dataclass(frozen=True)
class RequestDefaults:
    """What `WorldModel.load` keeps for `generate`.

    Args:
        values: Settings as a preset holds them.
        source: The model.
        adapter: None for the base model.
        texts: Encoded prompts by prompt.
    """

    values: dict[str, Any]
    source: WorldModelSource
    adapter: AdapterChoice | None
    texts: dict[str, torch.Tensor] = field(default_factory=dict)


def job_values(
    settings: Settings, source: WorldModelSource, adapter: AdapterChoice | None, run: RunFolder
) -> dict[str, Any]:
    """Return the fields of `Job` that follow from the settings and are equal in all jobs of one plan.

    Raises:
        UserError: if the model does not take the sampling level or the conditioning, or the adapter no guidance.
    """
    _check_guidance(settings, adapter)
    video, plan, model_class = settings.video, settings.plan, source.load_class()
    frames = model_type(settings.model).num_conditioning_frames
    if plan.condition not in frames:
        raise UserError(
            "the world model does not take this conditioning", actual=f"plan.condition={plan.condition}",
            allowed=", ".join(frames),
        )  # fmt: skip
    if plan.num_chunks > 1 and plan.chunk_overlap not in frames.values():
        raise UserError(
            "the world model cannot continue from this number of frames",
            actual=f"plan.chunk_overlap={plan.chunk_overlap}",
            allowed=", ".join(str(count) for count in frames.values() if count),
        )  # fmt: skip
    negative = plan.negative_prompt
    return {
        "num_conditioning_frames": frames[plan.condition],
        "negative_prompt": model_class.default_negative_prompt if negative is None else negative,
        "height": video.height,
        "width": video.width,
        "num_frames": plan.num_chunks * video.num_frames - (plan.num_chunks - 1) * plan.chunk_overlap,
        "num_chunks": plan.num_chunks,
        # The clip of a single chunk does not depend on the overlap.
        "chunk_overlap": plan.chunk_overlap if plan.num_chunks > 1 else 0,
        "fps": video.fps,
        "num_inference_steps": plan.num_inference_steps,
        "guidance_scale": float(plan.guidance_scale),
        "level": plan.level,
        "step_skipping": model_class.sampling_options(settings),
        "model": source.name,
        "model_sha256": source.sha256,
        "adapter": adapter and adapter.text(run),
        "adapter_sha256": adapter and adapter.sha256,
        "dtype": settings.model.dtype,
        "codec": video.codec,
        "crf": video.crf,
        "gop": video.gop,
    }


def _check_guidance(settings: Settings, adapter: AdapterChoice | None) -> None:
    """Refuse to guide an adapter that guidance is folded into."""
    if adapter is None or settings.plan.guidance_scale <= 1 or not (distilled := adapter.distilled()):
        return
    named = "; ".join(f"{folder} (scale {scale:g})" for folder, scale in distilled.items())
    raise UserError(
        "guidance is folded into the adapter, so guiding it would apply guidance twice",
        actual=f"plan.guidance_scale={settings.plan.guidance_scale:g} with {named}",
        allowed="plan.guidance_scale=1",
        next_step="--plan.guidance_scale=1, or an adapter that was trained without finetune.distill_guidance",
    )


def load_with_defaults(name: str, adapter: str | Path | None, changes: dict[str, Any], compiled: bool) -> WorldModel:
    """Load a model for `WorldModel.generate`; see `WorldModel.load`.

    Args:
        name: Preset, hub id or folder.
        adapter: As `plan.adapter` takes it.
        changes: Of `model` settings.
        compiled: As `WorldModel.from_source` takes it.
    """
    values = preset_values(name)
    values = {**values, "model": {**values["model"], **changes}}
    settings = settings_from_dict(values)
    source = resolve_world_model(settings.model, RunFolder(_cache_folder()))
    choice = choose_adapter("base" if adapter is None else str(adapter), RunFolder(Path()))
    model_class = source.load_class()
    model_class.check_requirements(settings.model)
    if choice is not None:
        model_class.check_adapters(source, choice.folders)
    model = model_class.from_source(source, settings.model, compiled=compiled)
    model.defaults = RequestDefaults(values, source, choice)
    return model


def preset_values(name: str) -> dict[str, Any]:
    """Return the settings for a model: those of the preset of that name, or of a preset for that hub id.

    A folder, or a hub id without a preset, gets the default settings.

    Raises:
        UserError: if a preset file cannot be read.
    """
    shipped = sorted(configs_folder().glob("*.yaml"), key=lambda path: (len(path.stem), path.stem))
    if name.endswith((".yaml", ".yml")) or name in [path.stem for path in shipped]:
        return {"model": {}, **read_yaml(find_preset(name))}
    for values in map(read_yaml, shipped):
        if values.get("model", {}).get("path") == name:
            return values
    return {"model": {"path": name, "revision": None}}


def predict(model: WorldModel, image: Image, prompt: str, seed: int, sampling: dict[str, Any]) -> Prediction:
    """Generate one clip; see `WorldModel.generate`."""
    import torch

    defaults = model.defaults
    if defaults is None:
        raise UserError("this model has no default settings", next_step="load it with WorldModel.load")
    sections: dict[str, dict[str, Any]] = {"video": {}, "plan": {}}
    for name, value in sampling.items():
        if name not in VIDEO_ARGUMENTS + PLAN_ARGUMENTS:
            nearest = closest_match(name, VIDEO_ARGUMENTS + PLAN_ARGUMENTS)
            raise UserError(
                f"unknown argument of generate: {name}", allowed=", ".join(VIDEO_ARGUMENTS + PLAN_ARGUMENTS),
                next_step=f"did you mean {nearest}?" if nearest else None,
            )  # fmt: skip
        if value is not None:
            sections["video" if name in VIDEO_ARGUMENTS else "plan"][name] = value
    frames = _read_frames(image)
    condition = _condition(settings_from_dict(defaults.values).model, len(frames))
    sections["plan"]["condition"] = condition
    changed = {name: {**defaults.values.get(name, {}), **values} for name, values in sections.items()}
    settings = settings_from_dict({**defaults.values, **changed})
    check_size(settings)
    job = _job(settings, defaults, frames, prompt, seed)
    model.check_prompt(job.prompt)
    model.prepare(defaults.adapter, job.step_skipping)

    def text_of(text: str) -> torch.Tensor:
        if text not in defaults.texts:
            if not model.has_text_encoder:
                model.load_text_encoder()
            defaults.texts[text] = model.encode_prompt(text)
        return defaults.texts[text]

    conditioning_THWC = np.stack(_fitted(frames, settings)) if frames else None
    with torch.no_grad():
        prediction = model.sample_clip(job, conditioning_THWC, text_of)
    video_THWC = torch.from_numpy(model.check_video(prediction.video_THWC.cpu().numpy()))
    return Prediction(video_THWC, prediction.actions_TA, prediction.states_TS)


def _job(settings: Settings, defaults: RequestDefaults, frames: list[np.ndarray], prompt: str, seed: int) -> Job:
    instruction = bare_instruction(prompt, settings.prompt_prefix)
    values = job_values(settings, defaults.source, defaults.adapter, RunFolder(Path())) | {
        "first_frame_sha256": frame_sha256(np.concatenate(_fitted(frames, settings))) if frames else None,
        "instruction": instruction,
        "prompt": settings.prompt_prefix + instruction,
        "seed": seed,
        "source": "Python",
    }
    return Job(clip_id=job_id(values), **values)


def _fitted(frames: list[np.ndarray], settings: Settings) -> list[np.ndarray]:
    video = settings.video
    return [fit_frame(frame_HWC, video.height, video.width, settings.prepare.fit) for frame_HWC in frames]


def _read_frames(image: Image) -> list[np.ndarray]:
    if image is None:
        return []
    array = read_image(image) if isinstance(image, str | Path) else np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3:
        raise UserError(
            "image is neither an RGB image nor a stack of RGB frames", actual=f"shape {array.shape}, {array.dtype}",
            allowed="uint8 RGB, height x width x 3, or frames x height x width x 3",
        )  # fmt: skip
    return list(array) if array.ndim == 4 else [array]


def _condition(model: ModelSettings, num_frames: int) -> str:
    counts = model_type(model).num_conditioning_frames
    for condition, count in counts.items():
        if count == num_frames:
            return condition
    raise UserError(
        "the world model does not take this number of conditioning frames", actual=num_frames,
        allowed=", ".join(map(str, sorted(counts.values()))),
    )  # fmt: skip


def _cache_folder() -> Path:
    """Return where models that are built on first use are kept: one folder for each version of their recipe."""
    import hashlib

    recipe = hashlib.sha256((configs_folder() / "models" / "mini.yaml").read_bytes()).hexdigest()[:8]
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dreamgen" / recipe
