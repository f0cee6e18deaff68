"""Which stored files the bank needs: those that a row in use refers to.

Rows of removed tasks and compositions are lineage and need no files, except that an adapter stays for as long as a
later adapter, which was trained on top of it, is in use; its objects go with its task. A task that was set aside as
damaged (state ``failed``) keeps what is left of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lorabank.bank.catalog.base import Row, View
from lorabank.bank.catalog.columns import NUMBER, TABLES, sound
from lorabank.bank.catalog.lineage import Lineages
from lorabank.bank.catalog.rows import in_order, is_sealed
from lorabank.bank.objects.base import StoredFile
from lorabank.core.errors import DataError
from lorabank.core.records import Lineage


@dataclass(frozen=True)
class LiveFiles:
    """What must be on the disk.

    Attributes:
        adapters: Adapter digest to (name of its task, its files).
        blobs: Blob digest to its hash and size.
        owners: Blob digest to what it is; one that several have is the first one's.
    """

    adapters: dict[str, tuple[str, list[StoredFile]]]
    blobs: dict[str, StoredFile]
    owners: dict[str, str]


def live_files(view: View, *, tasks: Iterable[int] = (), compositions: Iterable[int] = ()) -> LiveFiles:
    """Read what the rows in use refer to.

    Args:
        view: The rows; those of an older schema have fewer tables and columns.
        tasks: Positions of removed tasks that count as in use.
        compositions: The same of compositions.
    """
    names = {row["position"]: row["name"] for row in view.rows("tasks")}
    used = _used(view, "tasks", tasks)
    made = _used(view, "compositions", compositions)
    owners: dict[str, str] = {}
    for blob, owner in _used_blobs(view, used, made):
        if blob is not None:
            owners[blob] = min(owner, owners.get(blob, owner))
    sizes = {blob["digest"]: blob["bytes"] for blob in (sound("blobs", row) for row in view.rows("blobs"))}
    blobs = {digest: StoredFile(digest, digest, sizes.get(digest, -1)) for digest in sorted(owners, key=str)}
    trained = view.rows("adapters")
    needed = _needed(Lineages(view, {row["id"]: row["id"] for row in trained}), used)
    files: dict[int, list[StoredFile]] = {}
    for row in view.rows("adapter_files"):
        if row["adapter"] in needed:
            files.setdefault(row["adapter"], []).append(StoredFile(**sound("adapter_files", row)))
    adapters = {
        row["digest"]: (names[row["id"]], sorted(files.get(row["id"], []), key=lambda file: file.name))
        for row in reversed(in_order(trained, "id"))
        if row["id"] in needed and row["id"] in names
    }
    return LiveFiles(adapters, blobs, owners)


def _needed(lineages: Lineages[int], tasks: Iterable[int]) -> set[int]:
    """Positions of the adapters of some tasks, and of those that these were trained on top of."""
    own = set(tasks)
    return own | Lineage.union(lineages[position] for position in own if position in lineages).keys()


def _used(view: View, table: str, others: Iterable[int]) -> dict[int, str]:
    """Names of rows that are in use, or count as such, by their numbers."""
    number, more = NUMBER[table], set(others)
    rows = (row for row in view.rows(table) if row["state"] in ("ready", "failed") or row[number] in more)
    return {row[number]: row["name"] for row in rows}


def _used_blobs(view: View, tasks: dict[int, str], compositions: dict[int, str]) -> Iterator[tuple[str | None, str]]:
    """The blobs of some tasks and compositions, and whose each is."""
    for row in view.rows("tasks"):
        if row["position"] in tasks:
            yield row["statistics"], f"the statistics of task {row['name']}"
    for row in view.rows("datasets"):
        if (name := tasks.get(row["task"])) is not None:
            yield row["blob"], f"the {row['split']} rows of task {name}"
            yield row.get("row_digests"), f"the digests of the {row['split']} rows of task {name}"
    for row in view.rows("adapter_objects"):
        if (name := tasks.get(row["adapter"])) is not None:
            yield row["blob"], f"the {row['role']} of task {name}"
    for row in view.rows("composition_objects"):
        if (name := compositions.get(row["composition"])) is not None:
            yield row["blob"], f"the {row['role']} of composition {name}"


def changed_rows(view: View) -> list[tuple[str, str]]:
    """Rows whose immutable columns no longer match their digest, as (table, key)."""
    found = []
    for table, described in TABLES.items():
        first = next(iter(described.columns))
        for row in view.rows(table):
            if not _is_unchanged(table, row):
                found.append((table, str(row[first])[:80]))
    return found


def _is_unchanged(table: str, row: Row) -> bool:
    try:
        return is_sealed(table, row)
    except (DataError, LookupError):  # a flipped bit turned text into bytes, or renamed a column in the schema
        return False


def recorded_files(view: View, digest: str) -> list[StoredFile]:
    """The files of an adapter as recorded, also of a removed task's; empty when the bank never had it."""
    adapters = view.rows("adapters", digest=digest)
    rows = view.rows("adapter_files", adapter=min(row["id"] for row in adapters)) if adapters else []
    return sorted((StoredFile(**sound("adapter_files", row)) for row in rows), key=lambda file: file.name)
