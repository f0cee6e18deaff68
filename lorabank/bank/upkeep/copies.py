"""The copies of the database in ``backups/``: numbered, so that the one made last is the last, whatever a clock says.

A name is a number and the copy's schema, ``20300102T030405000000-0003.db``. The number is the time, or one more than
that of the newest copy when the clock stands still, was ahead once, or is behind now.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lorabank.bank.locks import folder_lock
from lorabank.bank.objects.layout import Layout

KEPT_COPIES = 3

_NAME = r"(\d{8})T(\d{12,})-\w{1,40}\.db"


def copies(layout: Layout) -> list[Path]:
    """The copies that are there, in the order in which they were made; other files in the folder are the user's."""
    found = (path for path in layout.backups.glob("*.db") if path.is_file() and not path.is_symlink())
    return sorted(filter(_number, found), key=lambda path: (_number(path), path.name))


@contextmanager
def next_copy(layout: Layout, revision: str | None) -> Iterator[Path]:
    """A path for a new copy, after all others; nobody else makes one meanwhile."""
    with folder_lock(layout.backups):
        last = max(map(_number, layout.backups.iterdir()), default=0)
        digits = f"{max(int(datetime.now(UTC).strftime('%Y%m%d%H%M%S%f')), last + 1):020d}"
        schema = revision if re.fullmatch(r"\w{1,40}", revision or "", re.ASCII) else "unknown"
        yield layout.backups / f"{digits[:8]}T{digits[8:]}-{schema}.db"


def rotate(layout: Layout, *, keep: list[Path]) -> None:
    """Delete all but the newest copies, and those to keep, however old they are."""
    for old in copies(layout)[:-KEPT_COPIES]:
        if not any(path.exists() and old.samefile(path) for path in keep):
            old.unlink(missing_ok=True)


def _number(path: Path) -> int:
    """The number in a copy's name, 0 for any other name."""
    found = re.fullmatch(_NAME, path.name, re.ASCII)
    return int("".join(found.groups())) if found else 0
