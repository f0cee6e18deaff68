"""Records to database rows and back, and the digest that each row carries.

SQLite's own integrity check passes on most single flipped bits, so each row holds a SHA-256 of its sealed columns.
Columns that are NULL are left out of it: a later schema may add a column without touching old rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from lorabank.bank.catalog.checks import answers_in_text
from lorabank.bank.catalog.columns import TABLES, sound
from lorabank.bank.objects.canonical import canonical
from lorabank.core.errors import DamagedError, DataError
from lorabank.core.records import AdapterRecord, CompositionRecord, DatasetRecord, OperationRecord
from lorabank.core.shelves import TASK_TYPES
from lorabank.core.task_kinds import task_kind

if TYPE_CHECKING:
    from lorabank.bank.catalog.base import Row, View


def row_digest(table: str, row: Row) -> str:
    """SHA-256 of the sealed columns of a row."""
    import hashlib  # loads OpenSSL, and reading needs no digest

    columns = TABLES[table].columns.items()
    there = [name for name, column in columns if column.sealed and (name in row or not column.later)]
    content = [table, [[name, row[name]] for name in there if row[name] is not None]]
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def is_sealed(table: str, row: Row) -> bool:
    """Whether a row still has its digest.

    A row that was removed under schema 0003 or an older one has the digest that it had in use.
    """
    given = str(row["row_digest"])
    if row_digest(table, row) == given:
        return True
    return row.get("state") == "removed" and row_digest(table, {**row, "removed_at": None}) == given


def sealed(table: str, row: Row) -> dict[str, Any]:
    """The row with its digest."""
    return {**row, "row_digest": row_digest(table, row)}


def row_of(table: str, record: Any, *, of: str = "", **others: Any) -> dict[str, Any]:
    """The sealed row of a record.

    SQLite gives REAL columns back as floats and booleans as integers: the digest sees what is stored.

    Args:
        table: Its table.
        record: A named tuple with a field for each column that is not among ``others``.
        of: Whose the numbers are, for a message.
        others: Columns that the record does not hold, or holds otherwise.

    Raises:
        DataError: A number is NaN or infinite, or JSON cannot hold a value.
    """
    row = {}
    for name, column in TABLES[table].columns.items():
        if column.type is None:
            continue
        value = others[name] if name in others else getattr(record, name)
        row[name] = value if value is None or column.write is None else column.write(value)
        if column.type == "real" and not math.isfinite(row[name]):
            raise DataError(f"{of}{name} = {row[name]} is not finite", unchanged="the bank was not changed")
    return sealed(table, row)


def in_order(rows: Iterable[Row], *columns: str) -> list[Row]:
    """Rows by the values of columns.

    Raises:
        DamagedError: There are numbers and texts among them.
    """
    try:
        return sorted(rows, key=itemgetter(*columns))
    except TypeError as error:
        message = f"bank.db: its rows cannot be sorted by their {columns[-1]}"
        raise DamagedError(message) from error


def next_number(view: View, table: str) -> int:
    """One more than the largest number that a row of a table ever had: such rows are never deleted."""
    newest = view.last(table)
    return 1 if newest is None else int(newest[next(iter(TABLES[table].columns))]) + 1


def dataset_record(row: Row) -> DatasetRecord:
    """A data set from its row joined with the name of its task (column ``task_name``)."""
    values = sound("datasets", row)
    return DatasetRecord(task=values.pop("task_name"), **values)


def adapter_record(
    row: Row, files: Mapping[str, str], context: Sequence[str], objects: Mapping[str, str]
) -> AdapterRecord:
    """An adapter from its row joined with the name and type of its task (columns ``task_name``, ``task_type``)."""
    values = sound("adapters", row)
    if row["task_type"] in TASK_TYPES and not task_kind(row["task_type"]).labelled:
        answers_in_text(values["task_name"], values["config"])
    return AdapterRecord(
        task=values.pop("task_name"), context=context, files=dict(files), objects=dict(objects), **values
    )


def composition_record(
    row: Row, members: Sequence[tuple[str, str]], objects: Mapping[str, str], names: Mapping[str, str]
) -> CompositionRecord:
    """A composition from its row.

    Args:
        row: Its row.
        members: Its members as (name of the task now, digest of the adapter).
        objects: Its blobs by role.
        names: What each member was called when the composition was made, and is called now: what a composition
            keeps of a member stands under the former.
    """
    values = sound("compositions", row)
    weights = values["parameters"].get("weights")
    if isinstance(weights, dict):
        values["parameters"]["weights"] = {names.get(task, task): weight for task, weight in weights.items()}
    return CompositionRecord(
        members=tuple(task for task, _ in members),
        adapters=tuple(digest for _, digest in members),
        objects={_renamed(role, names): blob for role, blob in objects.items()},
        **values,
    )


def _renamed(role: str, names: Mapping[str, str]) -> str:
    kind, colon, task = role.partition(":")
    return f"{kind}{colon}{names.get(task, task)}" if colon else role


def operation_record(row: Row) -> OperationRecord:
    """A reservation from its row, with whether its process lives.

    One of an older schema, or from before it, was seen when it was made.
    """
    from lorabank.bank.locks import is_alive

    values = sound("operations", row)
    started = values.pop("process_start")
    seen_at = row.get("seen_at")
    record = OperationRecord(**values | {"seen_at": values["started_at"] if seen_at is None else seen_at})
    return record._replace(alive=is_alive(record, started))
