"""Table files: one reader for each suffix, and one for the hub.

A reader is a class in a file of its own, on the shelf ``FORMATS``. It answers for the syntax of its format; the
meaning of the cells (what a text or a label may be) is checked once for all formats, by the forms.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from lorabank.core.errors import ConfigError, DataError, NotFoundError
from lorabank.core.methods import with_settings
from lorabank.core.shelves import FORMATS
from lorabank.data.bad_rows import UNCHANGED
from lorabank.data.formats.base import Reader
from lorabank.data.formats.hub import HubDataset
from lorabank.data.formats.text_file import AS_IT_IS, PACKED, Reading

_SHEETS = (".xls", ".xlsm", ".xlsb", ".ods", ".numbers")


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
        with_settings([], reading.set, among=(FORMATS,), besides=reading.besides)
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
        raise NotFoundError(f"no such file: {str(source)!r}", unchanged=UNCHANGED, hint=hint)
    # A pipe or a device would block for ever, so only regular files are opened.
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "not a regular file"
        raise DataError(f"{str(source)!r} is {kind}; a data file is needed", unchanged=UNCHANGED)
    reader = _format(file, reading)
    if file.stat().st_size == 0:
        raise DataError(f"{str(source)!r} is empty", unchanged=UNCHANGED)
    opened: Reader = reader(file, reading)
    return opened


def _format(file: Path, reading: Reading) -> Any:
    """What reads files of this name: a class, or where it has settings an object with their values."""
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    suffix = "".join(suffixes[-1:])
    if suffix == PACKED:
        suffix = suffixes[0]
        text = [f"{name}{PACKED}" for name, entry in FORMATS.items() if getattr(entry, "packed", False)]
        if f"{suffix}{PACKED}" not in text:
            raise DataError(
                f"{str(file)!r}: of packed files those of text are read: {', '.join(text)}",
                unchanged=UNCHANGED,
                hint="unpack it: gunzip",
            )
    try:
        entry = FORMATS.load(suffix)
    except ConfigError as error:
        hint = f"save it as .xlsx or .csv; {error.hint}" if suffix in _SHEETS else error.hint
        raise DataError(f"{str(file)!r}: {error.message}", unchanged=UNCHANGED, hint=hint) from error
    chosen = [(FORMATS, suffix)] if is_dataclass(entry) else []
    made = with_settings(chosen, reading.set, among=(FORMATS,), besides=reading.besides)
    return made[0] if made else entry
