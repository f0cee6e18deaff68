"""Sizes as people write them: ``512MiB``, ``2 GB``, ``65536``."""

from __future__ import annotations

import re

from lorabank.core.errors import ConfigError

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{kind}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for kind, base in (("B", 1000), ("iB", 1024))
}
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([A-Za-z]*)")


def parse_bytes(text: str, *, option: str) -> int:
    """A number of bytes with or without a unit: B, KB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (of 1024).

    Args:
        text: What was given.
        option: Named in the message.

    Raises:
        ConfigError: It is not a size above 0.
    """
    found = _SIZE.fullmatch(text.strip())
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    size = int(float(found[1]) * units[found[2].lower()]) if found and found[2].lower() in units else 0
    if size < 1:
        raise ConfigError(f"{option} {text!r} is not a size", hint=f"{option} 512MiB", unchanged="nothing was changed")
    return size
