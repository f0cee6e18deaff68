"""A conversation in the terminal, and its commands; or one question a line from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, cast

from lorabank.core.errors import DataError
from lorabank.core.escaping import safe
from lorabank.core.settings import nearest
from lorabank_cli.failures import InternalError, as_known
from lorabank_cli.render.streams import STDIN, bytes_of
from lorabank_cli.render.text import table
from lorabank_cli.render.typed import Interrupts, Typed
from lorabank_cli.verb import Run

if TYPE_CHECKING:
    from lorabank.workflows.asking.chat import Chat, ChatAnswer

_HELP = (
    ("/task NAME", "let a task answer; without a name: list the tasks"),
    ("/composition NAME", "let a composition answer; without a name: list the compositions"),
    ("/base", "let the bare base answer"),
    ("/who", "say which task and which adapters gave the last answer"),
    ("/clear", "forget what was said"),
    ("/save FILE", "write the conversation as a row that add-task --data can learn from"),
    ("/quit", "leave; Ctrl-D does too"),
    ('"""', "begin and end a message of several lines; or end each line but the last with a backslash"),
    ("Ctrl-C", "stop the answer, and keep what was said"),
)
_SAME = {"/exit": "/quit", "/bye": "/quit", "/?": "/help"}
_BARE = "none"
_UTF8 = "write one question a line in UTF-8"


class _Told:
    """What people are told of answers beside their text, each thing once.

    Args:
        run: The call.
    """

    def __init__(self, run: Run) -> None:
        self._notice = run.output.notice
        self._said: set[str] = set()

    def __call__(self, chat: Chat, answer: ChatAnswer) -> None:
        """Say why an answer is short, and what was not read for it."""
        if answer.finish == "length":
            self._notice(f"the answer was cut off after {answer.tokens} tokens; --max-new-tokens allows more")
        if answer.left_out and chat.remembers:
            self._once(f"{_name(answer.task)} did not read all that was said before: it learnt shorter prompts")

    def _once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._notice(message)


def answer_lines(run: Run, chat: Chat) -> None:
    """Answer each line of standard input as soon as it is there; nothing in it is a command."""
    from lorabank.data.formats.lines import each_text

    told = _Told(run)
    for _, text in each_text(cast(BinaryIO, bytes_of(sys.stdin)), STDIN, hint=_UTF8):
        answer = chat.ask(text)
        run.output.item({"asked": text, **answer._asdict()}, _lines(answer.text))
        sys.stdout.flush()
        told(chat, answer)


class Conversation:
    """A conversation at a terminal.

    Args:
        run: The call.
        chat: Who is talked to.
    """

    def __init__(self, run: Run, chat: Chat) -> None:
        self._output, self._chat, self._told = run.output, chat, _Told(run)
        self._keys = Interrupts()
        self._commands: dict[str, Callable[[str], None]] = {
            "/task": self._task,
            "/composition": self._composition,
            "/base": lambda _: self._turn(lambda: self._chat.ask_task(_BARE)),
            "/who": lambda _: self._who(),
            "/clear": lambda _: self._clear(),
            "/save": self._save,
            "/help": lambda _: self._output.aside(table(("type", "to"), _HELP)),
        }

    def hold(self) -> None:
        """Take turns until the user leaves."""
        self._notice_who()
        self._output.notice("/help lists the commands, Ctrl-D leaves")
        warned = False
        with Typed(self._output) as typed, self._keys:
            while True:
                try:
                    message = typed.message()
                except EOFError:
                    self._output.aside("")
                    return
                except KeyboardInterrupt:
                    self._output.aside("")
                    if warned:
                        return
                    warned = True
                    self._output.notice("Ctrl-C once more leaves, as Ctrl-D and /quit do")
                    continue
                except DataError as error:
                    self._output.error(error)
                    continue
                warned = False
                text = message.text.strip()
                if message.command and _SAME.get(text, text) == "/quit":
                    return
                if text:
                    self._safely(self._obey if message.command else self._ask, text)

    def _safely(self, act: Callable[[str], None], text: str) -> None:
        """Do something; what goes wrong is told, and the conversation stays."""
        try:
            act(text)
        except KeyboardInterrupt:
            self._output.aside("")
            self._output.notice("stopped; the conversation is as it was before the question")
        except Exception as error:
            known = as_known(error)
            if isinstance(known, InternalError):
                raise
            self._output.error(known)

    def _obey(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        name = _SAME.get(name, name)
        if name in self._commands:
            self._commands[name](rest.strip())
            return
        guess = nearest(name, [*self._commands, "/quit"]) or "."
        self._output.aside(f"there is no command {safe(name)}{guess} To say it, begin with a blank")

    def _ask(self, text: str) -> None:
        heard = False

        def hear(piece: str) -> None:
            nonlocal heard
            heard = True
            self._output.piece(_lines(piece))

        try:
            with self._keys.ending():
                answer = self._chat.ask(text, hear, lambda: self._keys.pressed)
        except BaseException:
            if heard:
                self._output.piece("\n")
            raise
        self._output.piece(("" if heard else _lines(answer.text)) + "\n")
        if answer.finish == "ended":
            kept = "what was said is kept" if answer.text else "nothing was said, so the question is not kept"
            self._output.notice(f"stopped; {kept}")
        self._told(self._chat, answer)

    def _task(self, name: str) -> None:
        if name:
            self._turn(lambda: self._chat.ask_task(name))
        else:
            self._list("task", self._chat.tasks)

    def _composition(self, name: str) -> None:
        if name:
            self._turn(lambda: self._chat.ask_composition(name))
        else:
            self._list("composition", self._chat.compositions)

    def _list(self, kind: str, names: tuple[str, ...]) -> None:
        self._output.aside("\n".join(map(safe, names)) if names else f"the bank has no {kind}")

    def _turn(self, choose: Callable[[], None]) -> None:
        choose()
        self._notice_who()

    def _notice_who(self) -> None:
        chat = self._chat
        name = f"composition {chat.answers}" if chat.answers in chat.compositions else _name(chat.answers)
        alone = "" if chat.remembers else "; the base has no chat template, so each message is answered alone"
        self._output.notice(f"{name} answers{alone}")

    def _who(self) -> None:
        answer = self._chat.last
        if answer is None:
            self._notice_who()
            return
        rows = [("task", "none: the bare base" if answer.task == _BARE else answer.task)]
        if answer.task_id != "given":
            rows += [("found by", f"composition {answer.composition}")]
            rows += [(f"probability of {task}", f"{share:.4f}") for task, share in answer.posterior.items()]
            rows += [("margin", f"{answer.margin:.4g}")] if answer.margin is not None else []
        elif answer.composition is not None:
            rows += [("composition", answer.composition)]
        rows += [("adapters", ", ".join(f"{task} {weight:.4g}" for task, weight in answer.adapters.items()) or "none")]
        rows += [("probability of the label", f"{answer.probability:.4f}")] if answer.probability is not None else []
        self._output.aside(table(("last answer", ""), [tuple(map(safe, row)) for row in rows]))

    def _clear(self) -> None:
        self._chat.clear()
        self._output.notice("forgotten; the next message begins a conversation")

    def _save(self, file: str) -> None:
        if not file:
            self._output.aside("name the file: /save FILE")
            return
        self._output.notice(f"saved in {self._chat.save(file)}")


def _name(task: str) -> str:
    return "the bare base" if task == _BARE else f"task {task}"


def _lines(text: str) -> str:
    return "\n".join(map(safe, text.split("\n")))
