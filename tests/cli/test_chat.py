"""``lorabank chat``: what a terminal and a pipe see, with a stand-in for what answers."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lorabank.core.errors import DataError, IncompatibleError, NotFoundError
from lorabank.workflows.asking.chat import ChatAnswer


class Echo:
    """Says what it hears, in two pieces; what is said to 'slow' has no end until it is ended."""

    def __init__(self) -> None:
        self.answers, self.remembers, self.last = "one", True, None
        self.messages: list[str] = []
        self.tasks, self.compositions = ("one", "two"), ("both",)
        self.saved: list[str] = []

    def ask_task(self, name: str) -> None:
        if name not in (*self.tasks, "none"):
            raise NotFoundError(f"the bank has no task {name!r}")
        self.answers = name

    def ask_composition(self, name: str) -> None:
        self.answers = name

    def ask(self, text: str, hear: Any = None, over: Any = None) -> ChatAnswer:
        if text == "bad":
            raise DataError("the base's chat template does not take this conversation")
        said = f"[{text}]"
        if hear:
            hear(said[:2])
        while text == "slow" and not over():
            time.sleep(0.01)
        finish, said = ("ended", said[:2]) if text == "slow" else ("stop", said)
        if hear and finish == "stop":
            hear(said[2:])
        self.messages.append(text)
        routed = ("two", "routed", {"two": 1.0}, "both", None, 2.5, {"two": 0.9, "one": 0.1})
        given = (self.answers, "given", {self.answers: 1.0}, None, None, None, {})
        left_out = 2 if self.answers == "two" else 0
        self.last = ChatAnswer(said, *(routed if self.answers == "both" else given), finish, len(said), left_out)
        return self.last

    def clear(self) -> None:
        self.messages.clear()

    def save(self, target: str) -> Path:
        self.saved.append(target)
        return Path(target)


# ------------------------------------------------------------------------------------------------------------ pipes


def test_one_question_a_line_and_answers_alone(run: Any, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api["chat"] = Echo()
    monkeypatch.setattr("sys.stdin", io.StringIO("first\n\n/who is that?\r\nbackslash\\\n"))
    shown = run("chat")
    assert (shown.code, shown.out, shown.err) == (0, "[first]\n[/who is that?]\n[backslash\\]\n", "")


def test_json_is_an_object_for_each(run: Any, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api["chat"] = Echo()
    monkeypatch.setattr("sys.stdin", io.StringIO("a\x1b[2J\nb\n"))
    lines = run("chat", "--task", "one", "--json").out.splitlines()
    first, second = map(json.loads, lines)
    assert first == {
        "asked": "a\x1b[2J",
        "text": "[a\x1b[2J]",
        "task": "one",
        "task_id": "given",
        "adapters": {"one": 1.0},
        "composition": None,
        "probability": None,
        "margin": None,
        "posterior": {},
        "finish": "stop",
        "tokens": 7,
        "left_out": 0,
    }
    assert second["text"] == "[b]"
    assert "\x1b" not in "".join(lines)


def test_what_an_answer_says_cannot_steer_the_terminal(run: Any, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api["chat"] = Echo()
    monkeypatch.setattr("sys.stdin", io.StringIO("\x1b]0;owned\x07\n"))
    assert run("chat").out == "[\\x1b]0;owned\\x07]\n"


def test_what_fails_in_a_pipe_ends_it(run: Any, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api["chat"] = Echo()
    monkeypatch.setattr("sys.stdin", io.StringIO("good\nbad\nnever\n"))
    shown = run("chat")
    assert (shown.code, shown.out) == (6, "[good]\n")
    assert "error: the base's chat template does not take this conversation" in shown.err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"good\n\xff\n"), encoding="utf-8"))
    shown = run("chat")
    assert (shown.code, shown.out) == (6, "[good]\n")
    assert "'standard input', line 2, byte 1: not UTF-8" in shown.err


def test_a_classifier_is_refused_before_anything_is_read(run: Any, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api["chat"] = IncompatibleError("the bank's base 'tiny' is a classifier, which generates nothing")
    monkeypatch.setattr("sys.stdin", io.StringIO("never\n"))
    shown = run("chat")
    assert (shown.code, shown.out) == (5, "")


def test_settings_reach_the_library(run: Any, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api["chat"] = Echo()
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    run("chat", "--composition", "both", "--system", "Be short.", "--temperature", "0.5", "--stop", "x")
    config = api.called("chat")["config"]
    assert (config.composition, config.system, config.temperature, config.stop) == ("both", "Be short.", 0.5, ("x",))
    assert config.max_new_tokens == 512
    assert run("chat", "--system", "").code == 2


# -------------------------------------------------------------------------------------------------------- terminals

_SCRIPT = """
import sys
import lorabank.api
from tests.cli.test_chat import Echo
lorabank.api.chat = lambda path, config, observer: Echo()
from lorabank_cli.main import main
sys.argv = ["lorabank", "chat", *sys.argv[1:]]
sys.exit(main())
"""
_ROOT = Path(__file__).parents[2]
_ESCAPES = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """A process at a terminal of its own, which sends it Ctrl-C as a keyboard does."""

    def __init__(self, home: Path) -> None:
        self._ours, theirs = pty.openpty()
        self.home = home
        keep = {name: value for name, value in os.environ.items() if name != "XDG_STATE_HOME"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            cwd=home,
            env=keep | {"HOME": str(home), "TERM": "dumb", "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
        )
        os.close(theirs)
        self._seen = ""

    def until(self, text: str) -> str:
        """What is shown up to a text, which is waited for."""
        deadline = time.monotonic() + 120
        while text not in self._seen:
            assert time.monotonic() < deadline, f"{text!r} never came: {self._seen!r}"
            if select.select([self._ours], [], [], 1)[0]:
                self._seen += self._read()
        before, _, self._seen = self._seen.partition(text)
        return before + text

    def _read(self) -> str:
        try:
            found = os.read(self._ours, 4096)
        except OSError:  # Linux: the other end is closed
            found = b""
        assert found, f"it ended after {self._seen!r}"
        return _ESCAPES.sub("", found.decode(errors="replace")).replace("\r\n", "\n").replace("\r", "")

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode(errors="surrogateescape"))

    def interrupt(self) -> None:
        """Ctrl-C at the prompt, as a person does who has seen it: Python sees one only once it waits for a key."""
        time.sleep(0.5)
        self.type(CTRL_C)

    def says(self, typed: str) -> str:
        """What is shown between a line that was typed and the next prompt."""
        self.type(f"{typed}\n")
        self.until(f"{typed}\n")
        return self.until(">>> ").removesuffix(">>> ")

    def code(self) -> int:
        return self._process.wait(60)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal_of(tmp_path: Path) -> Iterator[Callable[[], Terminal]]:
    opened: list[Terminal] = []

    def make() -> Terminal:
        opened.append(Terminal(tmp_path))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_a_conversation_at_a_terminal(terminal_of: Callable[[], Terminal]) -> None:
    shell = terminal_of()
    greeting = shell.until(">>> ")
    assert greeting == "task one answers\n/help lists the commands, Ctrl-D leaves\n>>> "
    assert shell.says("/who") == "task one answers\n"
    assert shell.says("hello") == "[hello]\n"
    assert shell.says(" /who") == "[/who]\n"
    assert shell.says("/task") == "one\ntwo\n"
    assert "error: the bank has no task 'three'" in shell.says("/task three")
    assert shell.says("/task two") == "task two answers\n"
    assert shell.says("again") == (
        "[again]\ntask two did not read all that was said before: it learnt shorter prompts\n"
    )
    assert shell.says("again") == "[again]\n"
    assert shell.says("/composition both") == "composition both answers\n"
    assert shell.says("whose?") == "[whose?]\n"
    who = " ".join(shell.says("/who").split())
    assert who == (
        "last answer task two found by composition both probability of two 0.9000 probability of one 0.1000 "
        "margin 2.5 adapters two 1"
    )
    assert shell.says("/base") == "the bare base answers\n"
    assert "error: the base's chat template does not take this conversation" in shell.says("bad")
    assert "no command /whom. Did you mean '/who'?" in shell.says("/whom")
    assert shell.says("/save talk.jsonl") == "saved in talk.jsonl\n"
    assert "/composition NAME" in shell.says("/help")
    assert shell.says("/clear") == "forgotten; the next message begins a conversation\n"
    shell.type("/quit\n")
    assert shell.code() == 0
    history = shell.home / ".local/state/lorabank/chat_history"
    assert history.read_text(encoding="utf-8").splitlines()[:3] == ["/who", "hello", " /who"]
    assert history.stat().st_mode & 0o077 == 0


def test_messages_of_several_lines(terminal_of: Callable[[], Terminal]) -> None:
    shell = terminal_of()
    shell.until(">>> ")
    shell.type("one\\\n")
    shell.until("... ")
    assert shell.says("two") == "[one\ntwo]\n"
    shell.type('"""\n')
    shell.until("... ")
    shell.type("/quit\n")
    shell.until("... ")
    assert shell.says('b\\"""') == "[/quit\nb\\]\n"
    shell.type(CTRL_D)
    assert shell.code() == 0


