"""JSON whose text depends on the value alone, so that a digest of it does too."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from lorabank.core.errors import DataError


def canonical(value: Any) -> str:
    """JSON text that depends on the value alone: sorted keys, no spaces, ASCII.

    Raises:
        DataError: The value holds a NaN or an infinity, or something that JSON cannot hold.
    """
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"a value cannot be stored: {error}", unchanged="the bank was not changed") from error


class Encoded(NamedTuple):
    """A value as its canonical text: it was encoded once, for all that it becomes a part of."""

    text: str


def encoded(value: Any) -> str:
    """The canonical text of a value, encoded now or before."""
    return value.text if isinstance(value, Encoded) else canonical(value)


def encoded_list(values: Iterable[Any]) -> Encoded:
    """A list of values, each encoded now or before."""
    return Encoded(f"[{','.join(map(encoded, values))}]")


def _plain(value: Any) -> Any:
    """NumPy scalars as Python numbers."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a plain value")


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
