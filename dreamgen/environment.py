"""Environment variables that libraries read when they are imported: set before any of them, in every process."""

from __future__ import annotations

import os

DEFAULTS = {
    # A run has one voice; errors still come as exceptions.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that wait for one another by spinning make a small model eight times slower on a machine that is busy.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def set_library_defaults() -> None:
    """Set each variable that the user has not set."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
