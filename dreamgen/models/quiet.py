"""Keeping the loaders of diffusers and transformers quiet: a run has one voice, and errors still come as exceptions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers.utils.logging as diffusers_logging
import transformers.utils.logging as transformers_logging


@contextmanager
def quiet_loaders() -> Iterator[None]:
    """Silence progress bars, advice and deprecations of both libraries while the body runs; then as before."""
    libraries = (diffusers_logging, transformers_logging)
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # `torch_dtype` is on its way out in diffusers 0.42 and the only word that 0.39 knows.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
