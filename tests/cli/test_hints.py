"""Hints: every lorabank command that a message proposes is one that the command line takes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from lorabank_cli.main import cli

from lorabank.core import plugins

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "lorabank").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
FILLED = "FILLED"
"""What stands for a value of an f-string."""


def texts(tree: ast.AST) -> Iterator[str]:
    """The string literals of a source file but its docstrings; an f-string with `FILLED` in it."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else FILLED for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docs | inside):
            yield node.value


def proposed(text: str) -> Iterator[list[str]]:
    """The words of each command in a text, up to the prose behind it."""
    for found in re.findall(r"\blorabank (?:-b \w+ |--bank \w+ )?(?=[a-z])([^,;:()`'\n]*)", text):
        yield found.split()


def problem(words: list[str]) -> str | None:
    """What a command line has that the command does not take; None for prose that begins like a command."""
    command: click.Command | None = cli
    while isinstance(command, click.Group) and words and words[0] in command.list_commands(click.Context(command)):
        command, words = command.get_command(click.Context(command), words[0]), words[1:]
    if command is None or isinstance(command, click.Group):
        return None
    taken = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word, value in zip(words, [*words[1:], ""], strict=False):
        if word.startswith("--") and (name := word.partition("=")[0].rstrip(".")) not in taken:
            return f"{command.name} has no option {name}"
        if word == "--mode" and value not in (*plugins.COMPOSERS, FILLED):
            return f"there is no mode {value}"
    return None


def test_every_command_that_a_message_proposes_exists() -> None:
    checked, wrong = 0, []
    for path in SOURCES:
        for text in texts(ast.parse(path.read_text(encoding="utf-8"))):
            for words in proposed(text):
                checked += 1
                if found := problem(words):
                    wrong.append(f"{path.relative_to(ROOT)}: {found}: {text}")
    assert checked > 60
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("lorabank list", None),
        ("wait for it to end; lorabank list shows it", None),
        ("lorabank -b NEW init --base FOLDER", None),
        ("lorabank compose --mode manual --tasks FILLED", None),
        ("a sum: lorabank compose --mode uniform", "there is no mode uniform"),
        ("lorabank add-task NAME --again", "add-task has no option --again"),
        ("lorabank -b NEW init --model FOLDER", "init has no option --model"),
        ("lorabank db upgrade --now", "upgrade has no option --now"),
    ],
)
def test_a_command_that_does_not_exist_is_found(text: str, found: str | None) -> None:
    assert [problem(words) for words in proposed(text)] == [found]
