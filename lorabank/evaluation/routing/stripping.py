"""Texts without what gives their task away: names of tasks and data sets, and the phrases of an instruction.

A prompt template of the bank is never part of a row's text, so the router does not read it. Rows that somebody wrote
with their instruction are another matter: they begin or end with the same words. Such a phrase is one of at least
`SHORTEST` words that a tenth of a task's rows have in common, and three rows at least. A longer one counts in place of
a shorter one if it has at least a quarter of its rows.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SHORTEST = 3
_SHARE = 0.1
_ROWS = 3

_KEPT = 0.25
"""Of the rows that have a phrase in common, how many a longer one must have; else what differs is the text itself."""

_GENERIC = frozenset(
    ("data", "dataset", "dev", "eval", "evaluation", "rows", "split", "test", "train", "training", "validation")
)
"""Words of a file's name that say nothing of its task."""


@dataclass(frozen=True)
class Stripped:
    """Texts of one task, and what was taken out of them.

    Attributes:
        texts: The texts that are left; one of which nothing would be left is whole.
        names: Name to the number of texts that held it.
        phrases: Phrase to the number of texts that began or ended with it.
    """

    texts: tuple[str, ...]
    names: dict[str, int]
    phrases: dict[str, int]


def names_of(task: str, sources: Iterable[str]) -> list[str]:
    """The names to look for: the task's, and those of its data, ``hf:OWNER/NAME`` or a file; each as words.

    Args:
        task: The task's name.
        sources: Where its rows came from.
    """
    names = [task]
    for source in sources:
        if source.startswith("hf:"):
            names += source.removeprefix("hf:").split(":")[0].split("/")[1:]
        else:
            names.append(re.split(r"[\\/]", source)[-1].split(".")[0])
    words = (re.findall(r"[^\W_]+", name) for name in names)
    kept = (" ".join(word for word in each if word.casefold() not in _GENERIC) for each in words)
    return list(dict.fromkeys(name for name in kept if len(name) > 1))


def strip(texts: Sequence[str], names: Sequence[str]) -> Stripped:
    """Take names and repeated phrases out of the texts of one task.

    Args:
        texts: The texts.
        names: From `names_of`, of all tasks; found whatever their case and whatever stands between their words.
    """
    words = [list(re.finditer(r"\S+", text)) for text in texts]
    spelt = [[word[0] for word in each] for each in words]
    least = max(_ROWS, round(_SHARE * len(texts)))
    opening = _repeated(spelt, least)
    rest = [each[first:] for each, first in zip(spelt, opening, strict=True)]
    closing = _repeated([each[::-1] for each in rest], least)
    phrases, found = Counter[str](), Counter[str]()
    left = []
    for text, places, first, last in zip(texts, words, opening, closing, strict=True):
        start = places[first].start() if first else 0
        end = places[-last - 1].end() if last else len(text)
        phrases.update(part for part in (text[:start].strip(), text[end:].strip()) if part)
        left.append(text[start:end])
    for name in names:
        pattern = _pattern(name)
        held = [pattern.search(text) is not None for text in left]
        found[name] = sum(held)
        left = [pattern.sub("", text) if there else text for text, there in zip(left, held, strict=True)]
    kept = tuple(new if new.strip() else old for new, old in zip(left, texts, strict=True))
    return Stripped(kept, {name: rows for name, rows in found.items() if rows}, dict(phrases.most_common()))


def _pattern(name: str) -> re.Pattern[str]:
    """The words of a name, alone or joined."""
    return re.compile(r"(?<![^\W_])" + r"[\W_]*".join(map(re.escape, name.split())) + r"(?![^\W_])", re.IGNORECASE)


def _repeated(rows: Sequence[Sequence[str]], least: int) -> list[int]:
    """How many words each row begins with that so many rows have in common; 0 where they are few. A word is left."""
    found = [0] * len(rows)
    groups = [list(range(len(rows)))]
    length = 0
    while groups:
        length += 1
        longer: dict[tuple[int, str], list[int]] = defaultdict(list)
        for group, members in enumerate(groups):
            for row in members:
                if len(rows[row]) > length:
                    longer[group, rows[row][length - 1]].append(row)
        groups = [
            members for (group, _), members in longer.items() if len(members) >= max(least, _KEPT * len(groups[group]))
        ]
        if length >= SHORTEST:
            for row in (row for members in groups for row in members):
                found[row] = length
    return found
