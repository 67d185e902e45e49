"""Errors that a user can act on: what is wrong, the actual value, what is allowed, and the next command."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial


def quoted(word: object) -> str:
    """Return a path or name as it has to be typed in a shell, for commands that can be copied."""
    return shlex.quote(str(word))


class UserError(Exception):
    """A mistake in the input that the user can fix; shown without a traceback, exit status 2.

    Args:
        what: One sentence that names the file or setting and what is wrong with it.
        actual: The value that was found.
        allowed: What would have been accepted.
        next_step: The command or action that fixes it.
    """

    def __init__(
        self, what: str, *, actual: object = None, allowed: object = None, next_step: str | None = None
    ) -> None:
        self.what, self.actual, self.allowed, self.next_step = what, actual, allowed, next_step
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        parts = (("found:", self.actual), ("allowed:", self.allowed), ("do:", self.next_step))
        lines += [f"  {label:8} {value}".replace("\n", "\n" + " " * 11) for label, value in parts if value is not None]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Callable[[str], UserError], tuple[str]]:
        # Ray pickles exceptions, and by default pickle would drop the keyword arguments.
        make = partial(type(self), actual=self.actual, allowed=self.allowed, next_step=self.next_step)
        return make, (self.what,)


class NothingAccepted(UserError):
    """No clip was accepted, so there is no dataset to write; the report lists the reasons."""


class WeakLabels(UserError):
    """The labels come from a model that is no better than a baseline, so export writes no dataset of them."""


class CannotWrite(UserError):
    """The storage cannot be written to; what was recorded is kept, and the same command continues later."""


class ClusterLost(UserError):
    """Ray is gone, on every node; what was recorded is kept, and the same command continues later."""


class Problems:
    """Collects user errors, so that all are reported together."""

    def __init__(self) -> None:
        self.errors: list[UserError] = []

    def add(self, what: str, *, actual: object = None, allowed: object = None, next_step: str | None = None) -> None:
        """Add one problem; takes the arguments of `UserError`."""
        self.errors.append(UserError(what, actual=actual, allowed=allowed, next_step=next_step))

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Add the user error that the block raises, if any, and continue after it."""
        try:
            yield
        except UserError as error:
            self.errors.append(error)

    def raise_if_any(self, headline: str) -> None:
        """Raise nothing, the only problem, or one error that lists them all under `headline`.

        Raises:
            UserError: if at least one problem was added.
        """
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            listed = "\n".join(f"- {error}".replace("\n", "\n  ") for error in self.errors)
            raise UserError(f"{headline} ({len(self.errors)} problems)\n{listed}")


def reason_of(error: UserError) -> str:
    """Return a user error as one line of a table."""
    parts = [error.what]
    if error.actual is not None:
        parts.append(f"found {error.actual}")
    if error.allowed is not None:
        parts.append(f"allowed: {error.allowed}")
    return " ".join("; ".join(parts).split())


def closest_match(word: str, known: Iterable[str]) -> str | None:
    """Return the known word nearest in spelling to `word`, or None when nothing is near."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None
