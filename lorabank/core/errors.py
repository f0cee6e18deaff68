"""The exceptions a user can meet: each knows its exit code, what stayed unchanged and what to type next.

Exit codes are part of the command line's contract (docs/errors.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MAX_MESSAGE = 1500
"""Characters of a message; the place that it names stands at its beginning."""


class LorabankError(Exception):
    """An error a user can act on.

    Args:
        message: One line that names the thing: file, row, column, key, task.
        hint: The next thing to type or do, shown on a second line.
        unchanged: What stayed as it was, for example ``"the bank was not changed"``.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, unchanged: str | None = None) -> None:
        if len(message) > MAX_MESSAGE:  # a key or a label of a file can be as long as the file
            message = f"{message[:MAX_MESSAGE]}..."
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.unchanged = unchanged


class ConfigError(LorabankError):
    """A setting, option or name that cannot be used."""

    exit_code = 2


class NotFoundError(LorabankError):
    """A bank, task, composition or file that is not there."""

    exit_code = 3


class ExistsError(LorabankError):
    """A name or target that is taken already."""

    exit_code = 4


class IncompatibleError(LorabankError):
    """A base model, adapter or schema that does not fit the bank."""

    exit_code = 5


class DataError(LorabankError):
    """A data file or adapter file whose content is wrong."""

    exit_code = 6


class MissingExtraError(LorabankError):
    """An optional dependency or an environment that is missing."""

    exit_code = 7


class DamagedError(LorabankError):
    """Stored bytes that no longer match their digest."""

    exit_code = 8


class BusyError(LorabankError):
    """Another process holds what this one needs."""

    exit_code = 9


class StorageError(LorabankError):
    """No space, memory, open files or threads left, or an input/output error."""

    exit_code = 10


class DivergedError(LorabankError):
    """Numbers that mean nothing: not finite in training, answers or an export; or a training that moved nothing."""

    exit_code = 11


class GateError(LorabankError):
    """A measured value that does not satisfy a ``--gate``."""

    exit_code = 12


@contextmanager
def at_work(what: str) -> Iterator[None]:
    """Say in a `DivergedError` of the block what was at work: a composition, a task.

    Raises:
        DivergedError: With ``what`` before its message.
    """
    try:
        yield
    except DivergedError as error:
        raise DivergedError(f"{what}: {error.message}", hint=error.hint, unchanged=error.unchanged) from error
