"""The adapter's card: what it was trained on and how a plain diffusers pipeline loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dreamgen.core.settings import Settings
from dreamgen.models.world import WorldModelSource

CARD = """\
---
{front}
---

# {method} adapter for {model}

Made by DreamGen from {num_clips} clips: {num_windows} windows of {num_frames} frames, {width} x {height} px, {fps} fps.

| | |
|---|---|
{table}

## Load it in diffusers

```python
{snippet}
```

The prompt begins with the words that the training used: `{prompt_prefix}`.
"""


def adapter_card(
    settings: Settings,
    source: WorldModelSource,
    adapter: Path,
    device: str,
    counts: dict[str, Any],
    final_loss: float,
) -> str:
    """Return README.md of an adapter.

    Args:
        settings: Of the training.
        source: The base model.
        adapter: The folder that the card will lie in.
        device: Kind of device that it was trained on: cpu or cuda.
        counts: num_clips, num_windows, num_samples and num_epochs.
        final_loss: Mean of the last log line.

    Returns:
        Markdown with the front matter that hubs read.
    """
    tune, video = settings.finetune, settings.video
    front: dict[str, Any] = {
        "library_name": "diffusers",
        "tags": sorted({"lora", tune.method, "cosmos", "image-to-video"}),
    }
    if source.revision is not None:  # only a hub's model can be named to a hub
        front["base_model"] = source.path
    rows = {
        "base model": source.path,
        "revision": source.revision or "none (a local folder)",
        "fingerprint": source.sha256,
        "method": tune.method,
        "rank, alpha": f"{tune.lora.rank}, {tune.lora.alpha}",
        "layers": ", ".join(tune.lora.target_modules),
        "optimizer steps": tune.num_steps,
        "windows seen": f"{counts['num_samples']} ({counts['num_epochs']:.2f} epochs)",
        "peak learning rate": f"{tune.learning_rate:.3e}",
        "precision of the base": settings.model.dtype,
        "seed": settings.seed,
        "final loss": f"{final_loss:.6f}",
    }
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=True).strip(),
        method={"lora": "LoRA", "dora": "DoRA"}[tune.method],
        model=source.name,
        num_clips=counts["num_clips"],
        num_windows=counts["num_windows"],
        num_frames=video.num_frames,
        width=video.width,
        height=video.height,
        fps=video.fps,
        table="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        snippet=loading_snippet(settings, source, adapter, device),
        prompt_prefix=settings.prompt_prefix,
    )


def loading_snippet(settings: Settings, source: WorldModelSource, adapter: Path, device: str) -> str:
    """Return at most ten lines of Python that dream a clip with the adapter and use nothing of ours."""
    video, guarded = settings.video, settings.model.safety_checker
    options = {
        "revision": repr(source.revision) if source.revision is not None else "",
        "torch_dtype": f"torch.{settings.model.dtype}",
        # The pipeline insists on a checker; without `guarded` the run's settings say that this model has none.
        "safety_checker": "" if guarded else "Unguarded()",
    }
    given = ", ".join([repr(source.path), *(f"{name}={value}" for name, value in options.items() if value)])
    moved = "" if device == "cpu" else f'.to("{device}")'
    asked = f"prompt={settings.prompt_prefix + '...'!r}, height={video.height}, width={video.width}"
    lines = {
        "import torch": True,
        "from diffusers import Cosmos2_5_PredictBasePipeline": True,
        "from diffusers.utils import export_to_video, load_image": True,
        "class Unguarded:": not guarded,
        "    to = staticmethod(lambda device: None)": not guarded,
        "    check_text_safety = staticmethod(lambda text: True)": not guarded,
        f"pipe = Cosmos2_5_PredictBasePipeline.from_pretrained({given}){moved}": True,
        f"pipe.load_lora_weights({str(adapter)!r})": True,
        f'clip = pipe(load_image("first_frame.png"), {asked}, num_frames={video.num_frames}).frames[0]': True,
        f'export_to_video(clip, "dream.mp4", fps={video.fps})': True,
    }
    return "\n".join(line for line, wanted in lines.items() if wanted)
