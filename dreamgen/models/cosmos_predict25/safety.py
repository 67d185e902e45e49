"""The guardrail that the real model's licence asks for, and what stands in its place when the user turns it off."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from dreamgen.errors import UserError


class NoSafetyChecker:
    """Lets every prompt and video pass; used only where the user set `model.safety_checker=false`."""

    def to(self, *_: Any, **__: Any) -> NoSafetyChecker:
        """Stay where it is: there is nothing to move."""
        return self

    def check_text_safety(self, prompt: str) -> bool:
        """Pass any prompt."""
        return True

    def check_video_safety(self, video_THWC: np.ndarray) -> np.ndarray:
        """Return the video as it came."""
        return video_THWC


def require_safety_checker(wanted: bool) -> None:
    """Make sure that the guardrail is there if it is wanted, without loading it.

    Raises:
        UserError: if it is wanted and not installed.
    """
    if wanted and importlib.util.find_spec("cosmos_guardrail") is None:
        raise UserError(
            "the model's licence asks for its guardrail, and cosmos_guardrail is not installed",
            allowed="the guardrail, or a run that says it goes without",
            next_step="pip install cosmos_guardrail, or set --model.safety_checker=false (run.yaml records it)",
        )


def make_safety_checker(wanted: bool) -> Any:
    """Return NVIDIA's guardrail, or the stand-in where the user turned it off.

    Raises:
        UserError: if it is wanted and not installed.
    """
    if not wanted:
        return NoSafetyChecker()
    require_safety_checker(wanted)
    from cosmos_guardrail import CosmosSafetyChecker

    return CosmosSafetyChecker()
