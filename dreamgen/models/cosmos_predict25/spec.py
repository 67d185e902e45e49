"""Cosmos Predict 2.5 in the registry of world models; importing this is light."""

from __future__ import annotations

from pathlib import Path

from dreamgen.data.timeline import num_latent_frames
from dreamgen.models.size_rules import SizeRules
from dreamgen.models.world_model import WorldModelType

NUM_TEXT_TOKENS = 512  # the pipeline cuts or pads every prompt to this; no token is shorter than a byte
NUM_BYTES_ADDED = 200  # more than the conversation adds to a prompt, in bytes and so in tokens
CHANNELS, STRIDE_PX = 16, 8  # of the Wan VAE, which every Cosmos Predict 2.5 model uses
# The trained mini model, as `save_pretrained` writes it, where the package has it.
SHIPPED_MINI = Path(__file__).parent / "mini_weights"


def shipped_mini(path: str) -> Path | None:
    """Return the folder of the shipped model that `model.path` names; None for a model that is not shipped."""
    return SHIPPED_MINI if path == "mini" and (SHIPPED_MINI / "model_index.json").is_file() else None


def is_random_mini(path: str) -> bool:
    """Return whether `model.path` names a mini model that is built on first use, with random weights."""
    return path in ("mini", "mini-random") and shipped_mini(path) is None


def latent_shape(num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the shape CTHW of a clip's latents: the first frame alone, then groups of four; an eighth in space."""
    return CHANNELS, num_latent_frames(num_frames), height // STRIDE_PX, width // STRIDE_PX


TYPE = WorldModelType(
    "dreamgen.models.cosmos_predict25.before_loading:UnloadedCosmosPredict25",
    # Patches of 2 x 2 latents of 8 x 8 pixels; the VAE encodes the first frame alone and then groups of four.
    size_rules=SizeRules(size_multiple_px=16, frame_multiple=4, min_frames=5),
    # One latent frame is one frame; the next one holds four more.
    num_conditioning_frames={"image": 1, "video": 5, "text": 0},
    pipelines=("Cosmos2_5_PredictBasePipeline",),
    paths=("mini", "mini-random"),
    hub_prefixes=("nvidia/Cosmos-Predict2.5",),
    max_uncut_bytes=NUM_TEXT_TOKENS - NUM_BYTES_ADDED,
)
