"""The shelves of named parts, and what other installed packages add to them."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import pytest

from lorabank.core import shelves
from lorabank.core.config import ComposeConfig, EvalConfig, InitConfig, TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.methods import methods
from lorabank.core.shelf import Shelf
from lorabank.core.shelves import PENALTIES, STRATEGIES, VARIANTS

SHELVES = [shelf for shelf in vars(shelves).values() if isinstance(shelf, Shelf)]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package, with one entry point called ``ours`` in each group that the documentation names."""
    folder = tmp_path / "another-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "".join(f"[{shelf.group}]\nours = fractions:Fraction\n" for shelf in SHELVES)
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("shelf", SHELVES, ids=lambda shelf: shelf.plural)
def test_other_packages_add_by_entry_points(shelf: Shelf) -> None:
    assert list(shelf) == [*shelf.table, "ours"]
    assert "ours" in shelf
    assert len(shelf) == len(shelf.table) + 1
    assert shelf.load("ours") is Fraction


@pytest.mark.parametrize("shelf", SHELVES, ids=lambda shelf: shelf.plural)
def test_every_entry_can_be_imported(shelf: Shelf) -> None:
    assert [name for name, entry in shelf.items() if entry is None] == []


@pytest.mark.parametrize("config", [InitConfig, TrainConfig, ComposeConfig, EvalConfig], ids=lambda one: one.__name__)
def test_a_shelf_says_which_option_chooses_its_entries(config: type) -> None:
    commands = {InitConfig: "init", TrainConfig: "add-task", ComposeConfig: "compose", EvalConfig: "eval"}
    chosen = {field.name: field.metadata["among"] for field in fields(config) if field.metadata["among"] is not None}
    assert chosen
    for name, shelf in chosen.items():
        if isinstance(shelf, Shelf) and name != "head_from":  # a router is chosen by compose
            command, words = shelf.chosen.split(" ", 1)
            assert command == commands[config]
            option = name.removesuffix("s") if name in ("savings",) else name
            assert words.endswith(f"--{option.replace('_', '-')} {{name}}")


def test_every_other_shelf_needs_no_words_or_has_them() -> None:
    assert {shelf.plural for shelf in SHELVES if not shelf.chosen} == {"sites", "formats", "metrics"}


@pytest.mark.usefixtures("installed")
def test_the_table_goes_before_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PENALTIES.table, "ours", "decimal:Decimal")
    assert PENALTIES.load("ours").__name__ == "Decimal"


@pytest.mark.usefixtures("installed")
def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no strategy 'olara'\. Did you mean 'olora'\?") as error:
        STRATEGIES.load("olara")
    assert error.value.hint == f"choose one of: {', '.join(STRATEGIES)}"


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("loraprune", "makes another base model"),
        ("LoRAPrune", "makes another base model"),
        ("lorapprune", "makes another base model"),
        ("LoRETTA_adp", "no delta weight as loretta is"),
        ("prompt_tuning", "trains inputs of the model"),
        ("activated-lora", "depends on the place of a token"),
    ],
)
def test_a_method_that_is_known_and_not_offered_is_answered_with_the_reason(typed: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as error:
        VARIANTS.load(typed)
    assert error.value.message.startswith(f"there is no variant {typed!r}: ")
    with pytest.raises(ConfigError, match=rf"there is no method '{typed}': .*{why}"):
        methods(typed)


@pytest.mark.parametrize("typed", ["lorett", "melor", "lora-fb", "prune", "tuning"])
def test_a_slip_of_an_offered_name_is_none_of_those(typed: str) -> None:
    assert VARIANTS.reason(typed) is None
    assert "there is no variant" in VARIANTS.unknown(typed)


def test_what_is_not_offered_is_on_no_shelf() -> None:
    for shelf in SHELVES:
        assert not set(shelf.refused) & {name for other in SHELVES for name in other}


def test_an_empty_shelf_says_where_entries_come_from() -> None:
    with pytest.raises(ConfigError, match=r"^there is no thing 'x'$") as error:
        Shelf("thing", "things", {}).load("x")
    assert error.value.hint == "install a package with entry points lorabank.things"


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


@pytest.mark.parametrize("shelf", SHELVES, ids=lambda shelf: shelf.plural)
def test_a_shelf_holds_something_that_a_command_can_choose(shelf: Shelf) -> None:
    assert shelf.table
