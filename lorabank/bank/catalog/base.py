"""The port to where a bank's rows lie: the tables that `columns` describes, changed in transactions.

What is in a row, which rows belong together and when one may change is decided above. A catalog keeps the rows of one
bank, refuses what breaks a rule of their description, and may be cut off at any moment. SQLite in the bank's folder is
the first implementation (`lorabank.bank.catalog.sqlite`), and `lorabank.testing.CatalogContract` says what every other
one must keep. Content lies elsewhere: see `lorabank.bank.objects.base`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

Row = Mapping[str, Any]
"""The columns of a row by name: None, a text, a whole number of 64 bits, or a number of double precision."""


AT_ONCE = 500
"""How many values one search may have: more are looked for in parts (`rows_with`)."""


class RowRefused(Exception):
    """A row breaks a rule of its table. What is built on a catalog never asks for that, so this is a bug."""


class View(Protocol):
    """One state of the rows: what other processes commit meanwhile is not in it."""

    def rows(self, table: str, /, **where: Any) -> list[Row]:
        """The rows whose columns have these values, in the order in which they were inserted; without values all.

        A tuple of at most `AT_ONCE` values, none of them NULL, stands for any of them.
        """

    def columns(self, table: str, /, *names: str) -> list[tuple[Any, ...]]:
        """Some columns of every row, in the order in which the rows were inserted."""

    def last(self, table: str, /) -> Row | None:
        """The row that was inserted last; None where there is none."""

    def problems(self, *, full: bool) -> Iterator[tuple[str, str]]:
        """What the catalog itself finds wrong with what it keeps: where, and what, in one line each.

        Args:
            full: Read everything; otherwise what is cheap.
        """


def rows_with(view: View, table: str, column: str, values: Iterable[Any]) -> Iterator[Row]:
    """The rows whose column has one of any number of values, each value once."""
    wanted = tuple(dict.fromkeys(values))
    for first in range(0, len(wanted), AT_ONCE):
        yield from view.rows(table, **{column: wanted[first : first + AT_ONCE]})


class Transaction(View, Protocol):
    """Changes that take effect together, or not at all; the view sees its own."""

    def insert(self, table: str, row: Row, /) -> None:
        """Add a row; a column that it lacks is NULL.

        Raises:
            RowRefused: It breaks a rule of the description: a key, a unique value or a name in use is there already, a
                value is missing or not among the column's words, a reference leads nowhere. Some catalogs say so only
                at the end of the transaction.
        """

    def update(self, table: str, where: Row, /, **columns: Any) -> int:
        """Change columns of the rows that have the values of ``where``; returns how many rows these are.

        Raises:
            RowRefused: As for `insert`.
        """

    def delete(self, table: str, where: Row, /) -> int:
        """Delete the rows that have these values; returns how many they were."""


class Catalog(Protocol):
    """The rows of one bank. It may be used by several threads, and after a fork."""

    def read(self) -> AbstractContextManager[View]:
        """A state of the rows, for the length of a block: reading changes nothing, and waits for nobody's block.

        Raises:
            IncompatibleError: The schema is newer or older than this version's.
            DamagedError: What is there is not the catalog of a bank, or cannot be read.
            StorageError: An input or output error.
        """

    def write(self, *, patience: float | None = None) -> AbstractContextManager[Transaction]:
        """A transaction for the length of a block, alone: nobody else writes until it ends.

        The end of the block commits: what was committed outlives the process and the power. An exception in the block
        rolls back, and so does the end of the process at any moment before.

        Args:
            patience: Seconds to wait for another writer; None for as long as a user would.

        Raises:
            BusyError: Another process was writing all the time.
            IncompatibleError, DamagedError, StorageError: As for `read`.
        """

    def lock(self, *, exclusive: bool, patience: float | None = None) -> AbstractContextManager[None]:
        """Hold the bank's lock for the length of a block; the end of the process lets it go.

        It is held shared by everybody who brings something in, from its first file to the commit of its rows, and
        alone by ``gc`` and by what repairs or replaces rows.

        Args:
            exclusive: Hold it alone.
            patience: As for `write`.

        Raises:
            BusyError: Another process held it all the time.
            OSError: There is nothing that could be held, as on a read-only medium.
        """
