"""Step skipping: which forward passes a sampling level computes, and which it extrapolates from earlier ones.

During most of the denoising steps the velocity changes slowly, and so does what guidance adds to it. A skipped pass is
extrapolated linearly, over the noise level, from the last two that were computed. The plan follows from the level's
numbers alone, so a clip is the same on every machine and nothing waits for a decision.
Source: Liu et al. 2025, From Reusing to Forecasting (arXiv 2503.06923), which does this for each layer; here it is done
for the velocity.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class StepSkipping:
    """The numbers of a level; the defaults skip nothing.

    Args:
        whole_first: Share of the steps, at the start, that compute every pass.
        whole_last: Share of the steps, at the end, that compute every pass.
        velocity_every: In between, the prompt's velocity is computed at every n-th step and extrapolated at the others.
        guidance_every: Of those steps, every n-th also computes the pass of the negative prompt.
        fp8: Compute the large matrix products of the blocks in 8-bit floating point.
    """

    whole_first: float = 0.0
    whole_last: float = 0.0
    velocity_every: int = 1
    guidance_every: int = 1
    fp8: bool = False

    def to_json(self) -> str:
        """Return the numbers as jobs store them: canonical JSON of those that differ from the defaults."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return json.dumps(changed, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> StepSkipping:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Passes:
    """The passes that a step computes; the others are extrapolated."""

    velocity: bool
    guidance: bool


def level_step_skipping(level: str, fp8: bool = False) -> StepSkipping:
    """Return a named level's numbers, from configs/sampling/levels.yaml.

    Args:
        level: Its name.
        fp8: Also compute large matrix products in 8 bits.

    Raises:
        UserError: if there is no such level.
    """
    levels = read_yaml(configs_folder() / "sampling" / "levels.yaml")
    if level not in levels:
        raise UserError("unknown value for plan.level", actual=level, allowed=", ".join(levels))
    return StepSkipping(**({"fp8": fp8} | (levels[level] or {})))


def plan_passes(num_steps: int, step_skipping: StepSkipping) -> list[Passes]:
    """Decide for each step which passes are computed.

    Args:
        num_steps: Denoising steps.
        step_skipping: The level's numbers.

    Returns:
        One entry a step. The first two steps compute every pass: extrapolation needs two points.
    """
    first = max(2, round(num_steps * step_skipping.whole_first))
    last = num_steps - round(num_steps * step_skipping.whole_last)
    passes, num_made = [], 0
    for step in range(num_steps):
        if step < first or step >= last:
            passes.append(Passes(True, True))
            continue
        velocity = (step - first) % step_skipping.velocity_every == step_skipping.velocity_every - 1
        num_made += velocity
        passes.append(Passes(velocity, velocity and num_made % step_skipping.guidance_every == 0))
    return passes


def num_forwards(num_steps: int, step_skipping: StepSkipping, is_guided: bool) -> int:
    """Count the forward passes of one clip."""
    passes = plan_passes(num_steps, step_skipping)
    return sum(p.velocity + (is_guided and p.guidance) for p in passes)


class LinearExtrapolation:
    """Keeps the last two values of a tensor over the noise level, and extrapolates the next.

    Args:
        keeps_values: False if nothing will be extrapolated, so that no memory is spent.
    """

    def __init__(self, keeps_values: bool) -> None:
        self._keeps_values = keeps_values
        self._points: list[tuple[float, torch.Tensor]] = []

    def add(self, sigma: float, value: torch.Tensor) -> torch.Tensor:
        """Record a computed value, and return it."""
        if self._keeps_values:
            self._points = [*self._points[-1:], (sigma, value)]
        return value

    def extrapolate(self, sigma: float) -> torch.Tensor:
        """Return the value on the line through the last two points, or that of the only point."""
        (sigma_1, value_1) = self._points[-1]
        if len(self._points) == 1:
            return value_1
        (sigma_0, value_0) = self._points[0]
        return value_0.lerp(value_1, (sigma - sigma_0) / (sigma_1 - sigma_0))
