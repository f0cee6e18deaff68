"""Commands that errors and results propose: data in the sources, which the command line takes and a user pastes."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
from lorabank_cli.main import COMMANDS, cli

from lorabank import api as library
from lorabank.bank.bank import Bank
from lorabank.core import shelves
from lorabank.core.task_kinds import generating

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "lorabank").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
FILLED = "filled"
"""What stands for a word that is known at run time alone."""
PLACEHOLDERS = {"BACKUP", "COPY", "FILE", "FOLDER", "NAME", "NEW", "PATH", "TEXT"}
"""What the user alone can know."""
SAID = {"ROUTING": shelves.ROUTING, "SUMMING": shelves.SUMMING, "generating().name": generating().name}
"""What other sources say for good."""
ODD = "my bank's"


# ----------------------------------------------------------------------------------------------------- in the sources


def prose(tree: ast.AST) -> Iterator[str]:
    """The string literals of a source file but docstrings and the help; an f-string with `FILLED` in it."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EPILOG":
            docs.add(id(node.value))
        if isinstance(node, ast.keyword) and node.arg == "help":
            docs.add(id(node.value))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        literal = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | inside
        if isinstance(node, ast.JoinedStr) or literal:
            yield word(node)


def word(node: ast.expr) -> str:
    """A string expression as far as the source says it."""
    if known := SAID.get(ast.unparse(node)):
        return known
    if isinstance(node, ast.JoinedStr):
        return "".join(map(word, node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else FILLED


def spelt(text: str) -> str | None:
    """The command that a text spells out, in the place of one that is data; a title of a page is none."""
    found = re.search(rf"(?<!# )\blorabank (?:-b \S+ |--bank \S+ )?(?:{'|'.join(COMMANDS)})\b", text)
    return found and found[0]


def proposed(tree: ast.AST) -> Iterator[tuple[list[str], bool]]:
    """The words of each ``Command(...)``, and whether they are all of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Command":
            whole = not any(isinstance(argument, ast.Starred) for argument in node.args)
            yield [word(argument) for argument in node.args if not isinstance(argument, ast.Starred)], whole


def problem(words: list[str], *, whole: bool = True) -> str | None:
    """What the command line has against the words; of the beginning of a command whether there are such options."""
    ctx = click.Context(cli, info_name="lorabank")
    command: click.Command | None = cli
    while words and words[0] in ("-b", "--bank"):
        words = words[2:]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        command = command.get_command(ctx, name)
        if command is None:
            return f"there is no command {name}"
    assert command is not None
    for option in command.params:
        known = None  # what stands for a value that is known at run time alone
        if isinstance(option.type, click.Choice):
            known = option.type.choices[0]
        elif isinstance(option.type, click.FloatRange) and option.type.min is not None:
            known = str(option.type.min + 0.5)
        if known is not None:
            words = [
                known if word == FILLED and last in option.opts else word for last, word in pairwise(["", *words])
            ]
    try:
        command.make_context(str(command.name), list(words), parent=ctx, resilient_parsing=not whole)
    except click.exceptions.Exit:
        return None
    except click.UsageError as error:
        return error.format_message()
    return None


def test_no_message_spells_a_command_as_prose() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in SOURCES
        for text in prose(ast.parse(path.read_text(encoding="utf-8")))
        if spelt(text)
    ]
    assert wrong == []


def test_every_proposed_command_is_one_that_the_command_line_takes(run: Any) -> None:
    checked, wrong = 0, []
    for path in SOURCES:
        for words, whole in proposed(ast.parse(path.read_text(encoding="utf-8"))):
            checked += 1
            if found := problem(words, whole=whole):
                wrong.append(f"{path.relative_to(ROOT)}: {found}: {words}")
            unknown = {part for one in words for part in re.findall(r"\b[A-Z]{3,}\b", one)} - PLACEHOLDERS
            if unknown - {"WEIGHT"}:
                wrong.append(f"{path.relative_to(ROOT)}: what is {unknown}: {words}")
    assert checked > 60
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("wait for it to end; lorabank list shows it", "lorabank list"),
        ("a sum: lorabank -b NEW compose --mode manual", "lorabank -b NEW compose"),
        ("update lorabank: git pull", None),
        ("# lorabank demo", None),
        ("this lorabank needs a0001", None),
    ],
)
def test_a_command_in_prose_is_found(text: str, found: str | None) -> None:
    assert spelt(text) == found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("list", None),
        ("db upgrade", None),
        ("-b NEW init --base FOLDER", None),
        ("compose --mode manual --tasks filled", None),
        ("compose --mode uniform", "Invalid value for '--mode'"),
        ("add-task NAME --data FILE --again", "No such option '--again'"),
        ("-b NEW init --model FOLDER", "No such option '--model'"),
        ("db upgrade --now", "No such option '--now'"),
        ("remove", "Missing argument 'NAME'"),
        ("trane spam", "there is no command trane"),
    ],
)
def test_a_command_that_does_not_exist_is_found(run: Any, line: str, found: str | None) -> None:
    said = problem(line.split())
    assert said is None if found is None else str(said).startswith(found)


# -------------------------------------------------------------------------------------------- pasted, in an odd bank


def lines(text: str) -> list[str]:
    """The commands among the lines of an output: each stands on a line of its own."""
    return [line.strip() for line in text.splitlines() if line.startswith("  ") and "lorabank " in line]


@pytest.fixture
def odd(bank: Bank) -> Path:
    """The small bank under an odd name, and the same one at ``./bank``, which no pasted command may touch."""
    shutil.copytree(bank.path, ODD)
    return Path(ODD)


@pytest.fixture
def proposals(run: Any, odd: Path) -> Any:
    """``proposals(*words)``: the commands that a call in the odd bank proposes, checked in both forms of output."""

    def call(*words: str) -> list[str]:
        shown = run("-b", ODD, *words)
        found = lines(shown.out + shown.err)
        assert found, shown
        for line in found:
            read = shlex.split(line)
            assert read[:3] == ["lorabank", "-b", ODD], line
            assert problem(read[1:]) is None, line
        return found

    return call


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(bank: Path) -> None:
    library.backup(bank, "copy")
    next(bank.glob("adapters/*/adapter_model.safetensors")).unlink()


def interrupt(bank: Path) -> None:
    operation = Bank.open(bank).reserve("add-task", "third", {})
    (operation.work / "checkpoint-1").mkdir()
    (operation.work / "checkpoint-1" / "state").write_text("half")
    operation.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


def nothing(bank: Path) -> None:
    """Leave it as it is."""


@pytest.mark.parametrize(
    ("before", "words", "fill", "code", "said"),
    [
        pytest.param(nothing, "show frist", {}, 0, "bank at my bank's", id="a name that is not there"),
        pytest.param(nothing, "predict --task frist a", {}, 0, "bank at my bank's", id="a task that is not there"),
        pytest.param(nothing, "remove sentiment", {"": "--yes"}, 0, "removed sentiment, both", id="cascade"),
        pytest.param(nothing, "remove both --yes", {}, 0, "", id="what follows a removal"),
        pytest.param(
            nothing, "compose --mode manual --name both", {"": "--yes"}, 0, "removed both", id="a name taken"
        ),
        pytest.param(nothing, "backup", {"": "--yes"}, 0, "restored", id="the way back"),
        pytest.param(
            lambda bank: library.backup(bank), "restore x.db", {"": "--yes"}, 0, "restored", id="no such backup"
        ),
        pytest.param(nothing, "restore x.db", {}, 0, "wrote my bank's/backups", id="no backup at all"),
        pytest.param(damage, "doctor", {"COPY": "copy"}, 0, "fetched", id="the cure that the doctor names"),
        pytest.param(damage, "verify", {"COPY": "copy"}, 0, "fetched", id="the cure of a finding"),
        pytest.param(damage, "doctor --repair", {"COPY": "copy"}, 0, "fetched", id="the cure after a repair"),
    ],
)
def test_a_pasted_command_does_what_it_says_on_the_bank_of_the_call(
    run: Any, proposals: Any, odd: Path, before: Any, words: str, fill: dict[str, str], code: int, said: str
) -> None:
    before(odd)
    other = tree(Path("bank"))
    line = proposals(*words.split())[0]
    typed = [fill.get(one, one) for one in shlex.split(line)[1:]] + ([fill[""]] if "" in fill else [])
    shown = run(*typed)
    assert shown.code == code, shown
    assert said in shown.out
    assert tree(Path("bank")) == other


@pytest.mark.parametrize(
    ("before", "words", "expected"),
    [
        (nothing, "list", None),
        (nothing, "show spam", ["predict --task spam TEXT", "export spam FOLDER"]),
        (nothing, "show both", ["predict --composition both TEXT"]),
        (nothing, "eval --task spam --all", ["eval --task spam"]),
        (nothing, "export both out --own", ["export both out"]),
        (nothing, "generate a", ["predict TEXT", None]),
        (interrupt, "add-task third --data rows.jsonl", None),
        (interrupt, "doctor", ["add-task third --resume"]),
        (interrupt, "add-task fourth --resume", None),
    ],
)
def test_a_proposed_command_names_the_bank(
    run: Any, odd: Path, before: Any, words: str, expected: list[str | None] | None
) -> None:
    Path("rows.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n')
    before(odd)
    shown = run("-b", ODD, *words.split())
    for line, wanted in zip(lines(shown.out + shown.err), expected or [], strict=expected is not None):
        read = shlex.split(line)
        assert problem(read[1:]) is None, line
        if wanted is not None:
            assert read == ["lorabank", "-b", ODD, *wanted.split()]


def test_no_bank_at_all(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("list").err.splitlines()[1] == "  nothing was changed"
    assert lines(run("list").err) == ["lorabank add-task NAME --data FILE"]
    expected = ["lorabank", "-b", ODD, "add-task", "NAME", "--data", "FILE"]
    assert shlex.split(lines(run("list", "-b", ODD).err)[0]) == expected
    monkeypatch.setenv("LORABANK_BANK", ODD)  # the shell that it is pasted into may not have it
    assert shlex.split(lines(run("list").err)[0]) == expected
    monkeypatch.delenv("LORABANK_BANK")
    Path("c.toml").write_text(f'bank = "{ODD}"\n')
    assert shlex.split(lines(run("list", "--config", "c.toml").err)[0]) == expected


@pytest.mark.parametrize(
    "words",
    [
        "show frist",
        "remove frist",
        "predict --task frist a",
        "predict --composition frist a",
        "compose --mode manual --tasks frist",
        "eval --composition frist",
        "export frist folder",
        "rename frist second",
        "note frist text",
        "list --nonsense",
        "compose --mode uniform",
        "trane frist",
        "generate --max-new-tokens x a",
    ],
)
def test_what_is_not_understood_or_not_there_says_what_stayed(run: Any, odd: Path, words: str) -> None:
    shown = run("-b", ODD, *words.split())
    first, second, *rest = shown.err.splitlines()
    assert shown.code in (2, 3)
    assert not first.endswith(".")
    assert second in ("  nothing was changed", "  the bank was not changed", "  nothing was written")
    assert all(
        line.endswith("--help") or shlex.split(line)[:3] == ["lorabank", "-b", ODD] for line in lines(shown.err)
    )
    assert lines("\n".join(rest))


def test_json_has_the_same_lines(run: Any, odd: Path) -> None:
    error = run("-b", ODD, "remove", "sentiment", "--json").document["error"]
    assert error["commands"] == [shlex.join(["lorabank", "-b", ODD, "remove", "sentiment", "--cascade"])]
    damage(odd)
    for finding in run("-b", ODD, "verify", "--json").document["findings"]:
        assert all(shlex.split(line)[:3] == ["lorabank", "-b", ODD] for line in finding["commands"])
        assert finding["commands"]


def test_a_bank_of_another_user_is_named_in_the_same_command(run: Any, bank: Bank, monkeypatch: Any) -> None:
    monkeypatch.setattr("lorabank_cli.place._owner", lambda path: 4711)
    (line,) = lines(run("show", "spam", "--json", "-q").err)
    assert shlex.split(line) == ["lorabank", "--bank", "bank", "show", "spam", "--json", "-q"]
    assert run(*shlex.split(line)[1:]).code == 0
