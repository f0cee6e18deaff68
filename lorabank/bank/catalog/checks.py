"""What a value of a row may be: predicates, and predicates made of predicates.

The digest of a row tells damage, not intent: who prepares a bank can make digests that fit. Records are made of
columns that were judged here, so that nobody who uses a record meets a number in the place of a label.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from lorabank.core.errors import DamagedError
from lorabank.core.limits import MAX_NAME, MAX_NOTE, MAX_TAGS

Check = Callable[[Any], bool]

MOST = 2**53
"""The largest whole number that JSON keeps as it is."""


def answers_in_text(task: str, config: Mapping[str, Any]) -> None:
    """What must stand in the settings of a language model's task, so that it can be asked.

    Raises:
        DamagedError: It does not.
    """
    scoring = config.get("scoring")
    decided = _is_method(scoring) and scoring != "auto"
    if not decided or not {"format", "max_length"} <= config.keys():
        message = f"bank.db: task {task[:80]!r}: its settings do not say how the language model is asked"
        raise DamagedError(message)


def is_text(value: Any) -> bool:
    """A text, and nothing that is derived from one."""
    return type(value) is str


def _storable(value: Any) -> bool:
    """A text that a column can hold: what JSON spells may have a lone surrogate."""
    return is_text(value) and value.encode() is not None


def hexadecimal(digits: int) -> Check:
    """So many hexadecimal digits."""
    return lambda value: is_text(value) and len(value) == digits and not value.strip("0123456789abcdef")


def is_file_name(value: Any) -> bool:
    """A name that can neither leave its folder nor be hidden in it."""
    return (
        is_text(value) and value.isascii() and value.isprintable() and value[:1] not in ("", ".") and "/" not in value
    )


def is_number(value: Any) -> bool:
    """A finite number, no boolean."""
    return type(value) in (int, float) and math.isfinite(value)


def is_moment(value: Any) -> bool:
    """A time in ISO 8601 with its zone."""
    from datetime import datetime  # a bank without operations needs none

    return is_text(value) and datetime.fromisoformat(value).tzinfo is not None


def within(low: int, high: int) -> Check:
    """A whole number between two, both included."""
    return lambda value: type(value) is int and low <= value <= high


def is_task_type(value: Any) -> bool:
    """PEFT's name of a task type; one that no installed package knows is refused where its models are needed."""
    return is_text(value) and re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", value) is not None


def _is_method(value: Any) -> bool:
    """A name, as of a scoring or a metric; unknown ones are refused where they are asked for."""
    return is_text(value) and re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", value) is not None


def one_of(*words: str) -> Check:
    """One of some words."""
    return lambda value: is_text(value) and value in words


def optional(check: Check) -> Check:
    """None, or what passes a check."""
    return lambda value: value is None or check(value)


def texts(most: int) -> Check:
    """Different texts, at most so many."""
    return lambda value: (
        type(value) is list and all(map(is_text, value)) and len(set(value)) == len(value) and len(value) <= most
    )


def each(check: Check) -> Check:
    """An object with values of one form."""
    return lambda value: type(value) is dict and all(map(check, value.values()))


def mapping(**known: Check) -> Check:
    """An object of any keys; those that somebody reads have their form where they are there."""
    return lambda value: type(value) is dict and all(check(value[key]) for key, check in known.items() if key in value)


def _lists_of_texts(value: Any) -> bool:
    """Lists of one text or more."""
    return type(value) is list and all(type(one) is list and one and all(map(is_text, one)) for one in value)


def label_detail(value: Any) -> bool:
    """What ``evaluation.confusion`` keeps of a cell: names, three counts for each, and rows of places and counts."""
    place = within(0, len(value["names"]) - 1)
    return (
        type(value["names"]) is list
        and all(map(is_text, value["names"]))
        and is_number(value["macro_f1"])
        and len(value["counts"]) == len(value["names"])
        and all(len(counts) == 3 and all(map(COUNT, counts)) for counts in value["counts"])
        and all(place(wanted) and place(got) and COUNT(rows) for wanted, got, rows in value["wrong"])
        and all(
            within(1, MOST)(row) and is_text(wanted) and is_text(got) and optional(is_number)(sure)
            for row, wanted, got, sure in value["worst"]
        )
        and COUNT(value["most"])
        and COUNT(value["unlisted"])
    )


def _places(value: Any) -> bool:
    """Different numbers of rows."""
    return type(value) is list and all(map(POSITION, value)) and len(set(value)) == len(value)


def is_note(value: Any) -> bool:
    """A note as it is stored."""
    return is_text(value) and 0 < len(value) <= MAX_NOTE


def are_tags(value: Any) -> bool:
    """Different words with commas between them."""
    words = value.split(",")
    return len(set(words)) == len(words) <= MAX_TAGS and all(
        0 < len(word) <= MAX_NAME and word.isascii() and word.isprintable() for word in words
    )


def text_detail(value: Any) -> bool:
    """What ``evaluation.text_samples`` keeps of a cell: means by name, and rows of a place and three texts."""
    return each(is_number)(value["metrics"]) and all(
        within(1, MOST)(row) and all(map(is_text, (asked, wanted, got)))
        for row, asked, wanted, got in value["samples"]
    )


COUNT = within(0, MOST)
DIGEST = hexadecimal(64)
POSITION = within(1, 2**31)

RESERVED = mapping(
    config=mapping(),
    train=DIGEST,
    eval=DIGEST,
    past=mapping(tasks=_lists_of_texts, earlier=_lists_of_texts, objects=each(_lists_of_texts), position=POSITION),
    note=is_note,
    replaces=POSITION,
    tags=lambda value: texts(MAX_TAGS)(value) and are_tags(",".join(value)),
)
"""What an interrupted training is resumed by (``workflows.past``)."""

SETTINGS = mapping(
    format=is_text,
    chat_template=one_of("auto", "none"),
    scoring=_is_method,
    max_length=within(1, 2**20),
    set=lambda value: type(value) is list and all(map(is_text, value)),
    max_new_tokens=within(1, 2**15),
    clusters_per_task=within(1, 2**10),
)
FACTS = mapping(
    continued_from=optional(DIGEST),
    folded=optional(DIGEST),
    folded_into=optional(DIGEST),
    answers=one_of("own", "newest"),
    overlap=each(is_number),
    known_rows=each(COUNT),
    capacity_left=optional(is_number),
    directions_left=optional(COUNT),
    part=optional(COUNT),
    rows_held_out=optional(COUNT),
    best_step=optional(COUNT),
    source_digest=optional(is_text),
    text_metric=_is_method,
)
CHANGE = mapping(
    tasks_added=_places,
    tasks_removed=_places,
    compositions_added=_places,
    compositions_removed=_places,
    of=one_of("tasks", "compositions"),
    row=POSITION,
    before=each(optional(_storable)),
    after=each(optional(_storable)),
)
