"""A registry of one kind of extension, filled from the package itself, from entry points and at run time.

Names are known without importing anything heavy: an entry is a reference `module:attribute` until it is requested.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points

from dreamgen.errors import UserError, closest_match


class Registry[T]:
    """Extensions of one kind by name.

    An installed package adds one with an entry point, and no file of this project changes:

        [project.entry-points."dreamgen.scores"]
        sharpness = "my_package.sharpness:SCORE"

    Args:
        kind: What an entry is, in words, for error messages, such as "curation score".
        group: Entry-point group of other packages, such as "dreamgen.scores".
        builtin: Name -> `module:attribute` of the entries that come with DreamGen, in the order in which they are
            listed.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        self.kind, self.group = kind, group
        self._entries: dict[str, T | str] = dict(builtin)
        self._has_entry_points = False

    def register(self, name: str, entry: T | str) -> None:
        """Add an entry.

        Args:
            name: What users write in settings.
            entry: The object, or a reference `module:attribute` that is imported when it is requested.

        Raises:
            UserError: if the name is taken.
        """
        self._load_entry_points()
        self._add(name, entry)

    def unregister(self, name: str) -> None:
        """Remove an entry that was added at run time."""
        del self._entries[name]

    def names(self) -> list[str]:
        """Return all names: DreamGen's own first, then those of other packages."""
        self._load_entry_points()
        return list(self._entries)

    def get(self, name: str) -> T:
        """Return an entry, importing its module at the first call.

        Raises:
            UserError: if there is no such entry, or its module cannot be imported.
        """
        self._load_entry_points()
        if name not in self._entries:
            nearest = closest_match(name, self._entries)
            raise UserError(
                f"unknown {self.kind}: {name}",
                allowed=", ".join(self._entries) or "none: no installed package registers one",
                next_step=f"did you mean {nearest}?" if nearest else None,
            )
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._entries[name] = self._import(name, entry)
        return entry

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield each name with its entry; this imports all of them."""
        for name in self.names():
            yield name, self.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def _add(self, name: str, entry: T | str) -> None:
        if name in self._entries:
            raise UserError(
                f"two extensions register the {self.kind} {name}", next_step="rename one, or uninstall its package"
            )
        self._entries[name] = entry

    def _load_entry_points(self) -> None:
        if not self._has_entry_points:
            self._has_entry_points = True
            for point in entry_points(group=self.group):
                self._add(point.name, point.value)

    def _import(self, name: str, reference: str) -> T:
        module, _, attribute = reference.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"the {self.kind} {name} cannot be imported from {reference}",
                actual=f"{type(error).__name__}: {error}",
                next_step="reinstall or uninstall the package that registers it",
            ) from error
