"""What keeps libraries quiet: variables that they read at import, set in every process, and filters of warnings."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

DEFAULTS = {
    # Only this package logs; the libraries' errors still arrive as exceptions.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that spin while they wait make a small model eight times slower on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
}


IGNORED_WARNINGS = (
    # Precision is a setting, so torch's advice to lower it is no news.
    "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled",
    # Of a channels-last VAE on several GPUs: some gradients are copied once more than necessary.
    "Grad strides do not match bucket view strides",
)


def set_library_defaults() -> None:
    """Set each variable that the user has not set, and ignore warnings that nobody can act on."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def changed_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables that processes inherit which the body starts, and set them back when it is left."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
