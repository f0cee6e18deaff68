"""Digests of rows: what a bank keeps of the rows that a task was trained on, so that they are known again.

The blob is a heading and then the first eight bytes of each distinct row's SHA-256, in order. Two different rows have
the same with a chance of one in 2**64. A row is its text or prompt (`Rows.keys`), as where training and evaluation
rows are kept apart.
"""

from __future__ import annotations

import hashlib

from lorabank.core.errors import DamagedError
from lorabank.data.rows import Rows

HEADING = b"lorabank rows 1\n"
_SIZE = 8


def row_digests(rows: Rows) -> bytes:
    """The digests of the distinct rows."""
    return HEADING + b"".join(sorted({_digest(key) for key in rows.keys}))


def count_known(rows: Rows, digests: bytes) -> int:
    """How many of the rows are among those of which these are the digests.

    Raises:
        DamagedError: They are not digests of rows.
    """
    if not digests.startswith(HEADING) or (len(digests) - len(HEADING)) % _SIZE:
        raise DamagedError("a blob holds no digests of rows")
    known = {digests[start : start + _SIZE] for start in range(len(HEADING), len(digests), _SIZE)}
    return sum(_digest(key) in known for key in rows.keys)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()[:_SIZE]
