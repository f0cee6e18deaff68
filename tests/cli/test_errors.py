"""Every failure: one line that names the thing, the next command, its exit code; stdout stays for data."""

from __future__ import annotations

import errno
import gc
import inspect
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from lorabank.core import errors
from lorabank.core.commands import LIST, VERIFY


def test_each_class_has_the_documented_exit_code(run: Any, api: Any) -> None:
    documented = {
        "LorabankError": 1,
        "ConfigError": 2,
        "NotFoundError": 3,
        "ExistsError": 4,
        "IncompatibleError": 5,
        "DataError": 6,
        "MissingExtraError": 7,
        "DamagedError": 8,
        "BusyError": 9,
        "StorageError": 10,
        "DivergedError": 11,
        "GateError": 12,
    }
    found = {name for name, item in inspect.getmembers(errors, inspect.isclass) if item.__module__ == errors.__name__}
    assert found == set(documented)
    for name, code in documented.items():
        api["show"] = getattr(errors, name)(
            "it went wrong", unchanged="nothing was changed", hint="look", commands=[LIST]
        )
        shown = run("show", "x")
        assert (shown.code, shown.out) == (code, "")
        assert shown.err == "error: it went wrong\n  nothing was changed\n  hint: look\n    lorabank list\n"


def test_with_json_the_error_is_the_one_document(run: Any, api: Any) -> None:
    api["show"] = errors.DataError("a.jsonl:3: no \x1b[2J", hint="look", commands=[VERIFY])
    shown = run("show", "x", "--json")
    assert shown.code == 6
    assert shown.document == {
        "error": {
            "kind": "DataError",
            "exit_code": 6,
            "message": "a.jsonl:3: no \x1b[2J",
            "unchanged": None,
            "hint": "look",
            "commands": ["lorabank verify --full"],
        }
    }
    assert "\x1b" not in shown.out + shown.err


@pytest.mark.parametrize("words", [("--json", "nonsense"), ("compose", "--json"), ("list", "--json", "--nonsense")])
def test_usage_errors_are_documents_too(run: Any, words: tuple[str, ...]) -> None:
    shown = run(*words)
    assert shown.code == 2
    assert shown.document["error"]["exit_code"] == 2


def test_hostile_words_are_escaped(run: Any) -> None:
    shown = run("li\x1b[2Jst")
    assert "\x1b" not in shown.err
    assert "li\\x1b[2Jst" in shown.err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
def test_the_system_s_errors_are_storage_errors(run: Any, api: Any, number: int) -> None:
    api["show"] = OSError(number, os.strerror(number), "bank/bank.db")
    shown = run("show", "x")
    assert shown.code == 10
    assert shown.err.startswith(f"error: {os.strerror(number)} (bank/bank.db)\n")


def test_out_of_memory_is_no_bug(run: Any, api: Any) -> None:
    api["show"] = MemoryError()
    assert run("show", "x").code == 10


def test_a_bug_is_one_line_and_a_traceback_on_request(run: Any, api: Any) -> None:
    api["show"] = ZeroDivisionError("division by zero")
    shown = run("show", "x")
    assert shown.code == 1
    assert shown.err.startswith("error: internal error: ZeroDivisionError: division by zero\n")
    assert "--debug" in shown.err
    assert "Traceback" not in shown.err
    assert "Traceback" in run("show", "x", "--debug").err
    assert "Traceback" in run("--debug", "show", "x").err


def test_ctrl_c(run: Any, api: Any) -> None:
    api["show"] = KeyboardInterrupt()
    shown = run("show", "x")
    assert shown.code == 130
    assert "error: interrupted" in shown.err


@pytest.mark.parametrize(
    ("kept", "hint"),
    [
        (("spam",), "hint: resume from the last checkpoint\n    lorabank add-task spam --resume\n"),
        (("other",), "the same command starts again"),
        ((), "the same command starts again"),
    ],
)
def test_ctrl_c_in_training_says_how_to_go_on(run: Any, api: Any, kept: tuple[str, ...], hint: str) -> None:
    api["add_task"] = KeyboardInterrupt()
    api["resumable"] = kept
    shown = run("add-task", "spam", "--data", "s.jsonl")
    assert shown.code == 130
    assert "the bank was not changed" in shown.err
    assert hint in shown.err
    assert ("--resume" in shown.err) == ("spam" in kept)


def test_a_ctrl_c_that_comes_before_or_behind_the_work_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from lorabank_cli import __main__, main

    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "main", interrupted)
    monkeypatch.setattr(gc, "disable", lambda: None)
    assert __main__.run() == 130
    assert capfd.readouterr().err == "error: interrupted\n"


def _shell(line: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env=environment, check=False, timeout=60
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_not_success() -> None:
    shown = _shell('"$PYTHON" -m lorabank_cli --help > /dev/full')
    assert shown.returncode == 10
    assert "No space left on device" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    shown = _shell('"$PYTHON" -m lorabank_cli --help | head -c 10 > /dev/null; echo "${PIPESTATUS[0]}"')
    assert shown.stderr == ""
    assert shown.stdout.strip() in {"0", "141"}  # 0 when everything fitted into the pipe before it was closed
    closed = _shell('"$PYTHON" -m lorabank_cli --help > >(exec true); sleep 0; true')
    assert "Traceback" not in closed.stderr


def test_a_terminal_without_utf8_shows_escapes() -> None:
    name = r"$(printf '\346\227\245\346\234\254')"  # in UTF-8, whatever the locale of the tests
    shown = _shell(f'PYTHONUTF8=1 PYTHONIOENCODING=latin-1 "$PYTHON" -m lorabank_cli -b {name} list')
    assert shown.returncode == 3
    assert "no bank at \\u65e5\\u672c" in shown.stderr


SWALLOWS_CTRL_C = """
import sys, time
import lorabank.api
from lorabank_cli.main import main

def add_task(path, name, config, *, observer, **_):
    observer.start("training", 1000)
    observer.advance(1, {"loss": 1.0})
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        pass  # as in a destructor
    observer.advance(2, {"loss": 1.0})
    raise AssertionError("went on after Ctrl-C")

lorabank.api.add_task = add_task
lorabank.api.resumable = lambda path: ("spam",)
sys.argv = ["lorabank", "add-task", "spam", "--data", "s.jsonl"]
sys.exit(main())
"""


def test_a_ctrl_c_that_python_drops_still_ends_the_work() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", SWALLOWS_CTRL_C],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    with process.stderr:
        while "1/1000" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.wait(timeout=20) == 130
    assert "error: interrupted" in rest
    assert "lorabank add-task spam --resume" in rest
