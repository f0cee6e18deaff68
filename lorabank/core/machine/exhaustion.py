"""What Python, its libraries and the system say when memory, address space or threads run out."""

from __future__ import annotations

import os
from collections.abc import Iterator

from lorabank.core.errors import StorageError

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
_SAID_BY = (ImportError, OSError, RuntimeError)
"""Classes whose text is a library's; others hold what a user or a file says."""


def exhausted(error: BaseException) -> StorageError | None:
    """The error that says what ran out, when that is why ``error`` was raised: itself, or what it was raised from."""
    for one in _chain(error):
        text = _text(one)
        if isinstance(one, MemoryError) or any(words in text for words in _MEMORY):
            return StorageError("out of memory", hint="a smaller --batch-size or --max-length needs less")
        if any(words in text for words in _THREADS):
            return StorageError(
                "the system cannot start more threads", hint="OMP_NUM_THREADS=1 needs fewer; ulimit -u"
            )
    return None


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
