"""What each column of a row may hold.

The digest of a row tells damage, not intent: who prepares a bank can make digests that fit. Records are made of
columns that were judged here, so that nobody who uses a record meets a number in the place of a label.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lorabank.core.commands import VERIFY
from lorabank.core.errors import DamagedError
from lorabank.core.limits import MAX_LABELS, MAX_NAME, MAX_NOTE, MAX_RANK, MAX_TAGS

Check = Callable[[Any], bool]


class Json(NamedTuple):
    """The form of a column that holds JSON text."""

    check: Check


_MOST = 2**53  # what JSON keeps as it is


def sound(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row, JSON parsed, each of the form that its readers rely on.

    Raises:
        DamagedError: Naming the row and the column.
    """
    values = {}
    for column, check in FORMS[table].items():
        value = row[column]
        try:
            if isinstance(check, Json):
                value, check = _DECODER.decode(value), check.check
            good = check(value)
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
            good = False
        if not good:
            key = row[next(iter(FORMS[table]))]
            raise DamagedError(
                f"bank.db: row {str(key)[:80]!r} of {table}: its {column} cannot be {str(value)[:80]!r}",
                commands=[VERIFY],
            )
        values[column] = value
    return values


def fits(table: str, columns: Mapping[str, Any]) -> bool:
    """Whether columns without JSON may be put into a row of a table."""
    checks = {column: FORMS[table][column] for column in columns}
    return all(not isinstance(check, Json) and check(columns[column]) for column, check in checks.items())


def answers_in_text(task: str, config: Mapping[str, Any]) -> None:
    """What must stand in the settings of a language model's task, so that it can be asked.

    Raises:
        DamagedError: It does not.
    """
    if config.get("scoring") not in _TEXT_TO_TEXT or not {"format", "max_length", "max_new_tokens"} <= config.keys():
        message = f"bank.db: task {task[:80]!r}: its settings do not say how the language model is asked"
        raise DamagedError(message, commands=[VERIFY])


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a value")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _text(value: Any) -> bool:
    return type(value) is str


def _storable(value: Any) -> bool:
    """A text that a column can hold: what JSON spells may have a lone surrogate."""
    return _text(value) and value.encode() is not None


def _hexadecimal(digits: int) -> Check:
    return lambda value: _text(value) and len(value) == digits and not value.strip("0123456789abcdef")


def _file_name(value: Any) -> bool:
    return _text(value) and value.isascii() and value.isprintable() and value[:1] not in ("", ".") and "/" not in value


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _moment(value: Any) -> bool:
    from datetime import datetime  # a bank without operations needs none

    return _text(value) and datetime.fromisoformat(value).tzinfo is not None


