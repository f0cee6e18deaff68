"""Moments as the bank stores them."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> str:
    """The time as stored: UTC, ISO 8601, with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
