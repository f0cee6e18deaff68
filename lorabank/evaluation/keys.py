"""The keys of cells: what goes into a score, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lorabank.bank.objects.canonical import canonical

if TYPE_CHECKING:
    from hashlib import _Hash

KEY_FORMAT = 2


class CellKeys:
    """SHA-256 of the canonical JSON ``[format, base, identity, data, settings]`` of each cell.

    The identity of a state grows with the tasks, and the cells of a stage have it in common: a part is hashed once,
    so that a key costs the same in a matrix of any size.

    Args:
        base: Fingerprint of the base model.
        settings: What else decides all scores.
    """

    def __init__(self, base: str, settings: Mapping[str, Any]) -> None:
        self._start = hashlib.sha256(f"[{KEY_FORMAT},{canonical(base)},[".encode())
        self._end = canonical(dict(settings))
        self._after = lru_cache(maxsize=64)(self._hash)

    def key(self, identity: tuple[str, ...], data: str) -> str:
        """The key of a cell.

        Args:
            identity: The entries of what decides the answers as JSON texts, one or several in each part; parts that
                cells have in common come first, and are the same strings.
            data: Digest of the evaluation rows.
        """
        whole = self._after(identity).copy()
        whole.update(f"],{canonical(data)},{self._end}]".encode())
        return whole.hexdigest()

    def _hash(self, parts: tuple[str, ...]) -> _Hash:
        """The hash up to the end of some parts; a copy of it is continued."""
        begun = self._after(parts[:-1]).copy() if parts[1:] else self._start.copy()
        begun.update(f"{',' if parts[1:] else ''}{parts[-1]}".encode())
        return begun
