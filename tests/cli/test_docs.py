"""Every command has help, examples that parse, and a page whose help is that of the code."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from lorabank_cli.docs import commands, help_block, page_name, rewrite, with_help
from lorabank_cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "commands"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ALL = dict(commands())
VERBS = {path: command for path, command in ALL.items() if not isinstance(command, click.Group)}


def test_every_verb_of_the_contract_is_there() -> None:
    promised = {
        "init",
        "add-task",
        "compose",
        "eval",
        "predict",
        "list",
        "show",
        "remove",
        "export",
        "import",
        "generate",
    }
    promised |= {
        "verify",
        "gc",
        "report",
        "demo",
        "doctor",
        "db upgrade",
        "sequence run",
        "sequence tradeoff",
        "limits",
        "methods",
        "compare",
        "log",
        "note",
        "rename",
        "tag",
        "undo",
        "fold",
        "advise",
        "stream",
        "backup",
        "restore",
        "serve",
        "ui",
        "chat",
        "push",
        "pull",
    }
    assert {path.removeprefix("lorabank ") for path in VERBS} == promised


@pytest.mark.parametrize("path", ALL)
def test_help_is_written_and_agrees_with_the_table(path: str) -> None:
    command = ALL[path]
    assert command.help
    name = path.split()[-1]
    if name in COMMANDS:
        assert command.help.splitlines()[0] == COMMANDS[name][1]
    for param in command.params:
        assert getattr(param, "help", None), f"{path}: {param.name} has no help"


@pytest.mark.parametrize("path", VERBS)
def test_examples_parse(path: str) -> None:
    examples = VERBS[path].examples  # type: ignore[attr-defined]
    assert examples
    for example in examples:
        words = shlex.split(example.split(" < ")[0])
        assert f"lorabank {' '.join(words)}".startswith(path)
        parse(words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_the_documents_parse(document: Path) -> None:
    for words in shown(document.read_text(encoding="utf-8")):
        parse(words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_within_sentences_have_the_words_of_the_code(document: Path) -> None:
    """A verb alone names itself; with more words it must parse. Capitals stand for what the reader puts there."""
    for line in in_sentences(document.read_text(encoding="utf-8")):
        words = list(itertools.takewhile(lambda word: word not in ("|", "--help"), shlex.split(line)))
        try:
            parse(words)
        except click.MissingParameter:
            assert " ".join(["lorabank", *words]) in ALL, line


def test_commands_are_found_in_sentences() -> None:
    text = "See `lorabank log`, `lorabank tag\nNAME` and `other`.\n```console\n$ lorabank list # `lorabank x`\n```\n"
    assert list(in_sentences(text)) == ["log", "tag NAME"]


def test_commands_are_found_in_a_document() -> None:
    text = '```console\n$ lorabank add-task a --prompt-template "x\n{text}"   # why\nsaid\n$ ls\n```\n'
    text += "```bash\nlorabank predict - < texts.txt\nlorabank list | head -1\n```\n"
    expected = [["add-task", "a", "--prompt-template", "x\n{text}"], ["predict", "-"], ["list"]]
    assert list(shown(text)) == expected


def in_sentences(text: str) -> Iterator[str]:
    """What follows `lorabank` in the code spans of a document outside of its blocks, but for optional parts."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)
    for span in re.findall(r"`lorabank\s([^`]+)`", prose):
        line = " ".join(span.replace("\\|", "|").split())
        if line.split()[0].islower():
            yield re.sub(r" \[[^]]*\]", "", line)


def shown(text: str) -> Iterator[list[str]]:
    """The words of each lorabank command in the console and bash blocks of a document."""
    for language, block in re.findall(r"^ *```(console|bash)\n(.*?)^ *```$", text, re.M | re.S):
        prompt = r"^ *\$ " if language == "console" else r"^ *"
        for found in re.finditer(rf"{prompt}lorabank\b((?:\"[^\"]*\"|'[^']*'|\\\n|[^\n\"'])*)", block, re.M):
            lexer = shlex.shlex(found[1].replace("\\\n", ""), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            yield list(itertools.takewhile(lambda word: word[0] not in "<>|&;", lexer))


def parse(words: list[str]) -> None:
    """Parse a command line as click does, without running it."""
    with cli.make_context("lorabank", words) as ctx:
        group, rest = cli, [*ctx._protected_args, *ctx.args]
        while rest:
            name, command, rest = group.resolve_command(ctx, rest)
            assert command is not None
            with command.make_context(name, list(rest), parent=ctx) as inner:
                if not isinstance(command, click.Group):
                    break
                group, ctx, rest = command, inner, [*inner._protected_args, *inner.args]


@pytest.mark.parametrize("path", ALL)
def test_the_page_shows_the_help_of_the_code(path: str) -> None:
    page = PAGES / page_name(path)
    assert page.is_file(), "run: python -m lorabank_cli.docs"
    text = page.read_text(encoding="utf-8")
    assert with_help(text, help_block(path, ALL[path])) == text, "stale; run: python -m lorabank_cli.docs"
    assert text.startswith(f"# {path}\n\n")
    prose = text.split("<!-- help -->")[0] + text.split("<!-- /help -->")[1]
    assert len(prose.split()) > 25, "the page says no more than --help"


def test_no_page_without_a_command() -> None:
    assert {page.name for page in PAGES.glob("*.md")} == {page_name(path) for path in ALL}


def test_rewriting_keeps_the_prose_and_is_stable(tmp_path: Path) -> None:
    (tmp_path / "gc.md").write_text("# lorabank gc\n\nBefore.\n\n<!-- help -->\nold\n<!-- /help -->\n\nAfter.\n")
    assert len(rewrite(tmp_path)) == len(ALL)
    text = (tmp_path / "gc.md").read_text(encoding="utf-8")
    assert "Before." in text
    assert text.endswith("After.\n")
    assert "--grace-hours" in text
    assert "old\n" not in text
    assert rewrite(tmp_path) == []
