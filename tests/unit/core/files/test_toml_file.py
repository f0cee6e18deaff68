"""TOML files that somebody else wrote: what is no TOML, though Python takes it or fails in its own way."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorabank.core.errors import ConfigError, NotFoundError
from lorabank.core.files.toml_file import load_toml

MISSING = NotFoundError("no file")


@pytest.mark.parametrize(
    "value",
    [
        "9" * 5000,  # more digits than Python converts
        "9" * 400,  # an integer that is no float
        "0x" + "f" * 5000,  # an integer that Python does not print
        "-9223372036854775809",
        "[1, {a = [9223372036854775808]}]",
        "2026-13-45",
        "25:61:00",
        "[" * 100_000,
        "1\na.b = 2",
        '"\\ud800"',
    ],
    ids=range(10),
)
def test_a_value_that_toml_does_not_have(tmp_path: Path, value: str) -> None:
    file = tmp_path / "x.toml"
    file.write_text(f"[t]\na = {value}\n")
    with pytest.raises(ConfigError, match=r"x\.toml: not TOML: "):
        load_toml(file, missing=MISSING)


def test_the_greatest_integers(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("a = [9223372036854775807, -9223372036854775808]\n")
    assert load_toml(file, missing=MISSING) == {"a": [2**63 - 1, -(2**63)]}


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "file" / "x.toml"):
        with pytest.raises(NotFoundError, match="no file"):
            load_toml(path, missing=MISSING)
