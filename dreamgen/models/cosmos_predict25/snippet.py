"""The code on an adapter's card that loads it with plain diffusers."""

from __future__ import annotations

from pathlib import Path

from dreamgen.config.settings import Settings
from dreamgen.models.adapter_files import WEIGHTS_NAME
from dreamgen.models.world_model import WorldModelSource


def loading_snippet(settings: Settings, source: WorldModelSource, adapter: Path | str, device: str) -> str:
    """Return at most ten lines of Python that generate a clip with the adapter and plain diffusers."""
    video, guarded, is_full = settings.video, settings.model.safety_checker, settings.finetune.method == "full"
    whole = f'{str(adapter)!r}, subfolder="transformer", torch_dtype=torch.{settings.model.dtype}'
    options = {
        "revision": repr(source.revision) if source.revision is not None else "",
        "torch_dtype": f"torch.{settings.model.dtype}",
        "transformer": "trained" if is_full else "",
        # The pipeline requires a checker, even if the run's settings turn it off.
        "safety_checker": "" if guarded else "NoSafetyChecker()",
    }
    arguments = ", ".join([repr(source.path), *(f"{name}={value}" for name, value in options.items() if value)])
    to_device = "" if device == "cpu" else f'.to("{device}")'
    request = f"prompt={settings.prompt_prefix + '...'!r}, height={video.height}, width={video.width}"
    if settings.finetune.distill_guidance is not None:
        request += ", guidance_scale=1.0"  # the pipeline would guide it a second time
    # Offline, diffusers 0.39 does not search a folder for the file's name.
    weight_name = f", weight_name={WEIGHTS_NAME!r}" if isinstance(adapter, Path) else ""
    lines = {
        "import torch": True,
        "from diffusers import Cosmos2_5_PredictBasePipeline": not is_full,
        "from diffusers import Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel": is_full,
        "from diffusers.utils import export_to_video, load_image": True,
        "class NoSafetyChecker:": not guarded,
        "    to = staticmethod(lambda device: None)": not guarded,
        "    check_text_safety = staticmethod(lambda text: True)": not guarded,
        f"trained = CosmosTransformer3DModel.from_pretrained({whole})": is_full,
        f"pipe = Cosmos2_5_PredictBasePipeline.from_pretrained({arguments}){to_device}": True,
        f"pipe.load_lora_weights({str(adapter)!r}{weight_name})": not is_full,
        f'clip = pipe(load_image("first_frame.png"), {request}, num_frames={video.num_frames}).frames[0]': True,
        f'export_to_video(clip, "dream.mp4", fps={video.fps})': True,
    }
    return "\n".join(line for line, wanted in lines.items() if wanted)
