"""The guardrail that the real model's license requires, and its replacement when the user turns it off."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from dreamgen.errors import UserError


class NoSafetyChecker:
    """Accepts every prompt and video; used only if the user sets `model.safety_checker=false`."""

    def to(self, *_: Any, **__: Any) -> NoSafetyChecker:
        """Do nothing: there is nothing to move."""
        return self

    def check_text_safety(self, prompt: str) -> bool:
        """Accept any prompt."""
        return True

    def check_video_safety(self, video_THWC: np.ndarray) -> np.ndarray:
        """Return the video unchanged."""
        return video_THWC


def require_safety_checker(wanted: bool) -> None:
    """Check that the guardrail is installed if it is needed, without loading it.

    Raises:
        UserError: if it is needed and not installed.
    """
    if wanted and importlib.util.find_spec("cosmos_guardrail") is None:
        raise UserError(
            "the model's license requires its guardrail, and cosmos_guardrail is not installed",
            allowed="an installed guardrail, or a run that turns it off",
            next_step="pip install cosmos_guardrail, or set --model.safety_checker=false (run.yaml records it)",
        )


def make_safety_checker(wanted: bool) -> Any:
    """Return NVIDIA's guardrail, or `NoSafetyChecker` if the user turned it off.

    Raises:
        UserError: if it is needed and not installed.
    """
    if not wanted:
        return NoSafetyChecker()
    require_safety_checker(wanted)
    from cosmos_guardrail import CosmosSafetyChecker  # pyright: ignore[reportMissingImports]  # an optional package

    return CosmosSafetyChecker()
