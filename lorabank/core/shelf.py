"""What a shelf is: a table of named parts, which are imported when they are needed.

A `Shelf` maps names to ``"module:attribute"`` strings, so that ``--help``, completion and error messages list the
names without importing torch. Other packages add to a shelf by an entry point in its group, ``lorabank.strategies``
for `STRATEGIES`; an entry of lorabank itself goes before an installed one of the same name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lorabank.core.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import SelectableGroups


def resolve_name(path: str) -> Any:
    """``"module:attribute"``, imported; `pkgutil` does this too, and importing it costs more."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


class Shelf:
    """A table of named parts. It is a collection of their names, those of installed packages last.

    Args:
        kind: What an entry is, in the singular, for messages.
        plural: The last part of the group of entry points that adds to the shelf.
        table: Name to ``"module:attribute"``.
        refused: Names of methods that are known and not offered, each with the reason in a sentence.
        given: How users give a setting of an entry.
        chosen: How users choose an entry; empty where that needs no words.
        instead: Why none of its names is on the shelf beside it.

    Attributes:
        beside: A shelf whose names a user may look for on this one.
    """

    def __init__(
        self,
        kind: str,
        plural: str,
        table: dict[str, str],
        refused: dict[str, str] | None = None,
        given: str = "--set {key}={value}",
        chosen: str = "",
        instead: str = "",
    ) -> None:
        self.kind = kind
        self.plural = plural
        self.group = f"lorabank.{plural}"
        self.table = table
        self.refused = refused or {}
        self.given = given
        self.chosen = chosen
        self.instead = instead
        self.beside: Shelf | None = None

    def __iter__(self) -> Iterator[str]:
        added = _added(tuple(sys.path), self.group)
        return iter([*self.table, *(name for name in added if name not in self.table)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self.table or name in list(iter(self))

    def load(self, name: str) -> Any:
        """Import the entry of this name.

        Raises:
            ConfigError: There is no such entry; the nearest one is proposed.
        """
        self.check(name)
        if name in self.table:
            return resolve_name(self.table[name])
        return _installed(tuple(sys.path)).select(group=self.group)[name].load()

    def items(self) -> Iterator[tuple[str, Any]]:
        """Every name with its entry, imported."""
        return ((name, self.load(name)) for name in self)

    def check(self, name: str) -> None:
        """Refuse a name that is not on the shelf, without importing anything.

        Raises:
            ConfigError: There is no such entry; the nearest one is proposed.
        """
        if name not in self:
            known = ", ".join(self)
            raise ConfigError(
                self.unknown(name),
                hint=f"choose one of: {known}" if known else f"install a package with entry points {self.group}",
                unchanged="nothing was changed",
            )

    def unknown(self, name: str) -> str:
        """The message about a name that is not on the shelf, in one or two sentences."""
        from lorabank.core.settings import nearest  # `lorabank list` needs no dataclass

        if reason := self.reason(name):
            return f"there is no {self.kind} {name[:80]!r}: {reason}"
        return f"there is no {self.kind} {name[:80]!r}{nearest(name, list(self))}"

    def reason(self, name: str) -> str | None:
        """Why a method is not offered, if it is the nearest one to a name that is not on the shelf; None otherwise."""
        if self.beside is not None and name in self.beside:
            return self.beside.instead
        from difflib import get_close_matches

        meant = get_close_matches(name.lower().replace("_", "-"), [*self.refused, *self], n=1, cutoff=0.8)
        return self.refused.get(meant[0]) if meant else None


class Shelves:
    """The names of several shelves, one of which a setting may be.

    Args:
        shelves: Those of one kind.
    """

    def __init__(self, *shelves: Shelf) -> None:
        self._shelves = shelves

    def __iter__(self) -> Iterator[str]:
        return (name for shelf in self._shelves for name in shelf)

    def __contains__(self, name: object) -> bool:
        return any(name in shelf for shelf in self._shelves)

    def of(self, name: str) -> Shelf:
        """The shelf that has a name; the first one for a name that none has."""
        return next((shelf for shelf in self._shelves if name in shelf), self._shelves[0])

    def load(self, name: str) -> Any:
        """Import the entry of this name; see `Shelf.load`."""
        return self.of(name).load(name)

    def check(self, name: str) -> None:
        """Refuse a name that is on none of them; see `Shelf.check`."""
        if name not in self:
            known = ", ".join(self)
            raise ConfigError(self.unknown(name), hint=f"choose one of: {known}", unchanged="nothing was changed")

    def unknown(self, name: str) -> str:
        """See `Shelf.unknown`; a name without what stands before its colon is proposed in full."""
        own = next((known for known in self if known.partition(":")[2] == name.lower()), None)
        if own is not None:
            return f"there is no {self._shelves[0].kind} {name[:80]!r}. Did you mean {own!r}?"
        return self._shelves[0].unknown(name)

    def reason(self, name: str) -> str | None:
        """See `Shelf.reason`."""
        return self._shelves[0].reason(name)


@lru_cache(maxsize=64)
def _added(path: tuple[str, ...], group: str) -> tuple[str, ...]:
    """The names in a group of entry points, sorted; selecting them reads every entry point again."""
    return tuple(sorted(_installed(path).select(group=group).names))


@lru_cache(maxsize=1)
def _installed(path: tuple[str, ...]) -> SelectableGroups:
    """The entry points of every package on the import path; reading them costs as much for one group as for all."""
    from importlib.metadata import entry_points

    return entry_points()
