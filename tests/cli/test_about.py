"""What the command line says of itself: help where no command is named, one JSON document where it is asked for."""

from __future__ import annotations

from typing import Any

import click
import pytest
from lorabank_cli.docs import commands

import lorabank

COMMANDS = [path.split()[1:] for path, _ in commands()]
GROUPS = [path.split()[1:] for path, command in commands() if isinstance(command, click.Group)]


def test_the_groups_are_known() -> None:
    assert GROUPS == [[], ["sequence"], ["db"]]


@pytest.mark.parametrize("words", GROUPS, ids=" ".join)
@pytest.mark.parametrize("options", [[], ["-b", "elsewhere"], ["-q"], ["--debug"]], ids=" ".join)
def test_a_group_alone_is_its_help_on_standard_output(run: Any, words: list[str], options: list[str]) -> None:
    shown = run(*words, *options)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == run(*words, "--help").out
    assert shown.out.startswith(f"Usage: {' '.join(['lorabank', *words])} [OPTIONS]")
    assert "\nCommands:\n" in shown.out


@pytest.mark.parametrize("words", GROUPS, ids=" ".join)
def test_a_group_alone_as_json(run: Any, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    shown = run(*words, "--json")
    document = shown.document
    assert (shown.code, shown.err) == (0, "")
    assert document["command"] == " ".join(["lorabank", *words])
    assert f"{document['help']}\n" == run(*words).out
    for name in document["commands"]:
        assert run(*words, name, "--help").code == 0
    assert run("--json", *words).out == shown.out
    monkeypatch.setenv("LORABANK_JSON", "1")
    assert run(*words).out == shown.out


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_of_every_command_is_one_document_with_json(run: Any, words: list[str]) -> None:
    for options in (["--help", "--json"], ["--json", "-h"]):
        shown = run(*words, *options)
        assert (shown.code, shown.err) == (0, "")
        assert f"{shown.document['help']}\n" == run(*words, "--help").out


def test_version(run: Any) -> None:
    assert run("--version").out == f"lorabank, version {lorabank.__version__}\n"
    for words in (("--version", "--json"), ("--json", "--version")):
        shown = run(*words)
        assert (shown.code, shown.document, shown.err) == (0, {"version": lorabank.__version__}, "")


@pytest.mark.parametrize("words", [["frobnicate"], ["db", "frobnicate"], ["sequence", "frobnicate"], ["db", "-x"]])
def test_a_wrong_word_is_still_a_usage_error(run: Any, words: list[str]) -> None:
    shown = run(*words)
    assert (shown.code, shown.out) == (2, "")
    assert words[-1] in shown.err
