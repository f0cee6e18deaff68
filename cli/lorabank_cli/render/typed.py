"""What a person types at a terminal: messages of one or more lines, with a history, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper, UnsupportedOperation
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from lorabank.core.errors import DataError
from lorabank_cli.render.output import Output

_PROMPT, _MORE, _QUOTES = ">>> ", "... ", '"""'
_KEPT = 1000
"""Lines of the history."""


class Message(NamedTuple):
    """What was typed.

    Attributes:
        text: Without the marks that hold its lines together.
        command: Whether it is a command of the conversation: a line that begins with a slash.
    """

    text: str
    command: bool


class Typed:
    """Messages from the terminal; used as a context, at whose end the history is kept for the next time.

    The arrow keys work where standard output is a terminal too.

    Args:
        output: Where it asks for a line.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._edits = sys.stdin.isatty() and sys.stdout.isatty()
        self._readline: Any = None

    def __enter__(self) -> Self:
        if isinstance(sys.stdin, TextIOWrapper):
            with suppress(UnsupportedOperation):  # a part of it was read before
                sys.stdin.reconfigure(errors="surrogateescape")  # what is not UTF-8 is refused line by line
        if self._edits:
            with suppress(ImportError, OSError):
                import readline

                self._readline = readline
                readline.set_history_length(_KEPT)
                readline.read_history_file(history_file())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._readline is not None and self._readline.get_current_history_length():
            with suppress(OSError):  # without a home that can be written to, there is no history
                history_file().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._readline.write_history_file(history_file())

    def message(self) -> Message:
        """The next message: a line, more of them where each ends in a backslash, or all between triple quotes.

        Raises:
            DataError: A line is not UTF-8, which drops the lines that were typed.
            EOFError: There is no more.
            KeyboardInterrupt: Ctrl-C, which drops the lines that were typed.
        """
        line = self._line(_PROMPT)
        if line.lstrip().startswith(_QUOTES):
            text = line.lstrip().removeprefix(_QUOTES)
            while _QUOTES not in text:
                text += f"\n{self._line(_MORE)}"
            return Message(text.partition(_QUOTES)[0].strip("\n"), False)
        if line.startswith("/"):
            return Message(line, True)
        while line.endswith("\\"):
            line = f"{line.removesuffix(chr(92))}\n{self._line(_MORE)}"
        return Message(line, False)

    def _line(self, prompt: str) -> str:
        line = input(prompt) if self._edits else self._plain(prompt)
        try:
            line.encode()
        except UnicodeEncodeError as error:
            raise DataError("what was typed is not UTF-8", unchanged="nothing was asked") from error
        return line

    def _plain(self, prompt: str) -> str:
        self._output.piece(prompt, err=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")


def history_file() -> Path:
    """Where the lines of earlier conversations are, of the XDG base directories that of states."""
    folder = os.environ.get("XDG_STATE_HOME", "")
    return Path(folder if os.path.isabs(folder) else os.path.expanduser("~/.local/state")) / "lorabank/chat_history"


class Interrupts:
    """Ctrl-C in a conversation: it ends the answer that is being given; elsewhere it is a KeyboardInterrupt.

    Used as a context.

    Attributes:
        pressed: Whether it was pressed since the answer began.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._answering = False
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGINT)
        if callable(self._before):  # under nohup it stays ignored
            signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """The time of one answer; who presses a second time does not wait for its next token."""
        self.pressed, self._answering = False, True
        try:
            yield
        finally:
            self._answering = False

    def _take(self, *_: object) -> None:
        if not self._answering or self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