def test_ctrl_c_ends_an_answer_and_twice_at_the_prompt_leaves(terminal_of: Callable[[], Terminal]) -> None:
    shell = terminal_of()
    shell.until(">>> ")
    shell.type("slow\n")
    shell.until("\n[s")
    shell.type(CTRL_C)
    assert "stopped; what was said is kept\n" in shell.until(">>> ")
    assert shell.says("hello") == "[hello]\n"
    shell.type("half a li")
    shell.until("half a li")
    shell.interrupt()
    assert "Ctrl-C once more leaves, as Ctrl-D and /quit do\n" in shell.until(">>> ")
    assert shell.says("hello") == "[hello]\n"  # the warning is forgotten, and so is the line
    shell.interrupt()
    shell.until(">>> ")
    shell.interrupt()
    assert shell.code() == 0


def test_what_is_not_utf8_is_refused_and_the_conversation_stays(terminal_of: Callable[[], Terminal]) -> None:
    shell = terminal_of()
    shell.until(">>> ")
    for lines in ("caf\udcff\n", '"""a\n\udcff"""\n'):
        shell.type(lines)
        assert "error: what was typed is not UTF-8\n  nothing was asked\n" in shell.until("asked\n")
        shell.until(">>> ")
    assert shell.says("hello") == "[hello]\n"
