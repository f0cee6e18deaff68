"""System calls of a child, through strace: recorded, or disturbed at the k-th call of a kind."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from tests.faults.processes import Child, Say, void

CALLS = (
    "write", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate", "rename", "renameat", "renameat2", "unlink",
    "unlinkat", "rmdir", "openat", "mkdir", "mkdirat", "fcntl", "flock", "fchmod", "chmod", "utimensat",
)  # fmt: skip
"""Every call by which a process changes files, or takes a lock on them."""

_LINE = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+|\?)")
_WORD = re.compile(r'"((?:\\x[0-9a-f]{2})*)"|([^,\s][^,]*)')

Action = Callable[[Say], object]


@dataclass(frozen=True)
class Call:
    """One call that returned without an error: its name, its arguments (strings as bytes), its result."""

    name: str
    arguments: tuple[bytes | str, ...]
    result: int


@cache
def cannot_trace() -> str | None:
    """Why strace cannot be used here, None when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    try:
        status, _, calls = recorded(lambda say: say("here"))
    except OSError as error:
        return f"strace cannot attach: {error}"
    return None if status == 0 and calls else "strace cannot attach to a child"


def traced(action: Action, *options: str) -> tuple[int, list[str]]:
    """Run an action in a child under strace; its exit code and what it said.

    Raises:
        OSError: strace could not attach.
    """
    child = Child(action)
    with subprocess.Popen(["strace", "-p", str(child.pid), *options], stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        if "attached" not in said:
            child.kill()
            child.wait()
            raise OSError(said.strip())
        child.begin()
        lines = child.said()
        code = child.wait()
        void(strace.stderr.read())
    return code, lines


def disturbed(action: Action, call: str, how: str) -> tuple[int, list[str]]:
    """Run an action with a fault in one kind of call, for example ``signal=KILL:when=3`` or ``error=EIO:when=3``."""
    return traced(action, "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{how}")


def recorded(action: Action, *more: str) -> tuple[int, list[str], list[Call]]:
    """Run an action and record its calls, with every byte it wrote; ``more`` are options of strace."""
    with tempfile.NamedTemporaryFile("r") as log:
        options = ("-o", log.name, "-xx", "-s", "16777216", "-e", f"trace={','.join(CALLS)}", *more)
        code, said = traced(action, *options)
        return code, said, list(_parsed(log))


def counted(action: Action, calls: Sequence[str] = CALLS) -> Counter[str]:
    """How often an action makes each call, up to the line ``done``; failed calls count too."""
    with tempfile.NamedTemporaryFile("r") as log:
        code, said = traced(action, "-o", log.name, "-s", "16", "-e", f"trace={','.join(calls)}")
        if code != 0:
            raise RuntimeError(f"the undisturbed action failed: {said}")
        return Counter(match[1] for match in map(re.compile(r"(\w+)\(").match, log) if match)


def _parsed(log: Iterator[str]) -> Iterator[Call]:
    for line in log:
        match = _LINE.match(line)
        if match and match[3].isdigit():
            yield Call(match[1], tuple(map(_argument, _WORD.finditer(match[2]))), int(match[3]))


def _argument(match: re.Match[str]) -> bytes | str:
    if match[1] is None:
        return match[2]
    return bytes.fromhex(match[1].replace("\\x", ""))
