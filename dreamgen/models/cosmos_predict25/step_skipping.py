"""Which forward passes of a sampling are made, and which are foretold from those before: the fast levels.

On its way from noise to a clip the velocity changes slowly over most of the steps, and so does what guidance adds to
it. A pass that is left out is foretold by a straight line through the last two that were made, over the share of
noise. The plan is fixed by the level's numbers: a clip is the same on every machine, and nothing waits to decide.
Idea: Liu et al. 2025, From Reusing to Forecasting (arXiv 2503.06923), there for each layer, here for the velocity.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

import torch

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.errors import UserError


@dataclass(frozen=True)
class StepSkipping:
    """A level's numbers; the defaults leave nothing out.

    Args:
        whole_first: Share of the steps, at the start, that are made whole.
        whole_last: Share of the steps, at the end, that are made whole.
        velocity_every: Between them, the prompt's velocity is made at every n-th step and foretold at the others.
        guidance_every: Of the steps between that make a velocity, every n-th makes guidance's other pass too.
        fp8: Make the blocks' large products in 8-bit floating point.
    """

    whole_first: float = 0.0
    whole_last: float = 0.0
    velocity_every: int = 1
    guidance_every: int = 1
    fp8: bool = False

    def to_json(self) -> str:
        """Return the numbers as a job carries them: canonical JSON of what differs from the defaults."""
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return json.dumps(changed, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> StepSkipping:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Passes:
    """What a step computes; what it does not is foretold."""

    velocity: bool
    guidance: bool


def level_step_skipping(level: str, fp8: bool = False) -> StepSkipping:
    """Return a named level's numbers, from configs/sampling/levels.yaml.

    Args:
        level: Its name.
        fp8: Make large products in 8 bits besides.

    Raises:
        UserError: if there is no such level.
    """
    levels = read_yaml(configs_folder() / "sampling" / "levels.yaml")
    if level not in levels:
        raise UserError("there is no such level", actual=level, allowed=", ".join(levels))
    return StepSkipping(**({"fp8": fp8} | (levels[level] or {})))


def plan_passes(num_steps: int, shortcuts: StepSkipping) -> list[Passes]:
    """Decide for each step which passes are made.

    Args:
        num_steps: Denoising steps.
        shortcuts: The level's numbers.

    Returns:
        One a step. The first two steps are always whole, or there were no line to foretell from.
    """
    first = max(2, round(num_steps * shortcuts.whole_first))
    last = num_steps - round(num_steps * shortcuts.whole_last)
    passes, num_made = [], 0
    for step in range(num_steps):
        if step < first or step >= last:
            passes.append(Passes(True, True))
            continue
        velocity = (step - first) % shortcuts.velocity_every == shortcuts.velocity_every - 1
        num_made += velocity
        passes.append(Passes(velocity, velocity and num_made % shortcuts.guidance_every == 0))
    return passes


def num_forwards(num_steps: int, shortcuts: StepSkipping, is_guided: bool) -> int:
    """Count the forward passes of one clip."""
    passes = plan_passes(num_steps, shortcuts)
    return sum(p.velocity + (is_guided and p.guidance) for p in passes)


class Line:
    """Remembers the last two values of something over the share of noise, and foretells the next.

    Args:
        keeps: False where nothing will be foretold, so that nothing is kept.
    """

    def __init__(self, keeps: bool) -> None:
        self._keeps, self._points = keeps, []

    def add(self, sigma: float, value: torch.Tensor) -> torch.Tensor:
        """Take a computed value in, and return it."""
        if self._keeps:
            self._points = [*self._points[-1:], (sigma, value)]
        return value

    def at(self, sigma: float) -> torch.Tensor:
        """Foretell the value: on the line through both points, or the one point's own."""
        (sigma_1, value_1) = self._points[-1]
        if len(self._points) == 1:
            return value_1
        (sigma_0, value_0) = self._points[0]
        return torch.lerp(value_0, value_1, (sigma - sigma_0) / (sigma_1 - sigma_0))
