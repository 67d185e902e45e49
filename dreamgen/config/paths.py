"""Settings by their dotted path, such as `finetune.lora.rank`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any


def setting_paths(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Yield the dotted path and field of every setting below a settings class."""
    hints = typing.get_type_hints(cls)
    for setting in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[setting.name]):
            yield from setting_paths(hints[setting.name], f"{prefix}{setting.name}.")
        else:
            yield prefix + setting.name, setting


def get_path(settings: Any, path: str) -> Any:
    """Return the value at a dotted path."""
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings
