"""Training of a world model's adapter, and of the inverse-dynamics model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.train import finetune

__all__ = ["finetune"]


def __getattr__(name: str) -> Any:
    """Import `finetune` when it is first used: it needs libraries that inverse dynamics does without."""
    if name != "finetune":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from finetune.train import finetune

    return finetune
