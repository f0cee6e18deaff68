"""What a user calls a task or composition and writes to it: name, note, tags. Each change is a line of the history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lorabank.bank.catalog.columns import joined_tags, split_tags
from lorabank.bank.catalog.events import Change, log_event
from lorabank.bank.locks import bank_lock
from lorabank.bank.objects.layout import Layout, check_name
from lorabank.core.errors import ConfigError, NotFoundError
from lorabank.core.limits import MAX_NOTE, MAX_TAGS

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

_UNCHANGED = "the bank was not changed"


def remarks(note: str | None, tags: Iterable[str]) -> dict[str, Any]:
    """A note and tags as the settings of a reservation hold them, from which they enter the bank with the commit.

    Raises:
        ConfigError: One of them cannot be stored.
    """
    given = {"note": check_note(note), "tags": list(check_tags(tags))}
    return {key: value for key, value in given.items() if value}


def check_note(text: str | None) -> str | None:
    """A note as it is stored, without blanks around it; None where nothing is left.

    Raises:
        ConfigError: It is too long, or no text.
    """
    note = (text or "").strip()
    if len(note) > MAX_NOTE:
        raise ConfigError(f"a note of {len(note)} characters; at most {MAX_NOTE} are kept", unchanged=_UNCHANGED)
    try:
        note.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("the note is not UTF-8", unchanged=_UNCHANGED) from error
    return note or None


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags as they are stored: sorted, each once.

    Raises:
        ConfigError: One is no word as a name is, or there are too many.
    """
    found = tuple(sorted({check_name(tag) for tag in tags}))
    if len(found) > MAX_TAGS:
        raise ConfigError(f"{len(found)} tags; at most {MAX_TAGS} are kept", unchanged=_UNCHANGED)
    return found


def rename(layout: Layout, old: str, new: str) -> None:
    """Give a task or composition another name; see ``Bank.rename``."""
    from lorabank.bank.catalog.commits import refuse_taken
    from lorabank.bank.operations import refuse_reserved

    check_name(new)

    def columns(connection: Connection, row: Mapping[str, Any]) -> dict[str, str | None]:
        if new == old:
            raise ConfigError(f"{old!r} is its name already", unchanged=_UNCHANGED)
        refuse_taken(connection, new)
        refuse_reserved(connection, layout, [new], owners=[row.get("position", 0)])
        first = {"first_name": row["first_name"] or old} if "first_name" in row else {}
        return {"name": new, **first}

    _change(layout, "rename", old, columns)


def set_note(layout: Layout, name: str, text: str | None) -> None:
    """Write another note, or none; see ``Bank.set_note``."""
    note = check_note(text)
    _change(layout, "note", name, lambda *_: {"note": note})


def change_tags(layout: Layout, name: str, add: Iterable[str], remove: Iterable[str]) -> tuple[str, ...]:
    """Add tags and take tags away; see ``Bank.change_tags``."""
    more, less = check_tags(add), set(remove)
    now: list[tuple[str, ...]] = []

    def columns(_: Connection, row: Mapping[str, Any]) -> dict[str, str | None]:
        there = split_tags(row["tags"])
        if missing := sorted(less.difference(there)):
            raise NotFoundError(
                f"{name!r} has no tag {missing[0][:80]!r}",
                hint=f"its tags: {', '.join(there)}" if there else None,
                unchanged=_UNCHANGED,
            )
        now.append(check_tags({*there, *more} - less))
        return {"tags": joined_tags(now[0])}

    _change(layout, "tag", name, columns)
    return now[0]


Columns = Callable[["Connection", Mapping[str, Any]], dict[str, str | None]]


def _change(layout: Layout, kind: str, name: str, columns: Columns) -> None:
    """Change columns of the row of a name, in one transaction; where they stay what they are nothing is written."""
    from lorabank.bank.catalog.database import writing
    from lorabank.bank.operations import refuse_live

    with bank_lock(layout.lock, exclusive=False), writing(layout) as connection:
        refuse_live(connection, layout)
        table, row = _row_of(connection, layout, name)
        (number,) = table.primary_key
        after = columns(connection, row)
        before = {column: row[column] for column in after}
        if before == after:
            return
        change = Change(of=table.name, row=int(row[number.name]), before=before, after=after)
        put_columns(connection, change)
        log_event(connection, kind, name, change)


def put_columns(connection: Connection, change: Change) -> None:
    """Make the columns of a row what a change says; stored scores of a renamed row go by its new name."""
    from lorabank.bank.catalog.commits import rename_scores, reseal
    from lorabank.bank.catalog.schema import metadata

    assert change.of is not None
    assert change.row is not None
    table = metadata.tables[change.of]
    reseal(connection, table, change.row, change.after)
    old, new = change.before.get("name"), change.after.get("name")
    if old and new:
        rename_scores(connection, table, change.row, old, new)


def _row_of(connection: Connection, layout: Layout, name: str) -> tuple[Table, Mapping[str, Any]]:
    from lorabank.bank.catalog.reading import read_snapshot, reading
    from lorabank.bank.catalog.schema import compositions, tasks
    from lorabank.bank.upkeep.removal import unknown

    for table in (tasks, compositions) if name.isascii() else ():  # as all names are; SQLite takes no lone surrogate
        row = connection.execute(table.select().where(table.c.name == name, table.c.state != "removed")).first()
        if row is not None:
            return table, row._asdict()
    with reading(layout) as reader:
        raise unknown(read_snapshot(reader, layout), name)
