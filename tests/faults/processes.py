"""Children and places: a fork that begins when it is told and says how it ended, and folders in memory."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorabank.core.errors import LorabankError

Say = Callable[[str], None]

ENDED, FAILED = 0, 1
"""Exit codes of a child: its action returned, or raised something that is not lorabank's."""


class Child:
    """A fork of this process, which has everything imported already: it starts in milliseconds.

    Args:
        action: Runs in the child once ``begin`` was called. It gets a function that says a line to the parent; a line
            that was said arrives even when the child is killed right after.
    """

    def __init__(self, action: Callable[[Say], object]) -> None:
        hears, says = os.pipe()
        waits, begins = os.pipe()
        gc.freeze()  # a collection in the child would copy every page that holds an object of ours
        self.pid = os.fork()
        if self.pid == 0:
            os.close(hears)
            os.close(begins)
            if os.read(waits, 1):
                _run(action, lambda line: os.write(says, f"{line}\n".encode()))
            os._exit(FAILED)
        os.close(says)
        os.close(waits)
        self._begins = begins
        self.lines = os.fdopen(hears)
        self._code: int | None = None

    def begin(self) -> None:
        """Let the child start."""
        os.write(self._begins, b"x")

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def said(self) -> list[str]:
        """All lines that were not read yet; waits for the child's end."""
        return self.lines.read().splitlines()

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._begins)
            self.lines.close()
        return self._code


def _run(action: Callable[[Say], object], say: Callable[[str], object]) -> None:
    code = FAILED
    try:
        action(lambda line: void(say(line)))
        code = ENDED
    except LorabankError as error:
        say(f"error {type(error).__name__} {error.exit_code}: {' '.join(error.message.split())}")
        code = error.exit_code
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        say(f"error {type(error).__name__} 1: {' '.join(str(error).split())} ({where})")
    finally:
        for folder in (folder for maker, folder in _KEPT if maker == os.getpid()):
            folder.cleanup()
        os._exit(code)


_KEPT: list[tuple[int, tempfile.TemporaryDirectory[str]]] = []


def kept_folder() -> Path:
    """A folder that lives as long as the process that made it; forks of it may read it."""
    folder = tempfile.TemporaryDirectory(prefix="lorabank-faults-", dir=_memory())
    _KEPT.append((os.getpid(), folder))
    return Path(folder.name)


def _memory() -> Path | None:
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else None


def void(_: object) -> None:
    """Drop a value."""


def ended(action: Callable[[Say], object]) -> tuple[int, list[str]]:
    """Run in a child to its end; its exit code and what it said."""
    child = Child(action)
    child.begin()
    said = child.said()
    return child.wait(), said


def in_a_fork(action: Callable[[], Any]) -> Any:
    """The result of a function that may spoil the process it runs in.

    Raises:
        RuntimeError: It raised, or was killed.
    """
    with tempfile.TemporaryFile() as file:

        def run(_: Say) -> None:
            file.write(pickle.dumps(action()))
            file.flush()

        code, said = ended(run)
        if code != ENDED:
            raise RuntimeError(f"ended with {code}: {' '.join(said)}")
        file.seek(0)
        return pickle.load(file)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: what a killed process leaves there is the same, and syncs are free."""
    with tempfile.TemporaryDirectory(prefix="lorabank-faults-", dir=_memory()) as path:
        yield Path(path)


@contextmanager
def mounted(folder: Path, *words: str) -> Iterator[Path]:
    """Something mounted on a folder, taken off again at the end."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *words, str(folder)], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def cannot_mount() -> str | None:
    """Why nothing can be mounted here, None when it can."""
    if os.geteuid() != 0:
        return "needs root to mount"
    try:
        with scratch() as folder, mounted(folder / "m", "-t", "tmpfs", "-o", "size=1m", "none"):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"nothing can be mounted here ({error})"
