"""Sizes as people write them: ``512MiB``, ``2 GB``, ``65536``."""

from __future__ import annotations

import re

from lorabank.core.errors import ConfigError


def parse_bytes(text: str, *, option: str) -> int:
    """A number of bytes with or without a unit: B, KB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (of 1024).

    Args:
        text: What was given.
        option: Named in the message.

    Raises:
        ConfigError: It is not a size above 0.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    whole = re.fullmatch(rf"{ByteSize.byte_string_pattern}\s*", text)  # pydantic itself takes the 1 of "1,5GB"
    try:
        size = TypeAdapter(ByteSize).validate_python(text) if whole else 0
    except (OverflowError, ValidationError):
        size = 0
    if size < 1:
        raise ConfigError(f"{option} {text!r} is not a size", hint=f"{option} 512MiB", unchanged="nothing was changed")
    return size
