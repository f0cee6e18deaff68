"""Every exception as a message with an exit code; imported when something failed."""

from __future__ import annotations

import re
import traceback

import click

from lorabank.core.commands import Command
from lorabank.core.errors import LorabankError, StorageError
from lorabank.core.machine.distributed import failed_before
from lorabank.core.machine.exhaustion import KEPT, exhausted, hidden_os_error, space_hint
from lorabank.core.settings import nearest
from lorabank_cli.render.output import Output

_CHOICE = re.compile(r"'([^']*)' is not one of ('.*')$")
_PLAIN = {"a valid integer range": "a whole number", "a valid float range": "a number"}
"""Click's words for the values of a bounded option, and ours."""


class Interrupted(LorabankError):
    """Ctrl-C, or a question answered with no."""

    exit_code = 130


class InternalError(LorabankError):
    """A bug."""


class UsageError(LorabankError):
    """Words that the command line does not understand."""

    exit_code = 2


def report_failure(error: BaseException, output: Output) -> int:
    """Write the error and return its exit code; of several processes only the first that fails says why."""
    known = as_known(error)
    if (code := failed_before(known.exit_code)) is not None:
        return code
    if output.debug:
        output.aside("".join(traceback.format_exception(error)).rstrip("\n"))
    output.error(known)
    return known.exit_code


def as_known(error: BaseException) -> LorabankError:
    """The error itself, or the one of ours that says the same; what ran out comes before what failed for it."""
    if isinstance(error, StorageError):
        return error
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return Interrupted("interrupted")
    if isinstance(error, click.ClickException):
        return _usage(error)
    if (known := exhausted(error)) is not None:
        return known
    if isinstance(error, LorabankError):
        return error
    if isinstance(error, ValueError) and "embedded null" in str(error):  # only a config file can hold one
        return UsageError(
            "a path holds a NUL character", commands=[Command("--help")], unchanged="nothing was changed"
        )
    if isinstance(error, UnicodeEncodeError):
        return _unwritable(error)
    refused = error if isinstance(error, OSError) else hidden_os_error(error)
    if refused is not None:
        where = f" ({refused.filename})" if refused.filename else ""
        return StorageError(f"{refused.strerror or refused}{where}", hint=space_hint(refused), unchanged=KEPT)
    return InternalError(
        f"internal error: {type(error).__name__}: {error}",
        hint="run it again with --debug and report the traceback",
        unchanged=KEPT,
    )


def _unwritable(error: UnicodeEncodeError) -> LorabankError:
    """A file's name in another encoding than UTF-8, or a name that this locale has no letters for."""
    if error.encoding.lower().startswith("utf"):
        return UsageError(
            f"{error.object[:80]!r} is not UTF-8",
            hint="rename the file, or name another one",
            unchanged="nothing was changed",
        )
    return UsageError(
        f"{error.object[:80]!r} cannot be written in {error.encoding}, the encoding of file names in this locale",
        hint="export LC_ALL=C.UTF-8, and the same command again",
        unchanged="nothing was changed",
    )


def _usage(error: click.ClickException) -> LorabankError:
    """What click says on one line, with the nearest of the choices and where to read on."""
    ctx = getattr(error, "ctx", None)
    message = " ".join(error.format_message().replace(",\n\t", ", ").split()).removesuffix(".")
    for theirs, ours in _PLAIN.items():
        message = message.replace(f"is not {theirs}", f"is not {ours}")
    if (choice := _CHOICE.search(message)) is not None:
        message += nearest(choice[1], re.findall(r"'([^']*)'", choice[2]))
    verbs = ctx.command_path.split()[1:] if ctx is not None else ()
    return UsageError(message, commands=[Command(*verbs, "--help")], unchanged="nothing was changed")
