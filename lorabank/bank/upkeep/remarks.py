"""What a user calls a task or composition and writes to it: name, note, tags. Each change is a line of the history."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lorabank.bank.catalog.base import Catalog, Row, Transaction, View
from lorabank.bank.catalog.columns import NUMBER, joined_tags, split_tags
from lorabank.bank.catalog.commits import in_use, refuse_taken, rename_scores, reseal
from lorabank.bank.catalog.events import Change, log_event
from lorabank.bank.catalog.reading import read_snapshot
from lorabank.bank.objects.layout import Layout, check_name
from lorabank.bank.operations import refuse_live, refuse_reserved
from lorabank.bank.upkeep.removal import unknown
from lorabank.core.errors import ConfigError, NotFoundError
from lorabank.core.limits import MAX_NOTE, MAX_TAGS

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
        raise ConfigError(f"a note of {len(note)} characters; at most {MAX_NOTE} are allowed", unchanged=_UNCHANGED)
    try:
        note.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("the note is not UTF-8", unchanged=_UNCHANGED) from error
    return note or None


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags as they are stored: sorted, each once.

    Raises:
        ConfigError: One is not spelt as a name is, or there are too many.
    """
    found = tuple(sorted({check_name(tag) for tag in tags}))
    if len(found) > MAX_TAGS:
        raise ConfigError(f"{len(found)} tags; at most {MAX_TAGS} are allowed", unchanged=_UNCHANGED)
    return found


def rename(layout: Layout, catalog: Catalog, old: str, new: str) -> None:
    """Give a task or composition another name; see ``Bank.rename``."""
    check_name(new)

    def columns(view: View, row: Row) -> dict[str, str | None]:
        if new == old:
            raise ConfigError(f"{old!r} is already its name", unchanged=_UNCHANGED)
        refuse_taken(view, new)
        refuse_reserved(view, layout, [new], owners=[row.get("position", 0)])
        first = {"first_name": row["first_name"] or old} if "first_name" in row else {}
        return {"name": new, **first}

    _change(layout, catalog, "rename", old, columns)


def set_note(layout: Layout, catalog: Catalog, name: str, text: str | None) -> None:
    """Write another note, or none; see ``Bank.set_note``."""
    note = check_note(text)
    _change(layout, catalog, "note", name, lambda *_: {"note": note})


def change_tags(
    layout: Layout, catalog: Catalog, name: str, add: Iterable[str], remove: Iterable[str]
) -> tuple[str, ...]:
    """Add tags and take tags away; see ``Bank.change_tags``."""
    more, less = check_tags(add), set(remove)
    now: list[tuple[str, ...]] = []

    def columns(_: View, row: Row) -> dict[str, str | None]:
        there = split_tags(row["tags"])
        if missing := sorted(less.difference(there)):
            raise NotFoundError(
                f"{name!r} has no tag {missing[0][:80]!r}",
                hint=f"its tags: {', '.join(there)}" if there else None,
                unchanged=_UNCHANGED,
            )
        now.append(check_tags({*there, *more} - less))
        return {"tags": joined_tags(now[0])}

    _change(layout, catalog, "tag", name, columns)
    return now[0]


Columns = Callable[[View, Row], dict[str, str | None]]


def _change(layout: Layout, catalog: Catalog, kind: str, name: str, columns: Columns) -> None:
    """Change columns of the row of a name, in one transaction; where they stay what they are nothing is written."""
    with catalog.lock(exclusive=False), catalog.write() as transaction:
        refuse_live(transaction, layout)
        table, row = _row_of(transaction, layout, name)
        after = columns(transaction, row)
        before = {column: row[column] for column in after}
        if before == after:
            return
        change = Change(of=table, row=int(row[NUMBER[table]]), before=before, after=after)
        put_columns(transaction, change)
        log_event(transaction, kind, name, change)


def put_columns(transaction: Transaction, change: Change) -> None:
    """Make the columns of a row what a change says; stored scores of a renamed row go by its new name."""
    assert change.of is not None
    assert change.row is not None
    reseal(transaction, change.of, change.row, change.after)
    old, new = change.before.get("name"), change.after.get("name")
    if old and new:
        rename_scores(transaction, change.of, change.row, old, new)


def _row_of(view: View, layout: Layout, name: str) -> tuple[str, Row]:
    for table in NUMBER if name.isascii() else ():  # as all names are; SQLite takes no lone surrogate
        if (row := in_use(view, table, name)) is not None:
            return table, row
    raise unknown(read_snapshot(view, layout), name)
