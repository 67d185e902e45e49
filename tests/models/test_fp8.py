"""8-bit products: their rounding, and that turning them off leaves the layers as they were."""

import torch

from dreamgen.models.cosmos_predict25.fp8 import Fp8Linear, Fp8Switch, large_layers
from dreamgen.models.cosmos_predict25.mini import build_mini
from tests.fixtures.world import tiny_sizes


def test_a_product_is_within_the_formats_rounding():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32, bias=False)
    inputs = torch.randn(2, 5, 64, generator=generator) * torch.logspace(-3, 3, 5)[:, None]
    with torch.no_grad():
        wanted, found = linear(inputs), Fp8Linear(linear)(inputs)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    # e4m3 keeps 3 bits after the leading one: at most 1 part in 16 off, and errors of 64 products cancel.
    errors = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert 1e-3 < errors.max() < 1 / 16


def test_on_and_off_again_leaves_no_trace():
    transformer, switch = build_mini(tiny_sizes()).transformer, Fp8Switch()
    layers = [layer for _, _, layer in large_layers(transformer)]
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    switch.on(transformer)
    switch.on(transformer)
    assert sum(isinstance(module, Fp8Linear) for module in transformer.modules()) == len(layers) == 8
    switch.off(transformer)
    assert [layer for _, _, layer in large_layers(transformer)] == layers
    assert all(torch.equal(before[name], value) for name, value in transformer.state_dict().items())
