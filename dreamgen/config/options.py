"""Declarations of settings: default, help, bounds, choices, scope, and what a change invalidates."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

from dreamgen.errors import UserError, closest_match

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Scope = Literal["run", "machine", "call"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """The rules of one setting.

    Args:
        help: What `dreamgen COMMAND --help` shows.
        ge: Smallest value that is allowed.
        gt: Value that must be exceeded.
        le: Largest value that is allowed.
        lt: Value that must not be reached.
        multiple_of: What the value is a multiple of.
        choices: Returns the names that are allowed; for names that extensions register. A `Literal` type needs none.
        parse: Raises UserError for a text that cannot be read.
        public_name: Its name for users, where Python cannot have a field of that name.
        scope: "run": part of what the run makes, and the same in all of its stages. "machine": where and how the work
            is done; it may differ between stages. "call": holds for one command and is never recorded.
        invalidates: Stages whose half-finished output is of no use after a change; the setting's own section when not
            given, and none for settings whose scope is not "run".
    """

    help: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    multiple_of: int | None = None
    choices: Callable[[], Sequence[str]] | None = None
    parse: Callable[[str], object] | None = None
    public_name: str | None = None
    scope: Scope = "run"
    invalidates: tuple[str, ...] | None = None

    def problem(self, path: str, value: Any) -> UserError | None:
        """Check one value.

        Args:
            path: Name of the setting, for the error.
            value: Of the right type; None is always allowed.

        Returns:
            What is wrong with it; None if nothing is.
        """
        if self.choices is not None:
            known = self.choices()
            names: list[Any] = value if isinstance(value, list) else [value]
            for name in names:
                if name is not None and name not in known:
                    near = closest_match(str(name), known)
                    return UserError(f"unknown value for {path}", actual=name,
                                     allowed=", ".join(known) or "none: no package that adds one is installed",
                                     next_step=f"did you mean {near}?" if near else None)  # fmt: skip
        if self.parse is not None and isinstance(value, str):
            try:
                self.parse(value)
            except UserError as error:
                return error
        return self._number_problem(path, value) if isinstance(value, int | float) else None

    def _number_problem(self, path: str, value: float) -> UserError | None:
        if not math.isfinite(value):
            return UserError(f"{path} is not a finite number", actual=value, allowed=self.bounds() or None)
        too_small = (self.ge is not None and value < self.ge) or (self.gt is not None and value <= self.gt)
        too_large = (self.le is not None and value > self.le) or (self.lt is not None and value >= self.lt)
        if self.multiple_of is None:
            what = f"{path} is too {'small' if too_small else 'large'}" if too_small or too_large else None
            return UserError(what, actual=value, allowed=self.bounds()) if what else None
        if too_small or too_large or value % self.multiple_of:
            near = max(round(value / self.multiple_of) * self.multiple_of, math.ceil(self.ge or 0))
            return UserError(
                f"{path} is not an allowed size", actual=value, allowed=self.bounds(), next_step=f"--{path}={near}"
            )
        return None

    def bounds(self) -> str:
        """Return the bounds in words, such as `at least 1`; empty where there are none."""
        parts = []
        if self.multiple_of is not None:
            parts.append("even" if self.multiple_of == 2 else f"divisible by {self.multiple_of}")
        if self.ge is not None and self.le is not None:
            return ", ".join([*parts, f"{_short(self.ge)} to {_short(self.le)}"])
        for value, words in ((self.ge, "at least"), (self.gt, "above"), (self.le, "at most"), (self.lt, "below")):
            parts += [f"{words} {_short(value)}"] if value is not None else []
        return ", ".join(parts)


def parse_folder_name(text: str) -> str:
    """Return a text that can be a part of a folder's name.

    Raises:
        UserError: if it has other characters than letters, digits, dots, underscores and hyphens.
    """
    if not FOLDER_NAME.fullmatch(text):
        raise UserError(
            "not a name for a folder", actual=text, allowed="letters, digits, dots, underscores and hyphens"
        )
    return text


def option(default: Any, help: str, **rules: Any) -> Any:
    """Declare a setting.

    Args:
        default: Its default; lists and dicts are copied.
        help: What `dreamgen COMMAND --help` shows.
        rules: Arguments of `Option`, such as `ge=1`.
    """
    metadata = {"option": Option(help=help, **rules)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: type) -> Any:
    """Declare a nested group of settings."""
    return field(default_factory=cls)


def default_of(setting: Any) -> Any:
    """Return the default of a dataclass field, whichever way it was declared."""
    return setting.default if setting.default is not MISSING else setting.default_factory()


def _short(value: float) -> str:
    return f"2**{int(math.log2(value))}" if value >= 2**32 else f"{value:g}"
