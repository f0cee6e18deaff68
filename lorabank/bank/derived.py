"""What follows from a composition and was worked out after it was stored, as a stage that a matrix asked for.

It is kept beside the composition so that it is worked out once. No row becomes another: a row of
``composition_objects`` and one of ``events`` are added, by the steps of every change (docs/bank.md) but for the
reservation, since nothing can be in its way: of two that keep the same, the first one's stays.
"""

from __future__ import annotations

import os

from lorabank.bank.catalog.base import Catalog
from lorabank.bank.catalog.commits import in_use, insert_composition_object
from lorabank.bank.objects.base import Objects
from lorabank.core.errors import NotFoundError
from lorabank.core.records import CompositionRecord


def keep_derived(catalog: Catalog, objects: Objects, composition: CompositionRecord, role: str, data: bytes) -> None:
    """Add an object to a composition; see ``Bank.keep_derived``."""
    stage = objects.stage(os.urandom(16).hex())
    try:
        with catalog.lock(exclusive=False):
            digest = stage.add_blob(data)
            stage.place()
            with catalog.write() as transaction:
                row = in_use(transaction, "compositions", composition.name)
                if row is None or row["created_at"] != composition.created_at:
                    raise NotFoundError(
                        f"composition {composition.name[:80]!r} is not in the bank any more",
                        unchanged="the bank was not changed",
                    )
                if not transaction.rows("composition_objects", composition=row["id"], role=role):
                    insert_composition_object(transaction, objects, stage, row, role, digest)
    finally:
        stage.discard()
