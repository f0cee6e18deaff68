"""Standard streams that are closed, full, abandoned or in another encoding: every command ends with its own code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from lorabank_cli.main import COMMANDS

from lorabank.bank.bank import Bank
from lorabank.core.limits import MAX_LINE

FORKED = """
import json, os, sys
from importlib import import_module
from lorabank_cli.main import COMMANDS, main
import lorabank_cli.failures, lorabank.api, lorabank.bank.bank, lorabank.core.config, pydantic, sqlalchemy
for path, _ in COMMANDS.values():
    import_module("lorabank_cli.commands." + path.partition(":")[0])

def state(name):
    if name.endswith("closed"):
        os.close({"stdin": 0, "stdout": 1, "stderr": 2}[name.split()[0]])
    elif name.endswith("reader gone"):
        read, write = os.pipe()
        os.dup2(write, {"stdout": 1, "stderr": 2}[name.split()[0]])
        os.close(read), os.close(write)
    elif name.endswith("full"):
        os.dup2(os.open("/dev/full", os.O_WRONLY), {"stdout": 1, "stderr": 2}[name.split()[0]])
    elif name.endswith("read only"):
        os.dup2(os.open("/dev/null", os.O_RDONLY), 1)
    for stream, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        try:
            os.fstat(number)
        except OSError:  # as Python starts where one is closed
            setattr(sys, stream, None)

