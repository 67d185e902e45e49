"""Settings by their dotted path, such as `finetune.lora.rank`, with what each declares."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any

from dreamgen.config.options import Option, default_of
from dreamgen.config.settings import Settings
from dreamgen.errors import closest_match


@dataclass(frozen=True)
class Setting:
    """One setting of `Settings`.

    Args:
        path: Its dotted path.
        type: Its type, such as `int | None` or a `Literal`.
        option: What it declares.
        default: Its default.
    """

    path: str
    type: Any
    option: Option
    default: Any

    @property
    def section(self) -> str:
        """Return the first part of the path; of a setting without a section, its name."""
        return self.path.partition(".")[0]

    @property
    def public_path(self) -> str:
        """Return the path as users write it."""
        name = self.option.public_name
        return self.path if name is None else f"{self.path.rpartition('.')[0]}.{name}"

    @property
    def kinds(self) -> tuple[Any, ...]:
        """Return the types that its values may have: one, or those of a union."""
        members = typing.get_args(self.type)
        return members if type(None) in members else (self.type,)

    @property
    def choices(self) -> tuple[Any, ...]:
        """Return the values that a `Literal` type allows, or the registered names; empty for other types."""
        literal = next((kind for kind in self.kinds if typing.get_origin(kind) is typing.Literal), None)
        return (
            typing.get_args(literal)
            if literal is not None
            else tuple(self.option.choices() if self.option.choices else ())
        )

    @property
    def type_name(self) -> str:
        """Return what its values are, in words."""
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text",
                 list[str]: "a list of strings", dict[str, float]: "numbers by name", type(None): "null"}  # fmt: skip
        return " or ".join(", ".join(map(str, self.choices)) if kind not in words else words[kind]
                           for kind in self.kinds)  # fmt: skip

    def invalidates(self, stage: str) -> bool:
        """Return whether a change invalidates unfinished output of a stage."""
        if self.option.scope != "run":
            return False
        stages = self.option.invalidates
        return stage in stages if stages is not None else stage == self.section


@cache
def all_settings() -> dict[str, Setting]:
    """Return every setting by its path, in the order of their declaration."""
    return {setting.path: setting for setting in _settings_of(Settings, "")}


@cache
def public_paths() -> dict[str, str]:
    """Return the path of each setting that users write otherwise, by how they write it."""
    return {s.public_path: path for path, s in all_settings().items() if s.public_path != path}


def nearest_setting(path: str) -> str | None:
    """Return the setting that was meant, by its whole path or by its last name in any section; None if none is near."""
    by_last = {name.rpartition(".")[2]: name for name in reversed(all_settings())}
    near = closest_match(path.rpartition(".")[2], by_last)
    return by_last[near] if near else closest_match(path, all_settings())


def get_path(settings: Any, path: str) -> Any:
    """Return the value at a dotted path."""
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


def paths_that_invalidate(stage: str) -> list[str]:
    """Return the settings whose change invalidates unfinished output of a stage."""
    return [path for path, setting in all_settings().items() if setting.invalidates(stage)]


def _settings_of(cls: type, prefix: str) -> list[Setting]:
    hints, found = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        path, hint = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(hint):
            found += _settings_of(typing.cast(type, hint), path + ".")
        else:
            found.append(Setting(path, hint, field.metadata["option"], default_of(field)))
    return found
