"""Table files: one reader for each suffix, and one for the hub.

A reader is a class in a file of its own, on the shelf ``FORMATS``. It answers for the syntax of its format; the
meaning of the cells (what a text or a label may be) is checked once for all formats, by the forms.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from lorabank.core.errors import ConfigError, DataError, NotFoundError
from lorabank.core.methods import own_settings, with_settings
from lorabank.core.settings import nearest
from lorabank.core.shelf import Shelf
from lorabank.core.shelves import FORMATS
from lorabank.data.bad_rows import UNCHANGED
from lorabank.data.formats.base import Reader
from lorabank.data.formats.hub import HubDataset
from lorabank.data.formats.text_file import PACKED

_SHEETS = (".xls", ".xlsm", ".xlsb", ".ods", ".numbers")


class _Settings(Protocol):
    @property
    def skip_bad(self) -> bool: ...
    @property
    def set(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Reading:
    """What the user says about how a file is to be read.

    Attributes:
        skip_bad: Whether bad rows are left out.
        set: ``KEY=VALUE`` for settings of the file's format.
        besides: Shelves whose methods' settings may stand in ``set`` too.
        others: Files that are read with the same ``set``: what their formats have is not asked of this one's.
    """

    skip_bad: bool = False
    set: tuple[str, ...] = ()
    besides: tuple[Shelf, ...] = ()
    others: tuple[str, ...] = ()

    @staticmethod
    def of(settings: _Settings, besides: tuple[Shelf, ...] = (), others: Iterable[str | None] = ()) -> Reading:
        """What the settings of a command say."""
        return Reading(settings.skip_bad, settings.set, besides, tuple(other for other in others if other))

    def format(self, name: str | None) -> Any:
        """The format of this name with its settings, a class where it has none; None for a data set of the hub.

        Raises:
            ConfigError: There is no such format, or ``set`` does not fit it.
        """
        entry = None if name is None else FORMATS.load(name)
        chosen = [(FORMATS, name)] if name is not None and is_dataclass(entry) else []
        others = {other for file in self.others if (other := format_name(file)) in FORMATS} - {name}
        given = [text for text in self.set if _has(name, text) or not any(_has(other, text) for other in others)]
        made = with_settings(chosen, given, among=(FORMATS,), besides=self.besides)
        return made[0] if made else entry


AS_IT_IS = Reading()


def format_name(file: str | Path) -> str:
    """The suffix of a file's name in small letters, of a packed file the one before."""
    suffixes = [suffix.lower() for suffix in Path(file).suffixes[-2:]]
    return suffixes[0] if len(suffixes) == 2 and suffixes[1] == PACKED else "".join(suffixes[-1:])


def _has(name: str | None, text: str) -> bool:
    """Whether a ``KEY=VALUE`` is a setting of a format."""
    return name is not None and bool(own_settings(FORMATS, name, (text,)))


def open_reader(source: str | Path, reading: Reading = AS_IT_IS) -> Reader:
    """The reader of a table file or of a data set of the hub.

    Args:
        source: A file whose suffix, in small letters, is in ``FORMATS`` (where it can be ``packed``, also with ``.gz``
            behind it), or ``hf:OWNER/NAME[/CONFIG][:SPLIT]``.
        reading: What the user says about reading it.

    Raises:
        NotFoundError: There is no such file.
        DataError: The file is empty or of another kind.
        ConfigError: ``reading`` names no delimiter or no encoding, or it does not go with the kind of file.
        MissingExtraError: The kind of file needs a package that is not installed.
    """
    if str(source).startswith("hf:"):
        reading.format(None)
        return HubDataset(str(source))
    file = Path(source)
    try:
        str(source).encode()
    except UnicodeEncodeError:  # the bank records the name, and would refuse it after the training
        raise DataError(
            f"{str(source)!r}: the name is not UTF-8", unchanged=UNCHANGED, hint="rename the file"
        ) from None
    if not file.exists():
        names_hub = len(file.parts) == 2 and not file.suffix
        hint = f"a data set of the hub is named hf:{source}" if names_hub else "check the path given to --data"
        near = nearest(file.name, _data_files_like(file))
        raise NotFoundError(f"no such file: {str(source)!r}{near}", unchanged=UNCHANGED, hint=hint)
    # A pipe or a device would block for ever, so only regular files are opened.
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "not a regular file"
        raise DataError(f"{str(source)!r} is {kind}; a data file is needed", unchanged=UNCHANGED, hint="name a file")
    reader = _format(file, reading)
    if file.stat().st_size == 0:
        raise DataError(f"{str(source)!r} is empty", unchanged=UNCHANGED, hint="name a file that has rows")
    opened: Reader = reader(file)
    return opened


def _data_files_like(file: Path) -> list[str]:
    """Names of the data files beside a missing one whose stems resemble its own; of a very full folder only some."""
    try:
        with os.scandir(file.parent) as entries:
            names = sorted(entry.name for entry in islice(entries, 1000) if format_name(entry.name) in FORMATS)
    except OSError:  # the search only helps, so it does not replace the error
        return []
    close = difflib.get_close_matches(file.stem, [Path(name).stem for name in names])
    return [name for name in names if Path(name).stem in close]


def _format(file: Path, reading: Reading) -> Any:
    """What reads files of this name: a format with its settings, or a class where it has none."""
    name = format_name(file)
    if file.suffix.lower() == PACKED:
        text = [f"{known}{PACKED}" for known, entry in FORMATS.items() if getattr(entry, "packed", False)]
        if f"{name}{PACKED}" not in text:
            raise DataError(
                f"{str(file)!r}: among compressed files, only those of text are read: {', '.join(text)}",
                unchanged=UNCHANGED,
                hint="unpack it: gunzip",
            )
    try:
        FORMATS.check(name)
    except ConfigError as error:
        hint = f"save it as .xlsx or .csv; {error.hint}" if name in _SHEETS else error.hint
        raise DataError(f"{str(file)!r}: {error.message}", unchanged=UNCHANGED, hint=hint) from error
    return reading.format(name)
