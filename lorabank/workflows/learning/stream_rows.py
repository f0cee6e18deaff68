"""The rows of a stream as they are learnt: one by one, counted, and passed when the stream is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from lorabank.core.config import TrainConfig
from lorabank.core.errors import DataError
from lorabank.data.row_stream import StreamRow, Taken


class StreamRows:
    """The rows of a stream, with how far it was read.

    Args:
        rows: The rows, read when they are asked for.
        config: Says where they come from, for messages.

    Attributes:
        taken: The rows so far.
        found: How many tasks were found among them; the caller counts.
    """

    def __init__(self, rows: Iterator[StreamRow], config: TrainConfig) -> None:
        self.taken, self.found = Taken(), 0
        self._rows, self._config = rows, config

    def __iter__(self) -> Iterator[StreamRow]:
        while self.more():
            row = next(self._rows)
            self.taken.add(row)
            yield row

    def more(self) -> bool:
        """Whether a row follows.

        Raises:
            DataError: It is bad. The tasks that were found before it stay in the bank.
        """
        try:
            row = next(self._rows, None)
        except DataError as error:
            if not self.found:
                raise
            raise DataError(
                error.message,
                hint="mend the line, then give the same command with --resume",
                unchanged=f"the {self.found} tasks found before it are in the bank, what was learnt since is not",
            ) from error
        if row is not None:
            self._rows = chain([row], self._rows)
        return row is not None

    def skip(self, taken: Taken) -> None:
        """Pass the rows that were taken before.

        Raises:
            DataError: These are others.
        """
        rows = iter(self)
        while self.taken.rows < taken.rows and next(rows, None) is not None:
            pass
        if self.taken != taken:
            raise DataError(
                f"{self._config.data!r} does not begin with the {taken.rows:,} rows that the bank's stream took",
                hint="give the same rows again, or leave --resume out to learn all of these",
                unchanged="nothing was changed",
            )
