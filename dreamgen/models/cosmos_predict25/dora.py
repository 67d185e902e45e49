"""DoRA's column norm in closed form, without computing the dense update of every layer at every step.

Axes: O output features, I input features, R rank.
Sources: Liu et al. 2024, DoRA (arXiv 2402.09353), section 4.3 for the norm as a constant of the gradient. The closed
form is the square written out: |W + sBA|^2 = |W|^2 + 2s B.(WA^T) + s^2 (B AA^T).B, each row by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import CosmosTransformer3DModel
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant

BASE_NORM = "_dora_base_norm_squared"


class ClosedFormDora(DoraLinearVariant):
    """peft's DoRA of a linear layer with the same result and no dense update; merging and saving are peft's own."""

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """Return m / |W + sBA| * (W x + s B A x), for a layer without dropout and bias."""
        low, high, base = module.lora_A[active_adapter], module.lora_B[active_adapter], module.get_base_layer()
        magnitude = module.lora_magnitude_vector[active_adapter]
        assert isinstance(low, torch.nn.Linear) and isinstance(high, torch.nn.Linear)
        assert isinstance(base, torch.nn.Linear) and isinstance(magnitude, DoraLinearLayer)
        scaling = module.scaling[active_adapter]
        norm_O = column_norm(base.weight, getattr(module, BASE_NORM), low.weight, high.weight, scaling)
        gain_O = magnitude.weight / norm_O
        return gain_O.to(result.dtype) * (result + high(low(x)) * scaling)


@torch.no_grad()
def column_norm(
    weight_OI: torch.Tensor,
    base_norm_squared_O: torch.Tensor,
    low_RI: torch.Tensor,
    high_OR: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Return the norm of each row of W + s B A without computing that matrix.

    Args:
        weight_OI: Frozen weight, any float type.
        base_norm_squared_O: Its rows' squared norms, float32.
        low_RI: A, float32.
        high_OR: B, float32.
        scaling: s = alpha / rank.

    Returns:
        norm_O, float32, without gradient.
    """
    with torch.autocast(weight_OI.device.type, enabled=False):
        across_OR = (weight_OI @ low_RI.T.to(weight_OI.dtype)).float()
        within_OR = high_OR @ (low_RI @ low_RI.T)
        squared_O = base_norm_squared_O + (high_OR * (2 * scaling * across_OR + scaling**2 * within_OR)).sum(dim=1)
        return squared_O.sqrt()


def use_closed_form(transformer: CosmosTransformer3DModel) -> int:
    """Make every DoRA layer of a transformer use the closed form.

    Args:
        transformer: With an adapter; layers with dropout or bias keep peft's own form.

    Returns:
        Number of layers that changed.
    """
    num_changed = 0
    for module in transformer.modules():
        if not isinstance(module, LoraLayer):
            continue
        for name, variant in module.lora_variant.items():
            base = module.get_base_layer()
            plain = isinstance(module.lora_dropout[name], torch.nn.Identity) and getattr(base, "bias", None) is None
            if type(variant) is DoraLinearVariant and plain:
                assert isinstance(base, torch.nn.Linear)
                norm_squared_O = base.weight.detach().float().square().sum(dim=1)
                module.register_buffer(BASE_NORM, norm_squared_O, persistent=False)
                module.lora_variant[name] = ClosedFormDora()
                num_changed += 1
    return num_changed
