"""Rows that cannot be used: all of a file are found, named together, or with ``--skip-bad`` left out and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorabank.core.commands import Command
from lorabank.core.errors import DataError, leaving

UNCHANGED = "nothing was changed"
of_rows = leaving(UNCHANGED, hint="correct the file, or name another one", kinds=(DataError,))
"""What errors about a file of rows say where they do not say it themselves."""

NAMED = 10
"""Bad rows that an error names."""

LISTED = 20
"""Bad rows that a result and a record list."""

_PROBLEM = 100
_SKIP = "--skip-bad leaves such rows out and lists them"


class BadRow(DataError):
    """What is wrong at one place of a file: the rest of the file can still be read.

    Args:
        source: The file's name as it was given.
        where: The place, for example ``"line 3, column 'label'"``.
        problem: What is wrong there.
        hint: What to do about it.
        commands: What to type about it.
    """

    def __init__(
        self,
        source: str | Path,
        where: str,
        problem: str,
        *,
        hint: str | None = None,
        commands: Sequence[Command] = (),
    ) -> None:
        message = f"{str(source)!r}, {where}: {problem}"
        super().__init__(message, unchanged=UNCHANGED, hint=hint, commands=commands)
        self.where = where
        self.problem = problem

    @property
    def brief(self) -> str:
        """Place and problem, for a list of them under the file's name."""
        problem = self.problem if len(self.problem) <= _PROBLEM else f"{self.problem[:_PROBLEM]}..."
        return f"{self.where}: {problem}"


@dataclass(frozen=True)
class LeftOut:
    """The bad rows that ``--skip-bad`` left out of a file.

    Attributes:
        source: The file's name as it was given.
        rows: How many.
        first: Place and problem of the first of them, as ``"line 3, column 'label': the label is empty"``.
    """

    source: str
    rows: int
    first: tuple[str, ...]

    def __str__(self) -> str:
        more = f"; and {self.rows - len(self.first)} more" if self.rows > len(self.first) else ""
        count = "1 bad row is" if self.rows == 1 else f"{self.rows:,} bad rows are"
        return f"{self.source!r}: {count} left out: {'; '.join(self.first)}{more}"


@dataclass
class BadRows:
    """The bad rows of a file.

    Attributes:
        rows: The line of each, and what is wrong with it; a reader adds its own, then a form.
    """

    rows: list[tuple[int, BadRow]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.rows)

    def add(self, number: int, error: BadRow) -> None:
        """Take a row, ``number`` being its line."""
        self.rows.append((number, error))

    def settle(self, source: str, good: int, *, skip: bool) -> LeftOut | None:
        """What is left out, None where nothing is.

        Args:
            source: The file's name as it was given.
            good: Rows that can be used.
            skip: Whether bad rows are left out.

        Raises:
            DataError: There are bad rows, and they are not to be left out or are more than half of all.
        """
        if not self.count:
            return None
        if not skip:
            raise self.error(source)
        if self.count > good:
            raise DataError(
                f"{source!r}: {self.count:,} of {self.count + good:,} rows are bad, more than half of the file: "
                + self._named(NAMED),
                unchanged=UNCHANGED,
                hint="the file does not hold such rows: look at the first of them, or choose other columns",
            )
        return LeftOut(source, self.count, tuple(error.brief for _, error in self._sorted()[:LISTED]))

    def error(self, source: str, *, hint: str = f"fix the file, or {_SKIP}") -> DataError:
        """The error that names them.

        Args:
            source: The file's name as it was given.
            hint: What to do where no row says it.
        """
        errors = [error for _, error in self._sorted()]
        hint = next((error.hint for error in errors if error.hint), hint)
        commands = next((error.commands for error in errors if error.commands), ())
        many = f"{source!r}: {self.count:,} bad rows: {self._named(NAMED)}"
        message = errors[0].message if self.count == 1 else many
        return DataError(message, unchanged=UNCHANGED, hint=hint, commands=commands)

    def _named(self, most: int) -> str:
        errors: Sequence[BadRow] = [error for _, error in self._sorted()[:most]]
        more = f"; and {self.count - len(errors):,} more" if self.count > len(errors) else ""
        return "; ".join(error.brief for error in errors) + more

    def _sorted(self) -> list[tuple[int, BadRow]]:
        return sorted(self.rows, key=lambda found: found[0])
