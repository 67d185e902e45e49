"""Large matrix products of the transformer's blocks in 8-bit floating point (e4m3), for jobs that want it.

Weights are scaled once for each output feature, inputs for each token at each call (Micikevicius et al. 2022, FP8
Formats for Deep Learning, arXiv 2209.05433). The hardware accumulates in higher precision. A GPU of compute capability
8.9 or newer multiplies twice as fast in 8 bits; elsewhere the same rounding is applied to ordinary products.
"""

from __future__ import annotations

import torch
from diffusers import CosmosTransformer3DModel

from dreamgen.errors import UserError

MAX_FP8 = 448.0  # largest finite e4m3
LARGE_LAYERS = (
    "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0", "ff.net.0.proj",
    "ff.net.2",
)  # fmt: skip


class Fp8Linear(torch.nn.Module):
    """A linear layer without bias that multiplies in 8 bits.

    Args:
        linear: The layer that it replaces, kept to be restored.
    """

    weight_8: torch.Tensor
    weight_scale: torch.Tensor

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        assert linear.bias is None
        self.replaced = (linear,)  # in a tuple, so that it is not registered as a submodule
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight_8, weight_scale = _to_fp8(linear.weight.detach())
        self.register_buffer("weight_8", weight_8, persistent=False)
        self.register_buffer("weight_scale", weight_scale, persistent=False)

    def forward(self, input_XD: torch.Tensor) -> torch.Tensor:
        """Multiply; inputs of any leading shape."""
        rows = input_XD.reshape(-1, self.in_features)
        rows_8, row_scale = _to_fp8(rows)
        if rows.is_cuda:
            product = torch._scaled_mm(
                rows_8, self.weight_8.t(), scale_a=row_scale, scale_b=self.weight_scale.t(), out_dtype=torch.bfloat16
            )
        else:
            product = (rows_8.float() * row_scale) @ (self.weight_8.float() * self.weight_scale).t()
        return product.to(input_XD.dtype).unflatten(0, input_XD.shape[:-1])


def require_fp8(device: torch.device) -> None:
    """Check that a GPU supports 8-bit products; a CPU imitates their rounding.

    Raises:
        UserError: if it does not.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError(
            "plan.fp8 multiplies in 8 bits, which this GPU does not support",
            actual=torch.cuda.get_device_name(device),
            allowed="a GPU of compute capability 8.9 or newer (L40, H100, ...)",
            next_step="--plan.fp8=false",
        )


class Fp8Switch:
    """Switches a transformer's blocks to 8 bits and back; the 16-bit weights are kept."""

    def __init__(self) -> None:
        self._is_on = False

    def on(self, transformer: CosmosTransformer3DModel) -> None:
        """Replace the large layers of the blocks; do nothing if that is done already."""
        if self._is_on:
            return
        require_fp8(transformer.device)
        for parent, name, linear in large_layers(transformer):
            parent._modules[name] = Fp8Linear(linear)
        self._is_on = True

    def off(self, transformer: CosmosTransformer3DModel) -> None:
        """Restore the layers."""
        if not self._is_on:
            return
        for module in list(transformer.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, Fp8Linear):
                    module._modules[name] = child.replaced[0]
        self._is_on = False


def large_layers(transformer: CosmosTransformer3DModel) -> list[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    """List the layers applied to a clip's tokens: self-attention, queries and output of cross-attention, feed-forward.

    Returns:
        Parent module, name in it, and layer.
    """
    found = []
    for block in transformer.transformer_blocks:
        for path in LARGE_LAYERS:
            parent, _, name = path.rpartition(".")
            found.append((block.get_submodule(parent), name, block.get_submodule(path)))
    return found


def _to_fp8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale each row to the range of e4m3 and round. Returns the rows and float32 scales, (rows, 1)."""
    scale = rows.float().abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / MAX_FP8
    return (rows.float() / scale).clamp(-MAX_FP8, MAX_FP8).to(torch.float8_e4m3fn), scale
