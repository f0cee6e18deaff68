"""A composition mode."""

from __future__ import annotations

from lorabank.compose.routed import Routed


class Soft(Routed):
    """A routed composition under a name of its own."""
