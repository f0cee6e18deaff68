"""The columns of ``bank.db``: their types, what they may hold, and which of them a row's digest covers.

This is the one description of the schema. The tables for Alembic (`schema`), the rows that are written and the
records that are read (`rows`), what is judged before anything is made of a row, and the rules that every catalog keeps
(`base`), all follow from it; the migrations make it, and a test compares both. It is plain Python, because ``lorabank
list`` pays for it.

Rows are never changed but for columns that are not ``sealed``: states, and the process columns of ``operations``.
Where a name, a note, tags or ``removed_at`` changes, the row is sealed anew. Structured values are JSON text, so that
the digest is over the very bytes that are stored.
"""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple

from lorabank.bank.catalog.checks import (
    CHANGE,
    COUNT,
    DIGEST,
    FACTS,
    MOST,
    POSITION,
    RESERVED,
    SETTINGS,
    Check,
    are_tags,
    each,
    hexadecimal,
    is_file_name,
    is_moment,
    is_note,
    is_number,
    is_task_type,
    is_text,
    label_detail,
    mapping,
    one_of,
    optional,
    text_detail,
    texts,
    within,
)
from lorabank.bank.objects.canonical import canonical
from lorabank.core.errors import DamagedError
from lorabank.core.limits import MAX_LABELS, MAX_RANK


class Column(NamedTuple):
    """One column.

    Attributes:
        type: What SQLite keeps; None for a column that a query joins from another table.
        check: What the value may be, JSON parsed; None where no record holds it.
        write: From a record's value to the stored one.
        read: From the stored value, judged and JSON parsed, to the record's.
        json: Whether it holds JSON text.
        empty: Whether it may hold nothing.
        sealed: Whether the row's digest covers it.
        later: Whether older schemas lack it: there it is as good as empty.
        key: Whether it is part of the primary key.
        refers: ``table.column`` that it refers to.
        words: The only values, where there are few.
    """

    type: Literal["text", "integer", "real", "boolean"] | None
    check: Check | None
    write: Callable[[Any], Any] | None = None
    read: Callable[[Any], Any] | None = None
    json: bool = False
    empty: bool = False
    sealed: bool = True
    later: bool = False
    key: bool = False
    refers: str | None = None
    words: tuple[str, ...] = ()


class _Described(NamedTuple):
    """The fields of a table, which says what they are."""

    shown: str
    columns: Mapping[str, Column]
    rules: Mapping[str, str] = {}
    unique: tuple[str, ...] = ()
    live: bool = False
    indexes: tuple[tuple[str, ...], ...] = ()


class Described(_Described):
    """A table.

    Attributes:
        shown: The column that names a row in a message.
        columns: By name. The digest covers the sealed ones in this order, so it never changes: a new one comes last.
        rules: Conditions that SQLite checks, by name.
        unique: Columns that together stand in one row at most.
        live: Whether no two rows in use have one name.
        indexes: Columns by which rows are looked for.
    """

    @cached_property
    def judged(self) -> list[tuple[str, Check, bool, Callable[[Any], Any] | None]]:
        """Of each column that a record holds its name, ``check``, ``json`` and ``read``: thousands of rows ask."""
        every = self.columns.items()
        return [(name, one.check, one.json, one.read) for name, one in every if one.check is not None]


def _text(check: Check | None = is_text, **options: Any) -> Column:
    return Column("text", optional(check) if check and options.get("empty") else check, **options)


def _integer(check: Check | None, **options: Any) -> Column:
    return Column("integer", optional(check) if check and options.get("empty") else check, int, **options)


def _json(check: Check, **options: Any) -> Column:
    return Column("text", check, canonical, json=True, **options)


def _words(*words: str, **options: Any) -> Column:
    return _text(one_of(*words), words=words, **options)


def _joined(check: Check) -> Column:
    return Column(None, check, sealed=False)


def _blob(**options: Any) -> Column:
    return _text(DIGEST, refers="blobs.digest", **options)


def _owner(table: str) -> Column:
    return _integer(None, key=True, refers=table)


def joined_tags(tags: tuple[str, ...]) -> str | None:
    """Tags as a column holds them."""
    return ",".join(tags) or None


def split_tags(tags: str | None) -> tuple[str, ...]:
    """Tags from their column."""
    return tuple(tags.split(",")) if tags else ()


_ID = _integer(None, key=True)
_NAMES = _json(texts(MOST), read=tuple)
_REAL = Column("real", is_number, float)
_NOTE = _text(is_note, empty=True, later=True)
_TAGS = _text(are_tags, empty=True, later=True, write=joined_tags, read=split_tags)
_REMOVED_AT = _text(empty=True)

