"""The two streams: data to stdout (text or one JSON document), everything else to stderr."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import click

from lorabank.core.commands import Command
from lorabank.core.escaping import safe
from lorabank_cli.render.text import shown, wants_color

if TYPE_CHECKING:
    from lorabank.core.errors import LorabankError


def plain(value: Any, bank: str | None = None) -> Any:
    """Records, tuples, paths and NaN as what JSON knows: objects, lists, strings and null; commands about ``bank``."""
    fields = getattr(value, "_fields", None) or getattr(value, "__dataclass_fields__", None)
    if fields:
        return {name: plain(getattr(value, name), bank) for name in fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item, bank) for key, item in value.items()}
    if isinstance(value, Command):
        return value.line(bank)
    if isinstance(value, Sequence | Set) and not isinstance(value, str | bytes):
        return [plain(item, bank) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def as_json(document: Any, bank: str | None = None) -> str:
    """One document; ASCII only, so that no control character reaches a terminal."""
    import json

    return json.dumps(plain(document, bank), indent=2, allow_nan=False).replace("\x7f", "\\u007f")


class Output:
    """What one command writes.

    Args:
        json: Whether stdout carries one JSON document instead of text.
        quiet: Whether notices are left out.
        debug: Whether errors show their traceback.
        silent: Whether another process of several speaks for this one.

    Attributes:
        bank: The bank of this call, where it is not the one that is taken by default.
        words: What was typed behind ``lorabank``.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, debug: bool = False, silent: bool = False) -> None:
        self.silent = silent
        self.json = json
        self.quiet = quiet
        self.debug = debug
        self.bank: str | None = None
        self.words: tuple[str, ...] = ()
        self.written = False
        self.interrupted = False

    def interrupt(self, *_: object) -> None:
        """Take Ctrl-C.

        Python drops a KeyboardInterrupt that is raised in a destructor or a callback, so that work would go on; the
        flag lets the next step of the work raise it again.
        """
        self.interrupted = True
        raise KeyboardInterrupt

    def data(self, document: Any, text: str) -> None:
        """Write the result: ``document`` with ``--json``, else ``text`` (escaped by its maker)."""
        self.written = True
        color = not self.json and wants_color(sys.stdout)
        written = as_json(document, self.bank) if self.json else shown(text, color=color)
        if written and not self.silent:
            click.echo(written, color=color)

    def item(self, document: Any, text: str) -> None:
        """Write one of several results: with ``--json`` the ``document`` on one line, else ``text``."""
        import json

        self.written = True
        written = json.dumps(plain(document, self.bank), allow_nan=False) if self.json else shown(text, color=False)
        if not self.silent:
            click.echo(written.replace("\x7f", "\\u007f") if self.json else written)

    def piece(self, text: str, *, err: bool = False) -> None:
        """Write a part of a line at once, escaped by its maker; ``err``: to a person, beside the results."""
        click.echo(text, nl=False, err=err)
        (sys.stderr if err else sys.stdout).flush()

    def line(self, command: Command) -> str:
        """A command that is proposed, as it can be pasted: about the bank of this call."""
        return safe(command.line(self.bank))

    def next(self, *commands: Command, title: str = "next") -> str:
        """Commands below a result, each on a line of its own."""
        return "\n".join([f"{title}:", *(f"  {self.line(command)}" for command in commands)])

    def notice(self, message: str) -> None:
        """Write one line about what happens, unless ``--quiet``."""
        if not self.quiet and not self.silent:
            click.echo(safe(message), err=True)

    def aside(self, text: str) -> None:
        """Write lines that are not results to stderr, ``--quiet`` or not."""
        click.echo(shown(text, color=False), err=True, color=False)

    def error(self, error: LorabankError) -> None:
        """Write an error, silent or not; with ``--json`` also as the one document, unless a result was written."""
        head = click.style("error:", fg="red", bold=True)
        lines = [f"{head} {safe(error.message)}"]
        if error.unchanged:
            lines.append(f"  {safe(error.unchanged)}")
        if error.hint or error.commands:
            lines.append(f"  hint: {safe(error.hint or '')}".rstrip())
        lines += [f"    {self.line(command)}" for command in error.commands]
        click.echo("\n".join(lines), err=True, color=wants_color(sys.stderr))
        if self.json and not self.written:
            document = {
                "kind": type(error).__name__,
                "exit_code": error.exit_code,
                "message": error.message,
                "unchanged": error.unchanged,
                "hint": error.hint,
                "commands": error.commands,
            }
            self.silent = False
            self.data({"error": document}, "")