codes = []
for name, words in json.load(sys.stdin):
    child = os.fork()
    if not child:
        state(name)
        sys.argv = ["lorabank", *words]
        code = main()
        leaked = [number for number in range(3) if os.readlink(f"/proc/self/fd/{number}").endswith(".db")]
        os._exit(99 if leaked else code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with open("codes.json", "w") as file:
    json.dump(codes, file)
"""
"""Runs the real entry of the command line in forks, each with its streams in another state."""

STATES = {
    "as usual": None,
    "stdin closed": None,
    "stdout closed": None,
    "stderr closed": None,
    "stdout reader gone": 141,
    "stderr reader gone": None,
    "stdout full": 10,
    "stderr full": None,
    "stdout read only": 10,
}
"""State to the exit code of a command that writes a result; None where it is the usual one."""

WORDS = [
    [],
    ["db"],
    ["--json"],
    ["--help"],
    ["--version"],
    ["--json", "--version"],
    ["log"],
    ["list"],
    ["--json", "list"],
    ["--verbose", "list"],
    ["show", "sentiment"],
    ["--json", "show", "spam"],
    ["verify"],
    ["gc", "--dry-run"],
    ["limits"],
    ["predict", "-"],
    ["generate", "-"],
    ["-b", "nowhere", "list"],
    ["--json", "show", "nobody"],
    ["lsit"],
    ["remove", "spam"],
    *[[name, "--help"] for name in COMMANDS],
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], int]:
    """Exit code by state and words."""
    from tests.cli.conftest import BASE, _add_task

    folder = tmp_path_factory.mktemp("streams")
    bank = Bank.create(folder / "bank", BASE)
    _add_task(bank, "sentiment", 1.0)
    _add_task(bank, "spam", 2.0)
    runs = [(state, words) for state in STATES for words in WORDS]
    process = subprocess.run(
        [sys.executable, "-c", FORKED], input=json.dumps(runs), capture_output=True, text=True, check=False, cwd=folder
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert "Traceback" not in process.stderr
    assert "Exception ignored" not in process.stderr
    codes = json.loads((folder / "codes.json").read_text(encoding="utf-8"))
    return {(state, *words): code for (state, words), code in zip(runs, codes, strict=True)}


@pytest.mark.parametrize("state", STATES)
def test_every_command_ends_with_its_code_whatever_its_streams(
    outcomes: dict[tuple[str, ...], int], state: str
) -> None:
    found, expected = {}, {}
    for words in WORDS:
        key = " ".join(words)
        usual = outcomes["as usual", *words]
        found[key] = outcomes[state, *words]
        writes = usual == 0 or "--json" in words
        expected[key] = STATES[state] if STATES[state] is not None and writes else usual
    assert found == expected
    assert all(code != 1 for code in found.values())


def lorabank(*words: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "lorabank_cli", *words]
    return subprocess.run(command, capture_output=True, check=False, **options)


def test_a_reader_that_leaves_at_once_is_told_by_the_code(bank: Bank) -> None:
    shell = f"'{sys.executable}' -m lorabank_cli list | true; echo ${{PIPESTATUS[0]}}"
    told = subprocess.run(["bash", "-c", f"set -o pipefail; sleep 0 | {{ {shell}; }}"], capture_output=True, text=True)
    assert told.stdout.strip() in {"0", "141"}, "0 where the reader was slower than the writer"
    assert told.stderr == ""


@pytest.mark.parametrize(
    "line", ["list | head -1", "list --json | true", "--help | head -1", "limits --json | head -c 1"]
)
def test_the_usual_pipelines_are_silent(bank: Bank, line: str) -> None:
    told = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' -m lorabank_cli {line} >&2; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() in {"0", "141"}, "0 where all fits into the pipe"
    assert "Traceback" not in told.stderr
    assert "error" not in told.stderr


LONG = """
import os, sys
from types import ModuleType, SimpleNamespace
import lorabank
from lorabank.workflows.results import MatrixReport, Prediction
from lorabank_cli.main import main

text = "a text with Grüße, 日本 and \\U0001f600"
answer = Prediction(text, "ja é " * 9, 0.5, "spam", "given", {"spam": 1.0}, "now", None)
fake = ModuleType("lorabank.api")
fake.predict = fake.generate = lambda *args, **kwargs: (answer,) * 60_000
row = (text, "ja é")
fake.answer_rows = lambda *args, **kwargs: SimpleNamespace(columns=("text", "label"), parts=[[row] * 20_000] * 3)
fake.show = lambda *args: {"task": {"name": "spam", "task_type": "SEQ_CLS", "labels": ["日本"] * 200_000}}
sys.modules["lorabank.api"] = lorabank.api = fake
sys.argv = ["lorabank", *sys.argv[1:]]
sys.exit(main())
"""
"""The command line over answers of several MiB: no pipe holds them."""

MANY = [["predict", "a"], ["generate", "a"], ["show", "spam"], ["predict", "a", "--json"], ["show", "spam", "--json"]]


@pytest.mark.parametrize("words", MANY, ids=" ".join)
def test_a_reader_that_leaves_in_the_middle(words: list[str]) -> None:
    run = subprocess.Popen([sys.executable, "-c", LONG, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None
    assert len(run.stdout.read(100_000)) == 100_000
    run.stdout.close()
    assert run.stderr is not None
    told = run.stderr.read()
    run.stderr.close()
    assert run.wait() == 141
    assert b"Traceback" not in told
    assert b"error" not in told


@pytest.mark.parametrize("words", MANY, ids=" ".join)
def test_a_stream_that_does_not_wait_gets_everything(words: list[str]) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    run = subprocess.Popen([sys.executable, "-c", LONG, *words], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    with open(read, "rb") as file:
        got = file.read()
    assert run.stderr is not None
    told = run.stderr.read()
    run.stderr.close()
    assert run.wait() == 0, told
    assert len(got) > 2**20
    assert got.endswith(b"\n")
    if "--json" in words:
        json.loads(got)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
@pytest.mark.parametrize("words", [["predict", "a"], ["generate", "a"], ["show", "spam"]], ids=" ".join)
def test_what_an_encoding_lacks_is_shown_as_an_escape(words: list[str], encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", LONG.replace("0_000", ""), *words]
    run = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    shown = run.stdout.decode(encoding)
    assert ("\\u65e5\\u672c" in shown) == (encoding != "utf-16" and words[0] != "generate")
    assert ("é" in shown) == (words[0] != "show")


def test_a_standard_input_that_cannot_be_read_is_an_input_error(bank: Bank, tmp_path: Any) -> None:
    with open(tmp_path / "file", "wb") as write_only:
        run = lorabank("predict", "--task", "spam", "-", stdin=write_only)
    assert run.returncode == 10
    assert re.fullmatch(rb"error: [^\n]*\n  everything that was stored is kept\n", run.stderr)


LOCALES = {
    "UTF-8": {},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Latin-1 streams": {"PYTHONIOENCODING": "latin-1"},
    "ASCII streams": {"PYTHONIOENCODING": "ascii:strict"},
}


@pytest.mark.parametrize("locale", LOCALES)
def test_bytes_that_are_no_utf8_are_refused_in_every_locale(bank: Bank, locale: str) -> None:
    environment = {**os.environ, **LOCALES[locale]}
    for command in ("predict",) if locale != "UTF-8" else ("predict", "generate"):
        given = lorabank(command, "--task", "spam", b"caf\xe9", env=environment)
        assert (given.returncode, given.stdout) == (2, b"")
        assert b"text 1 is not UTF-8: byte 4" in given.stderr
        piped = lorabank(command, "--task", "spam", "-", input=b"good\ncaf\xe9\n", env=environment)
        assert (piped.returncode, piped.stdout) == (6, b"")
        assert b"standard input', line 2, byte 4: not UTF-8" in piped.stderr
        assert b"Traceback" not in given.stderr + piped.stderr


READ = """
import json, sys
from lorabank_cli.render import streams
streams.open_streams()
print(json.dumps(streams.given_texts(sys.argv[1:])))
"""


@pytest.mark.parametrize("locale", LOCALES)
def test_texts_arrive_as_they_were_written_in_every_locale(locale: str) -> None:
    environment = {**os.environ, **LOCALES[locale]}
    texts = ["Grüße 😀", "a\u2028b", "plain"]

    def read(*words: str | bytes, stdin: bytes = b"") -> Any:
        command = [sys.executable, "-c", READ, *words]
        run = subprocess.run(command, input=stdin, capture_output=True, check=True, env=environment)
        return json.loads(run.stdout)

    assert read(*(text.encode() for text in texts)) == texts
    piped = "\ufeff" + "\r\n\r\n".join(texts) + "\n \n"
    assert read("-", stdin=piped.encode()) == texts, "without the byte order mark and blank lines"


@pytest.mark.parametrize(
    ("stdin", "problem"),
    [
        (b"a\x00b\n", "line 1: a NUL character at position 2"),
        (b"good\n\xed\xa0\x80\n", "line 2, byte 1: not UTF-8"),
        (b"\xff\xfeg\x00", "line 1, byte 1: not UTF-8"),
        (b"a" * (MAX_LINE + 1), f"line 1: longer than {MAX_LINE:,} bytes"),
    ],
)
def test_standard_input_has_the_rules_of_a_file(bank: Bank, stdin: bytes, problem: str) -> None:
    run = lorabank("predict", "--task", "spam", "-", input=stdin)
    assert run.returncode == 6
    assert f"'standard input', {problem}" in run.stderr.decode()


def test_the_library_refuses_texts_that_cannot_be_encoded(bank: Bank) -> None:
    from lorabank import PredictConfig, api
    from lorabank.core.errors import ConfigError

    for text, problem in (("caf\udce9", "lone surrogate at position 4"), ("a\x00b", "NUL character at position 2")):
        with pytest.raises(ConfigError, match=rf"text 2: a {problem}"):
            api.predict("bank", ["good", text], PredictConfig(task="spam"))


@pytest.mark.parametrize("value", ["bash_source", "fish_source"])
def test_completion_to_a_broken_stream_is_no_bug(value: str) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "lorabank_cli"]
        environment = {**os.environ, "_LORABANK_COMPLETE": value}
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, env=environment)
    assert run.returncode == 10
    assert re.fullmatch(
        rb"error: standard output: [^\n]*\n  everything that was stored is kept\n  hint: [^\n]*\n", run.stderr
    )


def test_a_completion_for_an_unknown_shell_is_a_usage_error() -> None:
    run = lorabank(env={**os.environ, "_LORABANK_COMPLETE": "csh_source"})
    assert run.returncode == 2
    assert b"bash_source" in run.stderr
