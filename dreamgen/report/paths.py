"""Paths of this machine, taken out of texts that the page shows: it is copied to other people and other machines."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from dreamgen.run.published_paths import published_paths
from dreamgen.run.run_folder import RunFolder

# An absolute path of at least two parts, not the rest of a URL or of a relative path.
ABSOLUTE = re.compile(r"(?<![\w.~/:@%+-])/(?:[\w.@%+=~,-]+/)+(?P<last>[\w.@%+=~,-]*)")
FILE_URL = re.compile(r"\bfile:/{2,3}(?=/?\w)")


def path_shortener(run: RunFolder, settings: Mapping[str, Any]) -> Callable[[str], str]:
    """Return a function that shortens the paths in a text: known folders to their names, all others to their ends.

    Errors and tracebacks name folders that no setting names.

    Args:
        run: The run that the page is about.
        settings: Its run.yaml, nested.
    """
    known = published_paths(run.root, settings)
    return lambda text: ABSOLUTE.sub(lambda match: f"…/{match['last']}", known(FILE_URL.sub("/", text)))
