"""A TOML file that somebody else may have written: its values have the ranges that TOML promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorabank.core.errors import ConfigError, NotFoundError


def load_toml(path: str | Path, *, missing: NotFoundError) -> dict[str, Any]:
    """The document of a file.

    TOML's integers have 64 bits. Python reads longer ones, which it then can neither make a float nor print.

    Args:
        path: The file.
        missing: What to raise where there is none.

    Raises:
        NotFoundError: There is no such file.
        ConfigError: It is not TOML.
    """
    import tomllib

    try:
        document = tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
        _check(document)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise missing from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError, and so are those of its numbers
        raise ConfigError(f"{path}: not TOML: {error}", unchanged="nothing was changed") from None
    return document


def _check(value: Any) -> None:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check(item)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("an integer of more than 64 bits")
