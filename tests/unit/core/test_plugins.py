"""The tables of named parts, and what other installed packages add to them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from lorabank.core import plugins
from lorabank.core.errors import ConfigError

TABLES = {
    "strategies": (plugins.STRATEGIES, "strategy"),
    "penalties": (plugins.PENALTIES, "penalty"),
    "composers": (plugins.COMPOSERS, "composer"),
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package, with one entry point called ``ours`` in each group that the documentation names."""
    folder = tmp_path / "another-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "".join(f"[lorabank.{group}]\nours = fractions:Fraction\n" for group in TABLES)
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("group", TABLES)
def test_other_packages_add_by_entry_points(group: str) -> None:
    table, what = TABLES[group]
    assert plugins.load(table, "ours", what) is Fraction


@pytest.mark.usefixtures("installed")
def test_the_table_goes_before_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins.PENALTIES, "ours", "decimal:Decimal")
    assert plugins.load(plugins.PENALTIES, "ours", "penalty").__name__ == "Decimal"


@pytest.mark.usefixtures("installed")
def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no strategy 'olara'\. Did you mean 'olora'\?") as error:
        plugins.load(plugins.STRATEGIES, "olara", "strategy")
    assert error.value.hint == f"choose one of: {', '.join(plugins.STRATEGIES)}, ours"


@pytest.mark.usefixtures("installed")
def test_the_command_line_offers_them() -> None:
    import click
    from lorabank_cli.options import config_options

    from lorabank.core.config import ComposeConfig, TrainConfig

    options = config_options(TrainConfig, "Task", ["strategy", "penalty"], required=frozenset())
    options += config_options(ComposeConfig, "Composition", ["mode"], required=frozenset())
    for option in options:
        assert isinstance(option.type, click.Choice)
        assert "ours" in option.type.choices