def _within(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _one_of(*words: str) -> Check:
    return lambda value: _text(value) and value in words


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _texts(most: int) -> Check:
    """Different texts, at most so many."""
    return lambda value: (
        type(value) is list and all(map(_text, value)) and len(set(value)) == len(value) and len(value) <= most
    )


def _each(check: Check) -> Check:
    """An object with values of one form."""
    return lambda value: type(value) is dict and all(map(check, value.values()))


def _object(**known: Check) -> Check:
    """An object of any keys; those that somebody reads have their form where they are there."""
    return lambda value: type(value) is dict and all(check(value[key]) for key, check in known.items() if key in value)


def _lists_of_texts(value: Any) -> bool:
    """Lists of one text or more."""
    return type(value) is list and all(type(one) is list and one and all(map(_text, one)) for one in value)


def _label_detail(value: Any) -> bool:
    """What ``evaluation.confusion`` keeps of a cell: names, three counts for each, and rows of places and counts."""
    place = _within(0, len(value["names"]) - 1)
    return (
        type(value["names"]) is list
        and all(map(_text, value["names"]))
        and _number(value["macro_f1"])
        and len(value["counts"]) == len(value["names"])
        and all(len(counts) == 3 and all(map(_COUNT, counts)) for counts in value["counts"])
        and all(place(wanted) and place(got) and _COUNT(rows) for wanted, got, rows in value["wrong"])
        and all(
            _within(1, _MOST)(row) and _text(wanted) and _text(got) and _optional(_number)(sure)
            for row, wanted, got, sure in value["worst"]
        )
        and _COUNT(value["most"])
        and _COUNT(value["unlisted"])
    )


def _places(value: Any) -> bool:
    """Different numbers of rows."""
    return type(value) is list and all(map(_POSITION, value)) and len(set(value)) == len(value)


def _note(value: Any) -> bool:
    return _text(value) and 0 < len(value) <= MAX_NOTE


def _tags(value: Any) -> bool:
    """Different words with commas between them."""
    words = value.split(",")
    return len(set(words)) == len(words) <= MAX_TAGS and all(
        0 < len(word) <= MAX_NAME and word.isascii() and word.isprintable() for word in words
    )


def _text_detail(value: Any) -> bool:
    """What ``evaluation.text_samples`` keeps of a cell: means by name, and rows of a place and three texts."""
    return _each(_number)(value["metrics"]) and all(
        _within(1, _MOST)(row) and all(map(_text, (asked, wanted, got)))
        for row, asked, wanted, got in value["samples"]
    )


_COUNT = _within(0, _MOST)
_DIGEST = _hexadecimal(64)
_POSITION = _within(1, 2**31)
_BLOB = _optional(_DIGEST)
_OPTIONAL_TEXT = _optional(_text)

_RESERVED = _object(
    config=_object(),
    train=_DIGEST,
    eval=_DIGEST,
    past=_object(earlier=_lists_of_texts, position=_POSITION),
    note=_note,
    replaces=_POSITION,
    tags=lambda value: _texts(MAX_TAGS)(value) and _tags(",".join(value)),
)
"""What an interrupted training is resumed by (``workflows.past``)."""

_TEXT_TO_TEXT = ("likelihood", "generation", "perplexity")

_SETTINGS = Json(
    _object(
        format=_text,
        chat_template=_one_of("auto", "none"),
        scoring=_one_of("auto", *_TEXT_TO_TEXT),
        max_length=_within(1, 2**20),
        max_new_tokens=_within(1, 2**15),
        clusters_per_task=_within(1, 2**10),
    )
)
_FACTS = Json(
    _object(
        continued_from=_BLOB,
        overlap=_each(_number),
        known_rows=_each(_COUNT),
        capacity_left=_optional(_number),
        part=_optional(_COUNT),
        source_digest=_OPTIONAL_TEXT,
        text_metric=_one_of("exact_match", "token_f1"),
    )
)
_CHANGE = Json(
    _object(
        tasks_added=_places,
        tasks_removed=_places,
        compositions_added=_places,
        compositions_removed=_places,
        of=_one_of("tasks", "compositions"),
        row=_POSITION,
        before=_each(_optional(_storable)),
        after=_each(_optional(_storable)),
    )
)
_TASK_TYPE = _one_of("SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM")
_NAMES = Json(_texts(_MOST))
_ANY_OBJECT = Json(_object())

FORMS: dict[str, dict[str, Check | Json]] = {
    "base_model": {
        "name": _text, "source": _text, "revision": _OPTIONAL_TEXT, "config_hash": _text, "fingerprint": _DIGEST,
        "tokenizer_hash": _text, "chat_template_hash": _OPTIONAL_TEXT, "dtype": _text, "quantisation": _OPTIONAL_TEXT,
        "task_type": _TASK_TYPE, "hidden_size": _within(1, _MOST), "parameters": _COUNT, "created_at": _text,
    },
    "blobs": {"digest": _DIGEST, "bytes": _COUNT},
    "tasks": {
        "name": _text, "position": _POSITION, "task_type": _TASK_TYPE, "labels": Json(_texts(MAX_LABELS)),
        "state": _one_of("training", "ready", "failed", "removed"), "adapter": _DIGEST, "statistics": _BLOB,
        "prompt_template": _OPTIONAL_TEXT, "created_at": _text, "removed_at": _OPTIONAL_TEXT,
        "note": _optional(_note), "tags": _optional(_tags), "first_name": _OPTIONAL_TEXT,
        "replaces": _optional(_POSITION),
    },
    "datasets": {
        "task_name": _text, "split": _one_of("train", "eval", "calibration", "replay"), "rows": _COUNT,
        "columns": _NAMES, "sha256": _DIGEST, "source": _text, "rows_dropped": _COUNT, "rows_cut": _COUNT,
        "blob": _BLOB, "row_digests": _BLOB,
    },
    "adapters": {
        "task_name": _text, "digest": _DIGEST, "r": _within(1, MAX_RANK), "lora_alpha": _number,
        "use_rslora": _within(0, 1), "target_modules": _NAMES, "strategy": _text, "penalties": Json(_each(_number)),
        "seed": _within(-(2**63), 2**63 - 1), "steps": _COUNT, "wall_seconds": _number, "device": _text,
        "bytes": _COUNT, "head_digest": _OPTIONAL_TEXT, "versions": Json(_each(_text)), "config": _SETTINGS,
        "metrics": _FACTS, "created_at": _text,
    },
    "adapter_files": {"name": _file_name, "sha256": _DIGEST, "bytes": _COUNT},
    "adapter_objects": {"role": _text, "blob": _DIGEST},
    "compositions": {
        "name": _text, "mode": _text, "parameters": _ANY_OBJECT, "state": _one_of("ready", "removed"),
        "created_at": _text, "removed_at": _OPTIONAL_TEXT, "note": _optional(_note), "tags": _optional(_tags),
    },
    "composition_members": {"composition": _POSITION, "known_as": _OPTIONAL_TEXT},
    "composition_objects": {"role": _text, "blob": _DIGEST},
    "evaluations": {
        "key": _text, "subject": _text, "stage": _within(0, 2**31), "task": _text, "metric": _text, "value": _number,
        "n": _COUNT, "low": _number, "high": _number, "task_id": _one_of("given", "routed"), "settings": _ANY_OBJECT,
        "detail": Json(_object(routed=_each(_COUNT), labels=_label_detail, texts=_text_detail)), "created_at": _text,
    },
    "operations": {
        "name": _text, "id": _hexadecimal(32), "kind": _text, "config": Json(_RESERVED), "started_at": _moment,
        "pid": _within(0, 2**31), "boot_id": _text, "host": _text, "process_start": _within(-1, 2**63 - 1),
    },
    "events": {
        "id": _POSITION, "kind": _text, "name": _text, "detail": _CHANGE, "undoes": _optional(_POSITION),
        "version": _text, "created_at": _moment,
    },
}  # fmt: skip
"""Table to its columns' forms; the first column names the row in a message."""
