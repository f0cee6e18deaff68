"""Bringing the schema of a bank to this version's, in one transaction, with a copy made before."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from lorabank.bank.catalog.connections import connect_to_read
from lorabank.bank.catalog.definitions import REVISIONS, newer_schema, read_revision
from lorabank.bank.catalog.events import Change, log_event
from lorabank.bank.catalog.migrating import driver_of, engine, migrate
from lorabank.bank.catalog.reading import read_operations
from lorabank.bank.catalog.sqlite import SqliteTransaction, SqliteView
from lorabank.bank.failures import busy, database_error, malformed, reported
from lorabank.bank.locks import bank_lock
from lorabank.bank.objects.layout import Layout
from lorabank.bank.objects.manifest import read_manifest
from lorabank.bank.upkeep.backup import back_up
from lorabank.core.errors import BusyError, IncompatibleError, LorabankError, StorageError


@dataclass(frozen=True, slots=True)
class UpgradeResult:
    """What an upgrade did, or would do.

    Attributes:
        before: Schema revision found.
        after: Schema revision now (with ``dry_run``: after a real run).
        backup: The copy made before, None when nothing was to be done.
    """

    before: str
    after: str
    backup: str | None


def upgrade_database(path: Path | str, *, dry_run: bool = False) -> UpgradeResult:
    """Bring the schema of a bank to this version's.

    A copy goes to ``backups/`` first (the newest three are kept); all revisions run in one transaction, so a failed
    or killed upgrade leaves the old schema.

    Args:
        path: The bank folder.
        dry_run: Say what would happen.

    Raises:
        NotFoundError: There is no bank.
        IncompatibleError: A newer version wrote the bank.
        BusyError: An operation is under way, or another process holds the lock.
        DamagedError: The database or its copy is not sound.
    """
    layout = Layout(Path(path))
    read_manifest(layout)
    if dry_run:
        before = _known_revision(layout)
        return UpgradeResult(before, REVISIONS[-1], None)
    with bank_lock(layout.lock, exclusive=True), reported(layout.root, unchanged="the bank was not changed"):
        before = _known_revision(layout)
        if before == REVISIONS[-1]:
            return UpgradeResult(before, before, None)
        _refuse_live_operations(layout)
        layout.make_folders()
        backup = back_up(layout)
        with engine(layout.database).begin() as connection:
            try:
                migrate(connection, layout.database)
                change = Change(before={"schema": before}, after={"schema": REVISIONS[-1]})
                log_event(SqliteTransaction(driver_of(connection)), "upgrade", "", change)
            except LorabankError:
                raise
            except Exception as error:
                known = database_error(error, layout.root, None)
                if isinstance(error, OSError) or isinstance(known, BusyError | StorageError) or malformed(error):
                    raise
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise IncompatibleError(
                    f"bank {layout.root}: the upgrade from schema {before} failed: {reason}",
                    hint=f"keep using the version that made the bank; a copy of bank.db is at {backup}",
                    unchanged="the bank was not changed",
                ) from error
        return UpgradeResult(before, REVISIONS[-1], str(backup))


def _known_revision(layout: Layout) -> str:
    with reported(layout.root), closing(connect_to_read(layout.database)) as connection:
        revision = read_revision(connection)
    if revision not in REVISIONS:
        raise newer_schema(layout.database, revision)
    return revision


def _refuse_live_operations(layout: Layout) -> None:
    with closing(connect_to_read(layout.database)) as connection:
        for operation in read_operations(SqliteView(connection)):
            if operation.alive:
                raise busy(layout, operation)
