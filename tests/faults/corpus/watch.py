"""What a process does beyond its bank: files it writes, addresses it asks, programs and pickles it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# The audit events whose first arguments are paths that are changed, with how many, and where their dir_fd stands.
_CHANGES = {
    "os.mkdir": (1, 2), "os.remove": (1, 1), "os.rmdir": (1, 1), "os.rename": (2, 2), "os.link": (2, 2),
    "os.symlink": (2, 2), "os.truncate": (1, None), "os.chmod": (1, 2), "os.utime": (1, 3),
    "sqlite3.connect": (1, None),
}  # fmt: skip
_NEVER = (
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system", "os.exec",
    "os.posix_spawn", "os.fork", "pickle.find_class", "urllib.Request",
)  # fmt: skip

_watching: list[Watch] = []
_hooked = False


class Watch:
    """A context manager that notes what happens outside ``allowed`` and what must never happen.

    Args:
        allowed: Folders in which files may be written.

    Attributes:
        seen: One line each.
    """

    def __init__(self, allowed: Sequence[Path]) -> None:
        self._allowed = tuple(f"{os.path.realpath(folder)}{os.sep}" for folder in allowed)
        self.seen: list[str] = []

    def __enter__(self) -> Watch:
        global _hooked
        if not _hooked:
            sys.addaudithook(_hook)  # for good: a hook cannot be taken away
            _hooked = True
        _watching.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _watching.remove(self)

    def note(self, event: str, args: tuple[Any, ...]) -> None:
        """Take one audit event."""
        if event in _NEVER:
            if not (event == "pickle.find_class" and _harmless(args)):
                self.seen.append(f"{event} {args!r}"[:200])
        elif event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & _WRITING:
                self._written(event, path, None)
        elif event in _CHANGES:
            count, at = _CHANGES[event]
            where = args[at] if at is not None and at < len(args) else None
            for path in args[:count]:
                self._written(event, path, where)

    def _written(self, event: str, path: Any, folder: Any) -> None:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        path = os.fsdecode(path).removeprefix("file://").partition("?")[0]
        if isinstance(folder, int) and folder >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        real = os.path.realpath(os.path.dirname(path) or ".") + os.sep + os.path.basename(path)
        if not f"{real}{os.sep}".startswith((*self._allowed, "/dev/", "/proc/")) and "__pycache__" not in real:
            self.seen.append(f"{event} {real!r}"[:300])


def _harmless(args: tuple[Any, ...]) -> bool:
    """Copies through pickle that libraries make of their own plain objects."""
    return str(args[0]).split(".")[0] in (
        "collections",
        "copyreg",
        "numpy",
        "torch",
        "transformers",
        "huggingface_hub",
    )


def _hook(event: str, args: tuple[Any, ...]) -> None:
    for watch in tuple(_watching):
        watch.note(event, args)
