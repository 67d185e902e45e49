"""A pretrained vision encoder of the hub, such as SigLIP2 or DINOv2, for inverse dynamics.

Axes: N frames, H height, W width, C channels, L patches, E features of a patch, F features of a frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dreamgen.errors import UserError
from dreamgen.models.saved_config import SOURCE

PATCH_FEATURES = 16  # kept of each patch, so that where something is stays known


class PretrainedEncoder(nn.Module):
    """The vision tower of a transformers model; its patches are reduced and joined, as where they are matters.

    The background is not used: the encoder knows objects.

    Args:
        config: `model`, the configuration of transformers; `mean`, `std` and `px`, of its image processor; `frozen`.
        width: Features of a frame.
    """

    def __init__(self, config: dict[str, Any], width: int) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        values = dict(config["model"])
        self.tower = AutoModel.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
        self.tower = getattr(self.tower, "vision_model", self.tower)
        self.px, self.frozen = int(config["px"]), bool(config["frozen"])
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.tower.requires_grad_(not self.frozen)
        with torch.no_grad():
            _, num_patches, num_features = self._patches(torch.zeros(1, 3, 8, 8)).shape
        self.reduce = nn.Linear(num_features, PATCH_FEATURES)
        self.project = nn.Sequential(nn.Flatten(), nn.Linear(num_patches * PATCH_FEATURES, width), nn.SiLU())

    def forward(self, picture_NCHW: torch.Tensor, background_NCHW: torch.Tensor) -> torch.Tensor:
        """Return features_NF of images in -1..1."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            patches_NLE = self._patches(picture_NCHW)
        return self.project(self.reduce(patches_NLE))

    def train(self, mode: bool = True) -> PretrainedEncoder:
        """Set training mode; a frozen tower stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.tower.eval()
        return self

    def _patches(self, picture_NCHW: torch.Tensor) -> torch.Tensor:
        resized = F.interpolate(picture_NCHW, size=(self.px, self.px), mode="bilinear", align_corners=False)
        pixels = ((resized.clamp(-1, 1) + 1) / 2 - self.mean) / self.std
        return self.tower(pixel_values=pixels).last_hidden_state


def read_encoder(name: str, frozen: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Download or read an encoder.

    Args:
        name: Hub id or folder of a transformers model with a vision tower and an image processor.
        frozen: Whether its weights stay as they are.

    Returns:
        Its configuration as `PretrainedEncoder` takes it, and its weights.

    Raises:
        UserError: if it cannot be loaded or has no vision tower.
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        model = AutoModel.from_pretrained(name, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        tower = getattr(model, "vision_model", model)
        size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        px = size.get("height") or size["shortest_edge"]
        values = tower.config.to_dict()
        values.pop(SOURCE, None)
        config = {
            "name": Path(name).name if Path(name).is_dir() else name, "model": values, "px": px, "frozen": frozen,
            "mean": list(processor.image_mean), "std": list(processor.image_std),
        }  # fmt: skip
        PretrainedEncoder(config, width=1)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            "idm.encoder cannot be loaded as a vision encoder",
            actual=f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            allowed="a hub id such as facebook/dinov2-small or google/siglip2-base-patch16-224, or such a folder",
        ) from None
    return config, {name: value.detach().clone() for name, value in tower.state_dict().items()}
