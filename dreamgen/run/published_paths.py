"""Paths of this machine in what others will read: cards, provenance and the report name them relative to the run."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dreamgen.config.loading import flatten

# A path ends where its name does, and does not begin within another one.
BOUNDED = r"(?<![\w.~/-])(?:{})(?![\w-])"


def published_paths(root: Path, settings: Mapping[str, Any]) -> Callable[[str], str]:
    """Return a function that shortens the absolute paths in a text.

    The run folder keeps its name, so paths in it are relative to the folder that holds it; folders that the settings
    name keep their names, such as a dataset's; others lose the working directory or the home folder.

    Args:
        root: The run folder.
        settings: Nested plain values, as `as_plain` or run.yaml has them.
    """
    short = {str(path): name for path, name in _names(root, settings) if path != path.parent}
    longest_first = sorted(short, key=len, reverse=True)
    pattern = re.compile(BOUNDED.format("|".join(map(re.escape, longest_first))))
    return lambda text: pattern.sub(lambda match: short[match[0]], text)


def _names(root: Path, settings: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    # Later ones count where two are equal.
    for base in (Path.home(), Path.home().resolve()):
        yield base, "~"
    yield Path(sysconfig.get_path("purelib")), "site-packages"
    yield Path.cwd(), "."
    for _, value in flatten(dict(settings)):
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and each.startswith(("/", "~/")):
                path = Path(each).expanduser()
                yield path, path.name
                yield path.resolve(), path.name
    name = root.resolve().name
    yield root.absolute(), name
    yield root.resolve(), name
