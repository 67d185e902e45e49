"""Cosmos Predict 2.5 in the registry of world models; importing this is light."""

from __future__ import annotations

from dreamgen.models.size_rules import SizeRules
from dreamgen.models.world_model import WorldModelType

TYPE = WorldModelType(
    "dreamgen.models.cosmos_predict25.model:CosmosPredict25",
    # Patches of 2 x 2 latents of 8 x 8 pixels; the VAE encodes the first frame alone and then groups of four.
    size_rules=SizeRules(size_multiple_px=16, frame_multiple=4, min_frames=5),
    # One latent frame is one frame; the next one holds four more.
    num_conditioning_frames={"image": 1, "video": 5, "text": 0},
    pipelines=("Cosmos2_5_PredictBasePipeline",),
    paths=("mini",),
    hub_prefixes=("nvidia/Cosmos-Predict2.5",),
)
