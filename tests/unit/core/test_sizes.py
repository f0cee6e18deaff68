"""Sizes with and without units."""

from __future__ import annotations

import pytest

from lorabank.core.errors import ConfigError
from lorabank.core.machine.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65536),
        ("12B", 12),
        ("2 KB", 2000),
        ("2KiB", 2048),
        ("1.5MiB", 1572864),
        ("512mib", 536870912),
        ("3GB", 3_000_000_000),
        ("1TiB", 1099511627776),
    ],
)
def test_units(text: str, size: int) -> None:
    assert parse_bytes(text, option="--max-resident") == size


@pytest.mark.parametrize("text", ["", "0", "0.2B", "-1", "12 parsecs", "MiB", "1e9", "1,5GB"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-resident"):
        parse_bytes(text, option="--max-resident")
