"""A table whose columns may be read under other names (``--map old=new``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from lorabank.core.errors import ConfigError, DataError
from lorabank.data.bad_rows import UNCHANGED
from lorabank.data.formats.base import Reader, Table, missing_column
from lorabank.data.formats.readers import AS_IT_IS, Reading, open_reader


@dataclass(frozen=True)
class Sheet:
    """A file, and what its columns are called here.

    Attributes:
        source: The file's name as it was given.
        reader: Reads it.
        origin: For each renamed column: its new name to the one in the file.
        skip_bad: Whether its bad rows are left out.
        adopted: Those of ``origin`` that differ in capitals and blanks alone, which nobody named.
    """

    source: str
    reader: Reader
    origin: Mapping[str, str]
    skip_bad: bool = False
    adopted: Mapping[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found out about the file that its user should know."""
        read_as = self.reader.read_as
        notes = [f"{self.source!r} is read as {read_as}"] if read_as else []
        notes += [f"{self.source!r}: the column {old!r} is read as {new!r}" for new, old in self.adopted.items()]
        return tuple(notes)

    def adopting(self, columns: Iterable[str]) -> Sheet:
        """The same sheet, a column under one of these names where it alone has it but for capitals and blanks.

        Args:
            columns: Names to look for; one that is there is left alone.
        """
        present = self.columns
        wanted = [column for column in dict.fromkeys(columns) if column not in present]
        free = [column for column in present if column not in self.origin]
        found = {new: old for new in wanted if (old := same_name(new, free)) is not None}
        if not found:
            return self
        return replace(self, origin={**self.origin, **found}, adopted={**self.adopted, **found})

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns, under their new names where they have one."""
        return self.renamed(self.reader.columns())

    def renamed(self, columns: Sequence[str]) -> tuple[str, ...]:
        """What columns of the file are called here."""
        new_names = {old: new for new, old in self.origin.items()}
        return tuple(new_names.get(column, column) for column in columns)

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """At least one row.

        Args:
            columns: New names of the columns to read.
            optional: New names of columns that may be absent; one that was renamed away is left out.

        Returns:
            The cells; ``Table.columns`` has the names of the file. Bad rows may be all there are.

        Raises:
            DataError: There is no row, a column is missing, or the file is broken; names the line.
        """
        hidden = set(self.origin.values()) - set(self.origin)
        for column in hidden.intersection(columns):
            raise missing_column(self.source, column, self.columns)
        there = [column for column in optional if column not in hidden]
        table = self.reader.read(self._in_file(columns), self._in_file(there))
        if not table.rows and not table.bad.count:
            raise DataError(f"{self.source!r} has no rows", unchanged=UNCHANGED, hint="name a file that has rows")
        return table

    def _in_file(self, columns: Sequence[str]) -> tuple[str, ...]:
        return tuple(self.origin.get(column, column) for column in columns)


def same_name(name: str, present: Sequence[str]) -> str | None:
    """The one column that has a name but for capitals and the blanks around it, None where none or several have."""
    alike = [column for column in present if column.strip().casefold() == name.strip().casefold()]
    return alike[0] if len(alike) == 1 else None


def open_sheet(source: str | Path, renames: Sequence[str] = (), reading: Reading = AS_IT_IS) -> Sheet:
    """Open a table file or a data set of the hub.

    Args:
        source: A file, or ``hf:OWNER/NAME[/CONFIG][:SPLIT]``.
        renames: ``old=new`` for each column that is read under another name.
        reading: What the user says about reading it.

    Raises:
        NotFoundError: There is no such file.
        ConfigError: A renaming is not of this form, or two are about one column.
        DataError: The file is empty or of another kind, a renamed column is not there, or its new name is taken.
    """
    reader = open_reader(source, reading)
    origin = _origin(renames)
    present = reader.columns() if origin else ()
    for new, old in origin.items():
        there = old if old in present else same_name(old, present)
        if there is None:
            raise missing_column(source, old, present, hint="name a column of the file: --map COLUMN=NEW")
        origin[new] = there
    for new, old in origin.items():
        if new in present and new not in origin.values():
            raise DataError(
                f"{str(source)!r} has a column {new!r} already, so {old!r} cannot be read under this name",
                unchanged=UNCHANGED,
                hint=f"give that column another name too: --map {new}=other_{new}",
            )
    return Sheet(str(source), reader, origin, reading.skip_bad)


def _origin(renames: Sequence[str]) -> dict[str, str]:
    """New name to old name."""
    pairs = []
    for rename in renames:
        old, _, new = (part.strip() for part in rename.partition("="))
        if not old or not new:
            raise ConfigError(
                f"--map must have the form old=new; got {rename!r}",
                unchanged=UNCHANGED,
                hint="write --map old=new, once for each column",
            )
        pairs.append((old, new))
    for which, names in (("renamed", [old for old, _ in pairs]), ("given as a new name", [new for _, new in pairs])):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"--map: the column {twice!r} is {which} twice", unchanged=UNCHANGED)
    return {new: old for old, new in pairs}
