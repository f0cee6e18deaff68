"""Commands that a browser waits for: what they said, and their end when nobody waits any longer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lorabank.core.commands import Command
from lorabank.page.errors import PageError
from lorabank.page.jobs import workshop
from lorabank.page.jobs.workshop import Workshop

PROGRAM = """
import os, signal, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
with open(sys.argv[-1], "w") as file:
    file.write(str(os.getpid()))
print("words", sys.argv[3:-1], flush=True)
time.sleep(0 if "quick" in sys.argv else 600)
"""


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    return Workshop(
        cast(Any, SimpleNamespace(path=tmp_path / "bank")),
        cast(Any, None),
        cast(Any, None),
        (sys.executable, str(program)),
    )


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_command_says_what_it_did(shop: Workshop, tmp_path: Path) -> None:
    ran = shop.run(Command("quick", str(tmp_path / "pid")), lambda: False)
    assert (ran.code, ran.said) == (0, "words ['quick']")


@pytest.mark.parametrize("word", ["polite", "deaf"])
def test_a_command_ends_when_the_server_waits_no_longer(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setattr(workshop, "_PATIENCE", 0.5)
    pid = tmp_path / "pid"
    with pytest.raises(PageError, match="the server is stopping") as caught:
        shop.run(Command(word, str(pid)), lambda: pid.exists() and bool(pid.read_text()))
    assert caught.value.status == 503
    assert not alive(int(pid.read_text()))


def test_a_command_that_takes_too_long_is_ended_and_makes_room_for_the_next(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workshop, "_SECONDS", 2)
    with pytest.raises(PageError, match="longer than 2 seconds and was ended") as caught:
        shop.run(Command("polite", str(tmp_path / "pid")), lambda: False)
    assert caught.value.status == 504
    assert not alive(int((tmp_path / "pid").read_text()))
    assert shop.run(Command("quick", str(tmp_path / "pid")), lambda: False).code == 0


def test_one_command_at_a_time(shop: Workshop, tmp_path: Path) -> None:
    with shop.turn, pytest.raises(PageError, match="another command of this page is running"):
        shop.run(Command("quick", str(tmp_path / "pid")), lambda: False)
    assert not (tmp_path / "pid").exists()
