"""What Python, its libraries and the system say when memory, address space, threads or the disk run out."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from lorabank.core.errors import StorageError

KEPT = "everything that was stored is kept"
"""What stayed unchanged where nothing else is known: a bank is changed in whole transactions."""

_MEMORY = (
    "allocate memory",  # the C library, PyTorch's allocators, the loader of shared objects
    "failed to map segment",
    "cannot apply additional memory protection",
    "cannot create shared object descriptor",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "alloc_failed",  # of CUDA's libraries
    "unable to mmap",
)
_THREADS = ("start new thread", "resource temporarily unavailable", "pthread_create")
_WRITER = ("inline_container.cc", "pytorchstreamwriter")  # of torch.save, which says nothing of the reason
_NUMBER = re.compile(r"\(os error (\d+)\)")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_SAID_BY = (ImportError, OSError, RuntimeError)
"""Classes whose text is a library's; others hold what a user or a file says."""


def exhausted(error: BaseException) -> StorageError | None:
    """The error that says what ran out, when that is why ``error`` was raised: itself, or what it was raised from."""
    for one in _chain(error):
        text = _text(one)
        if isinstance(one, MemoryError) or any(words in text for words in _MEMORY):
            return StorageError("out of memory", hint="choose a smaller --batch-size or --max-length", unchanged=KEPT)
        if any(words in text for words in _THREADS):
            return StorageError(
                "the system cannot start more threads",
                hint="set OMP_NUM_THREADS=1, or raise the limit of ulimit -u",
                unchanged=KEPT,
            )
    return None


def hidden_os_error(error: BaseException) -> OSError | None:
    """What the system refused behind the error of a library that reads or writes files; None where that is not why."""
    for one in _chain(error):
        text = _text(one)
        if type(one).__name__ == "SafetensorError" and (found := _NUMBER.search(text)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        if isinstance(one, RuntimeError) and any(words in text for words in _WRITER):
            causes = (cause for cause in _chain(one) if isinstance(cause, OSError))
            return next(causes, OSError(errno.EIO, "a file could not be written"))
    return None


def space_hint(error: OSError) -> str | None:
    """What to do where the disk is full."""
    return "free some space and run the same command again" if error.errno in _FULL else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _text(error: BaseException) -> str:
    """What a library says in an error, in lower case; nothing that holds a name of the user's."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    said = isinstance(error, _SAID_BY) or type(error).__name__ == "SafetensorError"
    return str(error).lower() if said else ""
