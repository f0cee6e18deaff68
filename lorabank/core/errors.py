"""The exceptions a user can meet: each knows its exit code, what stayed unchanged and what to type next.

Exit codes are part of the command line's contract (docs/errors.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from lorabank.core.commands import VERIFY, Command

E = TypeVar("E", bound="LorabankError")

MAX_MESSAGE = 6000
"""Characters of a message; the place that it names stands at its beginning."""

_MAX_PROBLEM = 300


class LorabankError(Exception):
    """An error a user can act on.

    Args:
        message: One line that names the thing: file, row, column, key, task.
        hint: What to do next, in words.
        commands: What can be typed next, each shown on a line of its own.
        unchanged: What stayed as it was, for example ``"the bank was not changed"``.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, hint: str | None = None, commands: Sequence[Command] = (), unchanged: str | None = None
    ) -> None:
        self.message = _fitting(message)
        super().__init__(self.message)
        self.hint = hint
        self.commands = tuple(commands)
        self.unchanged = unchanged

    def saying(self, message: str, *, unchanged: str | None = None) -> Self:
        """The same error with another message; ``unchanged`` where it does not say itself what stayed."""
        again = _again(type(self), ())
        again.__dict__.update(self.__dict__)
        again.message, again.unchanged = _fitting(message), self.unchanged or unchanged
        again.args = (again.message,)
        return again

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args), self.__dict__  # whatever the constructor of a subclass takes


def joined(problems: Sequence[str]) -> str:
    """Problems on one line, each cut where it is long; those that do not fit into a message are counted."""
    found, room = [], MAX_MESSAGE - 500  # for what a message says before and behind them
    for problem in problems:
        found.append(problem if len(problem) <= _MAX_PROBLEM else f"{problem[:_MAX_PROBLEM]}...")
        room -= len(found[-1]) + 2
        if room < 0:
            break
    more = len(problems) - len(found)
    return "; ".join([*found, *([f"and {more} more"] if more else [])])


def _fitting(message: str) -> str:
    """A key or a label of a file, which a message quotes, can be as long as the file."""
    return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}..."


def _again(kind: type[E], args: tuple[Any, ...]) -> E:
    """An error as it was made, without its constructor."""
    return kind.__new__(kind, *args)


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
    """Stored bytes that no longer match their digest.

    An error without a next step proposes ``verify --full``, which lists everything that is damaged.
    """

    exit_code = 8

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        commands: Sequence[Command] = (),
        unchanged: str | None = None,
    ) -> None:
        commands = commands or (() if hint else (VERIFY,))
        unchanged = unchanged or "nothing was repaired or deleted"
        super().__init__(message, hint=hint, commands=commands, unchanged=unchanged)


class BusyError(LorabankError):
    """Another process holds what this one needs."""

    exit_code = 9


class StorageError(LorabankError):
    """No space, memory, open files or threads left, or an input/output error."""

    exit_code = 10


class DivergedError(LorabankError):
    """Numbers that mean nothing: not finite in training, answers or an export; or a training that changed nothing."""

    exit_code = 11


class GateError(LorabankError):
    """A measured value that does not satisfy a ``--gate`` or a ``--tolerance``."""

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
        raise error.saying(f"{what}: {error.message}") from error


@contextmanager
def leaving(
    unchanged: str,
    *,
    hint: str | None = None,
    commands: Sequence[Command] = (),
    kinds: tuple[type[LorabankError], ...] = (LorabankError,),
) -> Iterator[None]:
    """Complete an error of the block that does not say what stayed unchanged, or what to do next.

    Args:
        unchanged: What stayed as it was, whatever the block did before the error.
        hint: What to do next, in words.
        commands: What can be typed next.
        kinds: The classes of the errors that are completed.

    Raises:
        LorabankError: The error itself; what it says already is kept.
    """
    try:
        yield
    except kinds as error:
        error.unchanged = error.unchanged or unchanged
        if not error.hint and not error.commands:
            error.hint, error.commands = hint, tuple(commands)
        raise
