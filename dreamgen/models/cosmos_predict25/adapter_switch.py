"""Fusing adapters into a loaded pipeline, and changing from one to another without residue."""

from __future__ import annotations

import torch
from diffusers import Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel

from dreamgen.models.adapter_choice import AdapterChoice
from dreamgen.models.adapter_files import is_full
from dreamgen.models.cosmos_predict25.adapter import check_adapter_fits, linear_layers, load_adapter, load_update
from dreamgen.models.cosmos_predict25.adapter_layouts import read_adapter


class AdapterSwitch:
    """Changes the adapter of a loaded pipeline, each time starting from the base weights.

    If several adapters will be used, the base weights of the layers that they change are kept in RAM.

    Args:
        pipe: The base model without an adapter; changed in place.
        several: Whether more than one adapter will be used; otherwise nothing is kept.
    """

    def __init__(self, pipe: Cosmos2_5_PredictBasePipeline, several: bool) -> None:
        self._pipe = pipe
        self._base_transformer = pipe.transformer if several else None
        self._base: dict[str, torch.Tensor] = {}
        self.fused: str | None = None  # hash of the fused adapter
        self.num_switches = 0

    def to(self, choice: AdapterChoice | None) -> None:
        """Fuse another adapter instead of the current one; do nothing if it is the same.

        Raises:
            UserError: if an adapter is missing, damaged or does not fit.
        """
        wanted = choice.sha256 if choice else None
        if wanted == self.fused:
            return
        if self.fused is not None:
            assert self._base_transformer is not None, "made for one adapter"
            self._restore(self._base_transformer)
            self.num_switches += 1
        self.fused = None  # until everything has succeeded
        if choice is not None:
            for folder in choice.folders:
                check_adapter_fits(self._pipe.transformer, folder)
            if self._base_transformer is not None:
                self._keep_base(choice, self._base_transformer)
            fuse(self._pipe, choice)
        self.fused = wanted

    def _keep_base(self, choice: AdapterChoice, base: CosmosTransformer3DModel) -> None:
        layers = base.state_dict()
        for folder in choice.folders:
            changed = [] if is_full(folder) else read_adapter(folder, linear_layers(base)).layers
            for name in (f"{layer}.weight" for layer in changed):
                if name not in self._base:
                    self._base[name] = layers[name].to("cpu", copy=True)

    @torch.no_grad()
    def _restore(self, base: CosmosTransformer3DModel) -> None:
        self._pipe.transformer = base
        layers = base.state_dict()
        for name, weight in self._base.items():
            layers[name].copy_(weight)


def fuse(pipe: Cosmos2_5_PredictBasePipeline, choice: AdapterChoice) -> None:
    """Add an adapter's update to the base weights through diffusers' own loader.

    A blend adds each adapter's update times its weight.
    """
    if choice.is_single:
        load_adapter(pipe, choice.parts[0][0], fuse=True)
        return
    names = [f"part{index}" for index in range(len(choice.parts))]
    for name, folder in zip(names, choice.folders, strict=True):
        load_update(pipe, folder, name)
    pipe.set_adapters(names, [weight for _, weight in choice.parts])
    pipe.fuse_lora(adapter_names=names)
    pipe.unload_lora_weights()
