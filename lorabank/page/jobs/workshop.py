"""What the page needs to add tasks to a bank: its files, its trainings and the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lorabank.bank.bank import Bank
from lorabank.core.commands import Command
from lorabank.core.errors import ConfigError, DamagedError
from lorabank.page.config import PageConfig
from lorabank.page.errors import PageError
from lorabank.page.jobs.queue import Jobs
from lorabank.page.jobs.sources import Sources
from lorabank.serving.config import TOKEN

_FOLDER = "page"
"""Below ``work`` of the bank: what was uploaded, and what trainings wrote. Commands of the bank leave it alone."""
_SECONDS = 600
"""The longest that a command may take whose answer a browser waits for."""
_LOOK = 0.2
"""Seconds between two looks at whether the server still waits for such a command."""
_PATIENCE = 5.0
"""Seconds in which such a command ends by itself after Ctrl-C, before it is killed."""
_SAID = 200_000
"""Characters of what such a command wrote that are shown."""


class Ran(NamedTuple):
    """A command that has ended.

    Attributes:
        line: What can be pasted into a shell.
        code: Its exit code.
        said: What it wrote, or the beginning of that.
    """

    line: str
    code: int
    said: str


@dataclass(frozen=True)
class Workshop:
    """A bank to which tasks are added. It may be used from several threads."""

    bank: Bank
    jobs: Jobs
    sources: Sources
    program: tuple[str, ...]
    turn: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, bank: Bank, config: PageConfig, program: Sequence[str]) -> Workshop:
        """The one of a bank.

        Args:
            bank: The bank.
            config: Which folders may be read, and how large uploads may be.
            program: The words that start the command line.

        Raises:
            ConfigError: A folder that may be read is not there.
            DamagedError: A folder of the page is a link: what is uploaded or deleted would lie outside the bank.
        """
        for one in config.data_folders:
            if not Path(one).is_dir():
                raise ConfigError(
                    f"--data-folder {one} is not a folder",
                    hint="name a folder that is there",
                    commands=[Command("serve", "--page", "--allow-changes", "--data-folder", "FOLDER")],
                    unchanged="nothing was started",
                )
        folder = bank.path / "work" / _FOLDER
        uploads, said = folder / "uploads", folder / "said"
        for place in (folder.parent, folder, uploads, said):
            if config.allow_changes and place.is_symlink():
                raise DamagedError(f"{place} is a link", hint="remove the link", unchanged="nothing was started")
        sources = Sources(uploads, [Path(one) for one in config.data_folders], config.max_upload)
        return cls(bank, Jobs(bank.path, program, said), sources, tuple(program))

    def line(self, command: Command) -> str:
        """A command as it can be pasted into a shell."""
        return Command("-b", str(self.bank.path), *command).line()

    def run(self, command: Command, over: Callable[[], bool]) -> Ran:
        """Run a command that does not take long, and wait for it; it does not outlive the wait.

        Args:
            command: What to run, without the bank.
            over: Whether the server stops and waits no longer; asked from this thread.

        Raises:
            PageError: Another one runs, or this one was ended: it took too long, or the server stops.
        """
        if not self.turn.acquire(blocking=False):
            raise PageError(409, "another command of this page is running", hint="wait for it to end")
        try:
            with subprocess.Popen(
                [*self.program, "-b", str(self.bank.path), *command],  # whatever words a form brought
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in os.environ.items() if name != TOKEN},
                start_new_session=True,  # Ctrl-C of the server's terminal leaves it the time that calls have
            ) as child:
                said = _said_by(child, over)
        finally:
            self.turn.release()
        return Ran(self.line(command), child.returncode, said.decode("utf-8", "replace")[:_SAID].strip())


def _said_by(child: subprocess.Popen[bytes], over: Callable[[], bool]) -> bytes:
    """What a process wrote until its end, or until it is ended here.

    Raises:
        PageError: It was ended.
    """
    last = time.monotonic() + _SECONDS
    try:
        while True:
            try:
                return child.communicate(timeout=_LOOK)[0]
            except subprocess.TimeoutExpired:
                if over():
                    raise PageError(503, "the server is stopping, and the command was ended") from None
                if time.monotonic() > last:
                    raise PageError(504, f"the command took longer than {_SECONDS} seconds and was ended") from None
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
            try:
                child.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
