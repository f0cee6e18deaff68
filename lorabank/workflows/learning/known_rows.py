"""Evaluation rows that tasks of the bank were trained on: a score on them says less than it seems to."""

from __future__ import annotations

from functools import partial

from lorabank.bank.bank import Bank
from lorabank.bank.blobs import parsed_blob
from lorabank.bank.snapshot import Snapshot
from lorabank.core.errors import DamagedError
from lorabank.core.observer import Observer
from lorabank.data.known import count_known
from lorabank.data.rows import Rows


def known_rows(bank: Bank, snapshot: Snapshot | None, rows: Rows, observer: Observer) -> dict[str, int]:
    """How many evaluation rows are among the training rows of each task, said before anything is trained or scored.

    Args:
        bank: The bank.
        snapshot: Its state as the new task meets it, None where there is no bank. A task whose rows were not kept as
            digests, by an older version or by an import, says nothing.
        rows: The evaluation rows.
        observer: Gets a line for each task that knows some.

    Returns:
        Digest of the task's adapter to the number of rows.
    """
    found: dict[str, int] = {}
    if snapshot is None:
        return found
    for task in snapshot.tasks:
        train = snapshot.dataset(task.name, "train")
        if train is None or train.row_digests is None:
            continue
        try:
            count = parsed_blob(bank, train.row_digests, partial(count_known, rows))
        except DamagedError as error:
            observer.notice(f"cannot tell whether {task.name!r} was trained on evaluation rows: {error.message}")
            continue
        if count:
            found[snapshot.adapter_of(task.name).digest] = count
            observer.notice(
                f"{count} of {len(rows)} evaluation rows are among the training rows of {task.name!r}: "
                "an adapter trained on them scores better there than on new rows"
            )
    return found
