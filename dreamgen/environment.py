"""Environment variables that libraries read at import: set before any of them is imported, in every process."""

from __future__ import annotations

import os

DEFAULTS = {
    # Only this package logs; the libraries' errors still arrive as exceptions.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that spin while they wait make a small model eight times slower on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def set_library_defaults() -> None:
    """Set each variable that the user has not set."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