TABLES: dict[str, Described] = {
    "bank": Described("id", {
        "id": _ID, "bank_id": _text(None), "format": _integer(None), "created_at": _text(None),
        "created_with": _text(None),
    }, {"one_row": "id = 1"}),
    "base_model": Described("name", {
        "id": _ID, "name": _text(), "source": _text(), "revision": _text(empty=True), "config_hash": _text(),
        "fingerprint": _text(DIGEST), "tokenizer_hash": _text(), "chat_template_hash": _text(empty=True),
        "dtype": _text(), "quantisation": _text(empty=True), "task_type": _text(is_task_type),
        "hidden_size": _integer(within(1, MOST)), "parameters": _integer(COUNT), "created_at": _text(),
    }, {"one_row": "id = 1"}),
    "blobs": Described("digest", {
        "digest": _text(DIGEST, key=True), "bytes": _integer(COUNT), "created_at": _text(None),
    }),
    "tasks": Described("name", {
        "position": _integer(POSITION, key=True), "name": _text(), "task_type": _text(is_task_type),
        "labels": _json(texts(MAX_LABELS), read=tuple), "statistics": _blob(empty=True),
        "prompt_template": _text(empty=True), "created_at": _text(), "note": _NOTE, "tags": _TAGS,
        "first_name": _text(empty=True, later=True), "replaces": _integer(POSITION, empty=True, later=True),
        "removed_at": _REMOVED_AT, "state": _words("training", "ready", "failed", "removed", sealed=False),
        "adapter": _joined(DIGEST),
    }, {"position": "position > 0"}, live=True),
    "datasets": Described("task_name", {
        "id": _ID, "task": _integer(None, refers="tasks.position"), "task_name": _joined(is_text),
        "split": _words("train", "eval", "calibration", "replay"), "rows": _integer(COUNT), "columns": _NAMES,
        "sha256": _text(DIGEST), "source": _text(), "rows_dropped": _integer(COUNT), "rows_cut": _integer(COUNT),
        "blob": _blob(empty=True), "row_digests": _blob(empty=True, later=True),
    }, unique=("task", "split")),
    "adapters": Described("task_name", {
        "id": _integer(None, key=True, refers="tasks.position"), "task_name": _joined(is_text),
        "digest": _text(DIGEST), "r": _integer(within(1, MAX_RANK)), "lora_alpha": _REAL,
        "use_rslora": Column("boolean", within(0, 1), int, bool), "target_modules": _NAMES, "strategy": _text(),
        "penalties": _json(each(is_number)), "seed": _integer(within(-(2**63), 2**63 - 1)), "steps": _integer(COUNT),
        "wall_seconds": _REAL, "device": _text(), "bytes": _integer(COUNT), "head_digest": _text(empty=True),
        "versions": _json(each(is_text)), "config": _json(SETTINGS), "metrics": _json(FACTS), "created_at": _text(),
    }, indexes=(("digest",),)),
    "adapter_files": Described("name", {
        "adapter": _owner("adapters.id"), "name": _text(is_file_name, key=True), "sha256": _text(DIGEST),
        "bytes": _integer(COUNT),
    }),
    "adapter_context": Described("adapter", {
        "adapter": _integer(POSITION, key=True, refers="adapters.id"), "ordinal": _ID,
        "member": _integer(POSITION, refers="adapters.id"),
        "part": _words("lineage", "without", empty=True, later=True),
    }),
    "adapter_objects": Described("role", {
        "adapter": _owner("adapters.id"), "role": _text(key=True), "blob": _blob(),
    }),
    "compositions": Described("name", {
        "id": _ID, "name": _text(), "mode": _text(), "parameters": _json(mapping()), "created_at": _text(),
        "note": _NOTE, "tags": _TAGS, "removed_at": _REMOVED_AT, "state": _words("ready", "removed", sealed=False),
    }, live=True),
    "composition_members": Described("composition", {
        "composition": _integer(POSITION, key=True, refers="compositions.id"), "ordinal": _ID,
        "adapter": _integer(None, refers="adapters.id"), "known_as": _text(empty=True, later=True),
    }),
    "composition_objects": Described("role", {
        "composition": _owner("compositions.id"), "role": _text(key=True), "blob": _blob(),
    }),
    "evaluations": Described("key", {
        "key": _text(key=True), "subject": _text(), "stage": _integer(within(0, 2**31)), "task": _text(),
        "metric": _text(), "value": _REAL, "n": _integer(COUNT), "low": _REAL, "high": _REAL,
        "task_id": _words("given", "routed"), "settings": _json(mapping()),
        "detail": _json(mapping(routed=each(COUNT), labels=label_detail, texts=text_detail)), "created_at": _text(),
    }, indexes=(("task", "stage"), ("subject",))),
    "operations": Described("name", {
        "id": _text(hexadecimal(32), key=True), "kind": _text(), "name": _text(), "config": _json(RESERVED),
        "started_at": _text(is_moment), "pid": _integer(within(0, 2**31), sealed=False),
        "boot_id": _text(sealed=False), "host": _text(sealed=False),
        "process_start": _integer(within(-1, 2**63 - 1), sealed=False),
        "seen_at": _text(None, empty=True, sealed=False, later=True),
    }, unique=("name",)),
    "events": Described("id", {
        "id": _integer(POSITION, key=True), "kind": _text(), "name": _text(), "detail": _json(CHANGE),
        "undoes": _integer(POSITION, empty=True, refers="events.id"), "version": _text(),
        "created_at": _text(is_moment),
    }, unique=("undoes",)),
}  # fmt: skip


NUMBER = {"tasks": "position", "compositions": "id"}
"""The column by which rows that have a name are known for ever."""


def sound(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that a record holds, as it holds them, each of the form that its readers rely on.

    Raises:
        DamagedError: Naming the row and the column.
    """
    values = {}
    described = TABLES[table]
    for name, check, json_text, read in described.judged:
        value = row[name]
        try:
            if json_text:
                value = _parsed(value)
            good = check(value)
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
            good = False
        if not good:
            shown = str(row[described.shown])[:80]
            raise DamagedError(f"bank.db: row {shown!r} of {table}: its {name} cannot be {str(value)[:80]!r}")
        values[name] = read(value) if read else value
    return values


def fits(table: str, columns: Mapping[str, Any]) -> bool:
    """Whether columns without JSON may be put into a row of a table."""
    known = {name: TABLES[table].columns[name] for name in columns}
    return all(not column.json and column.check and column.check(columns[name]) for name, column in known.items())


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a value")


def _parsed(text: str) -> Any:
    """JSON as lorabank writes it, with nothing around it."""
    value, end = _DECODER.raw_decode(text)
    if end < len(text):
        raise ValueError("there is more")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse)
