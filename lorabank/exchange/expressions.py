r"""Regular expressions of strangers, matched within a bound.

Python's ``re`` tries one way after another, and a short expression can make it try for ever (``(a+)+$``). Here an
expression is a function from the set of positions where it may begin to the set where it may end, both the bits of one
integer, so that no way is tried twice; what it may cost is counted all the same. It takes what Python's syntax says of
literals, classes, groups, alternatives, repetitions, edges and what is looked for ahead; anything else (references
back, flags, looking behind) is `Unreadable`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence

_LONGEST = 4096
_DEEPEST = 40
_STEPS = 2_000_000
_EDGES = {"^": r"^", "$": r"$", r"\b": r"\b", r"\B": r"\B", r"\A": r"\A", r"\Z": r"\Z"}
_REPEAT = re.compile(r"([*+?]|\{(\d*)(,?)(\d*)\})")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)

Step = Callable[["_Name", int], int]
"""From the positions where a part may begin to those where it may end."""


class Unreadable(ValueError):
    """The expression is broken, uses what is not taken here, or costs too much."""


class Expression:
    """A regular expression of a stranger.

    Args:
        text: In Python's syntax.

    Raises:
        Unreadable: It is not taken.
    """

    def __init__(self, text: str) -> None:
        if len(text) > _LONGEST:
            raise Unreadable(f"longer than {_LONGEST} characters")
        self._parser = _Parser(text)
        self._step = self._parser.whole()
        self._left = _STEPS

    def matches(self, name: str) -> bool:
        """``re.fullmatch``.

        Raises:
            Unreadable: All names together took too many steps.
        """
        return self._reaches_end(name, 1)

    def ends(self, name: str) -> bool:
        r"""``re.match(rf"(.*\.)?({text})$", name)``: PEFT's rule for the keys of its patterns.

        Raises:
            Unreadable: As in `matches`.
        """
        starts = sum(1 << i for i in range(len(name) + 1) if i == 0 or name[i - 1] == ".")
        return self._reaches_end(name, starts)

    def _reaches_end(self, name: str, starts: int) -> bool:
        seen = _Name(name, self._left)
        reached = bool(self._step(seen, starts) >> len(name) & 1)
        self._left = seen.left
        return reached


class _Name:
    """A name, where its characters belong to a class, and the steps that are left."""

    def __init__(self, text: str, left: int) -> None:
        self.text, self.left, self._known = text, left, dict[str, int]()

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Unreadable("takes too long")

    def where(self, pattern: re.Pattern[str]) -> int:
        """The positions where a pattern of one character, or of none, matches."""
        if pattern.pattern not in self._known:
            found = (match.start() for match in pattern.finditer(self.text))
            self._known[pattern.pattern] = sum(1 << position for position in found)
        return self._known[pattern.pattern]


class _Parser:
    """Reads an expression once, from the left."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth = text, 0, 0

    def whole(self) -> Step:
        step = self._alternatives()
        if self._at < len(self._text):
            raise Unreadable("a bracket is closed that was not opened")
        return step

    def _next(self, *wanted: str) -> str:
        """Take one of the texts wanted if it comes next."""
        found = next((text for text in wanted if self._text.startswith(text, self._at)), "")
        self._at += len(found)
        return found

    def _alternatives(self) -> Step:
        branches = [self._sequence()]
        while self._next("|"):
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else _either(branches)

    def _sequence(self) -> Step:
        parts: list[Step] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repeated(self._one()))
        return _after_another(parts)

    def _repeated(self, step: Step) -> Step:
        match = _REPEAT.match(self._text, self._at)
        if match is None or match[0] == "{}":
            return step
        self._at = match.end()
        least, comma, most = match[2], match[3], match[4]
        if match[0] in ("*", "+", "?"):
            low, high = int(match[0] == "+"), 1 if match[0] == "?" else None
        else:
            low, high = int(least or 0), (int(most) if most else None) if comma else int(least or 0)
        if high is not None and high < low:
            raise Unreadable("has a maximum number of repetitions below the minimum")
        self._next("?")  # as few as possible, or as many: the set of ends is the same
        following = _REPEAT.match(self._text, self._at)
        if following is not None and following[0] != "{}":
            raise Unreadable("a repetition is repeated")
        return _many(step, low, high)

    def _one(self) -> Step:
        if self._next("("):
            return self._group()
        if edge := self._next(*_EDGES):
            return _edge(re.compile(_EDGES[edge]))
        if self._text[self._at] == "[":
            found = _CLASS.match(self._text, self._at)
            if found is None:
                raise Unreadable("a class is not closed")
            text = found[0]
        elif self._text[self._at] == "\\":
            text = self._text[self._at : self._at + 2]
            if text[1:].isalnum() and text[1:] not in "dDsSwW":
                raise Unreadable(f"{text} is not supported")
        elif self._text[self._at] in "*+?":
            raise Unreadable("nothing to repeat")
        else:
            text = self._text[self._at]
        self._at += len(text)
        return _character(_compiled(text if text[0] in "[\\." else re.escape(text)))

    def _group(self) -> Step:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise Unreadable(f"more than {_DEEPEST} groups inside each other")
        kind = self._next("?:", "?=", "?!", "?P<")
        if kind == "?P<":
            name, closed, _ = self._text[self._at :].partition(">")
            if not (closed and name.isidentifier()):
                raise Unreadable("a group has no name")
            self._at += len(name) + 1
        elif not kind and self._text.startswith("?", self._at):
            raise Unreadable(f"({self._text[self._at : self._at + 2]} is not supported")
        step = self._alternatives()
        if not self._next(")"):
            raise Unreadable("a bracket is not closed")
        self._depth -= 1
        return _ahead(step, kind == "?=") if kind in ("?=", "?!") else step


def _compiled(text: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a class that Python may read otherwise one day
            return re.compile(text)
    except (re.error, Warning, OverflowError) as error:
        raise Unreadable(f"{text[:40]}: {error}") from error


def _character(pattern: re.Pattern[str]) -> Step:
    def step(name: _Name, starts: int) -> int:
        name.spend()
        return (starts & name.where(pattern)) << 1

    return step


def _edge(pattern: re.Pattern[str]) -> Step:
    return lambda name, starts: starts & name.where(pattern)


def _after_another(parts: Sequence[Step]) -> Step:
    def step(name: _Name, starts: int) -> int:
        for part in parts:
            name.spend()
            starts = part(name, starts)
        return starts

    return step


def _either(branches: Sequence[Step]) -> Step:
    def step(name: _Name, starts: int) -> int:
        found = 0
        for branch in branches:
            name.spend()
            found |= branch(name, starts)
        return found

    return step


def _many(part: Step, low: int, high: int | None) -> Step:
    def step(name: _Name, starts: int) -> int:
        for _ in range(low):
            name.spend()
            starts = part(name, starts)
        reached = new = starts
        times = low
        while new and (high is None or times < high):
            name.spend()
            new = part(name, new) & ~reached
            reached |= new
            times += 1
        return reached

    return step


def _ahead(part: Step, wanted: bool) -> Step:
    def step(name: _Name, starts: int) -> int:
        found = 0
        for position in range(len(name.text) + 1):
            bit = 1 << position
            if starts & bit:
                name.spend()
                if bool(part(name, bit)) == wanted:
                    found |= bit
        return found

    return step
