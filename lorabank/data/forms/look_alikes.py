"""Labels that a reader would take for one: told, never merged, since only the user knows whether they are."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple


class LookAlikes(NamedTuple):
    """Labels that differ in Unicode form, case, blanks, invisible characters or the way a number is written.

    Attributes:
        labels: Label to its rows, the most frequent first.
    """

    labels: dict[str, int]

    def __str__(self) -> str:
        plain = len({unicodedata.normalize("NFC", label) for label in self.labels}) == len(self.labels)
        named = [
            f"{label!r} ({count:,} rows)" if plain else f"{label!a} ({count:,} rows)"
            for label, count in self.labels.items()
        ]
        return f"labels that look alike are classes of their own: {', '.join(named[:-1])} and {named[-1]}"


def look_alikes(counts: Mapping[str, int]) -> tuple[LookAlikes, ...]:
    """The groups of labels that look alike.

    Args:
        counts: Label to its rows.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        groups[_seen(label)].append(label)
    found = [sorted(group, key=lambda label: (-counts[label], label)) for group in groups.values() if len(group) > 1]
    return tuple(LookAlikes({label: counts[label] for label in group}) for group in found)


def _seen(label: str) -> str:
    """What a reader sees of a label."""
    text = unicodedata.normalize("NFKC", label)
    text = "".join(character for character in text if unicodedata.category(character) not in ("Cf", "Cc"))
    text = unicodedata.normalize("NFKC", " ".join(text.casefold().split()))
    number = re.fullmatch(r"([+-]?)0*(\d+?)(?:\.0*)?", text)
    return f"{number[1].lstrip('+')}{number[2]}" if number else text
