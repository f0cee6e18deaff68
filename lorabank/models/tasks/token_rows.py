"""Token ids of many rows in one array: 4 bytes a token and 8 a row, where lists take tens of bytes a token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

_BLOCK = 512
"""Texts that are tokenised at once: what a tokenizer gives is lists, and masks that are not kept."""


class TokenRows(Sequence[list[int]]):
    """Rows of token ids; each is a list of its own when it is asked for.

    Args:
        rows: Token ids, below 2^31.
    """

    def __init__(self, rows: Iterable[Sequence[int]] = ()) -> None:
        self._tokens = array("i")
        self._ends = array("q", [0])
        for row in rows:
            self.append(row)

    def append(self, row: Sequence[int]) -> None:
        """Put a row behind the others."""
        self._tokens.extend(row)
        self._ends.append(len(self._tokens))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> TokenRows: ...
    def __getitem__(self, index: int | slice) -> list[int] | TokenRows:
        if isinstance(index, slice):
            return TokenRows(self[i] for i in range(len(self))[index])
        row = range(len(self))[index]
        return self._tokens[self._ends[row] : self._ends[row + 1]].tolist()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [self._ends[row + 1] - self._ends[row] for row in range(len(self))]


class MadeRows(Sequence[dict[str, Any]], ABC):
    """Rows of a table, each a mapping that is made when it is asked for."""

    @abstractmethod
    def row(self, index: int) -> dict[str, Any]:
        """The row at a place, counted from 0."""

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Sequence[dict[str, Any]]:
        places = range(len(self))[index]
        return [self.row(place) for place in places] if isinstance(places, range) else self.row(places)


class Columns(MadeRows):
    """Rows of some columns.

    Args:
        columns: Name to the values of all rows.
    """

    def __init__(self, **columns: Sequence[Any]) -> None:
        self._columns = columns
        (self._rows,) = {len(column) for column in columns.values()}

    def __len__(self) -> int:
        return self._rows

    def row(self, index: int) -> dict[str, Any]:
        """A value of each column."""
        return {name: column[index] for name, column in self._columns.items()}


def blocks(count: int) -> Iterator[slice]:
    """Where some texts are parted to be tokenised."""
    return (slice(first, first + _BLOCK) for first in range(0, count, _BLOCK))
