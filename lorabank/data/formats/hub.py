"""Data sets of the Hugging Face hub: ``hf:OWNER/NAME[/CONFIG][:SPLIT]``, through the optional package ``datasets``.

What that package lets through (a mistyped key is a column of None, a number passes in a column of texts) is found by
the same checks of the cells as in a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import repeat
from typing import Any

from lorabank.core.errors import ConfigError, DataError, LorabankError, MissingExtraError, NotFoundError
from lorabank.core.machine.packages import install
from lorabank.data.bad_rows import UNCHANGED
from lorabank.data.formats.base import Table, check_row_limit, missing_column

PREFIX = "hf:"
DEFAULT_SPLIT = "train"

_NAME = re.compile(r"hf:(?P<path>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.+-]+))?(?::(?P<split>\S+))?")


class HubDataset:
    """One split of a data set, loaded when its columns are first asked for.

    A column of class labels gives their names, not their numbers.

    Args:
        name: ``hf:OWNER/NAME[/CONFIG][:SPLIT]``; the split is ``train`` by default and may be a slice
            (``train[:1000]``).

    Raises:
        ConfigError: The name is not of this form.
        MissingExtraError: The package ``datasets`` is not installed.
    """

    read_as = ""

    def __init__(self, name: str) -> None:
        match = _NAME.fullmatch(name)
        if match is None:
            raise ConfigError(
                f"{name!r} does not name a data set of the hub",
                unchanged=UNCHANGED,
                hint="write hf:OWNER/NAME, hf:OWNER/NAME/CONFIG or hf:OWNER/NAME:SPLIT",
            )
        self.name = name
        self._path, self._config = match["path"], match["config"]
        self._split = match["split"] or DEFAULT_SPLIT
        self._loaded: Any = None
        try:
            self._load_dataset = import_module("datasets").load_dataset
        except (ImportError, AttributeError) as error:  # a folder called datasets is a module too
            raise MissingExtraError(
                f"{name!r}: reading it needs the package datasets, which is not installed",
                unchanged=UNCHANGED,
                hint=install("hub"),
            ) from error

    def columns(self) -> tuple[str, ...]:
        """The columns of the split; the data set is downloaded for them if it is not cached.

        Raises:
            NotFoundError: There is no such data set, or the hub cannot be reached.
            DataError: There is no such configuration or split, or it cannot be read.
        """
        return tuple(self._data().column_names)

    def read(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Table:
        """The cells of these columns, each with its row number from 1; None for an optional one that is not there.

        Raises:
            NotFoundError: As ``columns``.
            DataError: As ``columns``, or a column is missing.
        """
        data = self._data()
        present = self.columns()
        for column in columns:
            if column not in present:
                raise missing_column(self.name, column, present)
        check_row_limit(self.name, len(data))
        table = Table(self.name, (*columns, *optional), unit="row")
        cells = [self._cells(data, column) if column in present else repeat(None) for column in table.columns]
        for number, row in enumerate(zip(*cells, range(len(data)), strict=False), start=1):
            table.add(number, row[:-1])
        return table

    def _data(self) -> Any:
        if self._loaded is None:
            try:
                self._loaded = self._load_dataset(self._path, self._config, split=self._split)
            except Exception as error:  # whatever that package raises here is about this data set
                raise self._failure(error) from error
        return self._loaded

    def _failure(self, error: Exception) -> LorabankError:
        # The useful part of "An error occurred while generating the dataset" is in its cause.
        reason = next(
            (line for line in str(error.__cause__ or error).splitlines() if line.strip()), type(error).__name__
        )
        message = f"{self.name!r} cannot be loaded: {reason.strip().rstrip('.')}"
        if isinstance(error, OSError):
            return NotFoundError(
                message, unchanged=UNCHANGED, hint="check the name and the network; hf auth login if it is gated"
            )
        return DataError(
            message, unchanged=UNCHANGED, hint="hf:OWNER/NAME/CONFIG:SPLIT names a configuration and a split"
        )

    def _cells(self, data: Any, column: str) -> Iterator[object]:
        """The cells of a column, one after another: a part of it lies in memory at a time."""
        names = getattr(data.features[column], "names", None)
        # Class labels are stored as numbers; -1 stands for a row without a label.
        known = {-1: None, **dict(enumerate(names))} if names else {}
        for cell in data[column]:
            yield known.get(cell, cell) if names else cell
