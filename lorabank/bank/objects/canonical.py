"""JSON whose text depends on the value alone, so that a digest of it does too."""

from __future__ import annotations

import json
from typing import Any

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


def _plain(value: Any) -> Any:
    """NumPy scalars as Python numbers."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a plain value")


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
