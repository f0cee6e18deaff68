"""Commands as data: what is pasted is what was meant, whatever the words and the bank are called."""

from __future__ import annotations

import copy
import os
import pickle
import shlex
import subprocess
from pathlib import Path

import pytest

from lorabank.core.commands import VERIFY, Command, file_word, shell_line
from lorabank.core.errors import DataError
from lorabank.core.escaping import safe
from lorabank.data.bad_rows import BadRow

WORDS = ["my bank's", 'a "b" c', "$HOME `id`", "a\\b", "*", "~", "#x", "-", "", "é ü 日本", "a;b & c | d > e", "!x"]
UNSEEN = ["a\nb", "\nb", "-\t'%s\\0\"$HOME `id`", "\x1b[2J", "a\u202eb\u200b", "\u00a0x", "caf\udce9", "e\u0301\r0"]
"""Words that no terminal shows as they are; the last but one is a file's name in Latin-1."""


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("word", [*WORDS, *UNSEEN])
def test_a_shell_reads_the_words_that_were_meant(word: str, shell: str) -> None:
    line = Command("show", word).line(word or "bank")
    script = f"lorabank() {{ printf '%s\\0' \"$@\"; }}\n{line}"
    read = subprocess.run([shell, "-c", script], capture_output=True, check=True, timeout=60).stdout
    assert os.fsdecode(read).split("\0")[:-1] == ["-b", word or "bank", "show", word]


@pytest.mark.parametrize("word", [*WORDS, *UNSEEN])
def test_a_line_is_shown_as_it_is(word: str) -> None:
    line = Command("show", word).line()
    assert safe(line) == line
    assert "\n" not in line


@pytest.mark.parametrize("name", ["-x", "--help", "- y", "my folder"])
def test_another_program_takes_a_path_for_no_option(name: str, tmp_path: Path) -> None:
    line = shell_line("mkdir", "-p", file_word(Path(name)))
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, timeout=60)
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_the_bank_of_the_call_is_named_where_the_command_names_none() -> None:
    assert str(VERIFY) == VERIFY.line() == "lorabank verify --full"
    assert VERIFY.line("team") == "lorabank -b team verify --full"
    assert Command("-b", "NEW", "init").line("team") == "lorabank -b NEW init"
    assert Command("--bank", "x", "list").line("team") == "lorabank --bank x list"
    assert Command("list", "--help").line("team") == "lorabank list --help"


def test_it_is_the_same_after_a_copy_and_in_another_process() -> None:
    command = Command("remove", "a b")
    error = BadRow("a.csv", "line 3", "no", hint="look", commands=[command])
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error), error.saying(error.message)):
        assert (type(again), str(again), again.args) == (BadRow, "'a.csv', line 3: no", error.args)
        assert (again.message, again.hint, again.unchanged) == (str(error), "look", "nothing was changed")
        assert again.commands == (command,)
        assert shlex.split(str(again.commands[0])) == ["lorabank", "remove", "a b"]


def test_an_error_that_says_it_in_other_words_proposes_the_same() -> None:
    error = DataError("row 3", hint="look", commands=[VERIFY]).saying("cell a: row 3", unchanged="the rest is kept")
    assert (type(error), error.message, error.hint) == (DataError, "cell a: row 3", "look")
    assert (error.commands, error.unchanged) == ((VERIFY,), "the rest is kept")
