"""Keeping a bank: check, collect, mend, copy, put back, upgrade. These are functions of `lorabank.api`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorabank.core.arguments import checked

if TYPE_CHECKING:
    from lorabank.bank.history import Entry
    from lorabank.bank.upkeep.backup import BackupResult
    from lorabank.bank.upkeep.gc import GcResult
    from lorabank.bank.upkeep.repair import RepairResult
    from lorabank.bank.upkeep.restore import RestoreResult
    from lorabank.bank.upkeep.undo import UndoResult
    from lorabank.bank.upkeep.upgrade import UpgradeResult
    from lorabank.core.records import Finding
    from lorabank.workflows.doctor import Checkup


@checked
def verify(path: str | Path, *, full: bool = False, part: tuple[int, int] | None = None) -> tuple[Finding, ...]:
    """Check rows and files; ``full`` reads every byte, ``part=(n, t)`` those of one of t parts. Nothing is changed.

    With ``full`` the weights of the base model are read too, where they are on this disk.
    """
    from lorabank.workflows.verify import verify

    return verify(path, full=full, part=part)


@checked
def gc(path: str | Path, *, dry_run: bool = False, grace_hours: float = 24.0) -> GcResult:
    """Delete files that nothing refers to and that are older than the grace."""
    from lorabank.bank.bank import Bank

    return Bank.open(path).gc(dry_run=dry_run, grace_hours=grace_hours)


@checked
def history(path: str | Path) -> tuple[Entry, ...]:
    """Every change of the bank, newest first; ``next`` says which one `undo` takes back."""
    from lorabank.bank.bank import Bank
    from lorabank.bank.history import read_history

    return tuple(read_history(Bank.open(path).catalog))


@checked
def undo(path: str | Path, *, dry_run: bool = False) -> UndoResult:
    """Take the last change back while its files are there; repeated, it goes further back.

    A task or composition that was added is removed, what was removed can be used again, a name, a note and tags become
    what they were. The undo is itself a line of the history.

    Raises:
        NotFoundError: There is nothing to take back, or `gc` deleted files that it needs.
        ExistsError: A name that would come back is in use.
        BusyError: An operation is under way.
    """
    from lorabank.bank.bank import Bank

    return Bank.open(path).undo(dry_run=dry_run)


@checked
def rename(path: str | Path, old: str, new: str) -> None:
    """Give a task or composition another name; members, scores and lineage keep meaning the same.

    Raises:
        NotFoundError: There is nothing of the old name.
        ExistsError: The new name is taken.
    """
    from lorabank.bank.bank import Bank

    Bank.open(path).rename(old, new)


@checked
def set_note(path: str | Path, name: str, text: str | None) -> None:
    """Write a note to a task or composition in the place of the one it has; None for none."""
    from lorabank.bank.bank import Bank

    Bank.open(path).set_note(name, text)


@checked
def change_tags(
    path: str | Path, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()
) -> tuple[str, ...]:
    """Add tags to a task or composition and take others away; gives its tags now.

    Raises:
        NotFoundError: There is nothing of this name, or it has no such tag.
    """
    from lorabank.bank.bank import Bank

    return Bank.open(path).change_tags(name, add=add, remove=remove)


@checked
def doctor(path: str | Path, *, full: bool = False) -> Checkup:
    """Facts for a bug report (versions, devices, base model, the bank's state), warnings, and the bank's findings.

    Args:
        path: The bank's folder; there need be no bank.
        full: Read every file of the bank.
    """
    from lorabank.workflows.doctor import doctor as run

    return run(path, full=full)


@checked
def repair(path: str | Path, *, source: str | Path | None = None) -> RepairResult:
    """Mend what can be mended without losing anything.

    What dead operations left is swept, damaged files go to `quarantine/`, good copies are fetched by digest, and tasks
    that still lack a file are set aside, so that all others can be used.

    Args:
        path: The bank's folder.
        source: A copy of the bank, or an exported folder, to fetch good files from.

    Raises:
        BusyError: An operation is under way.
        DamagedError: The database itself is damaged: `restore` puts a copy back.
    """
    from lorabank.bank.objects.layout import Layout
    from lorabank.bank.upkeep.repair import repair as run

    return run(Layout(Path(path)), None if source is None else Path(source))


@checked
def backup(path: str | Path, target: str | Path | None = None) -> BackupResult:
    """Copy the database into the bank's `backups/` (the newest three stay), or the whole bank into another folder.

    Args:
        path: The bank's folder.
        target: A folder that does not exist, is empty, or holds an earlier copy of this bank, which is brought up to
            date. The copy is itself a bank.

    Raises:
        DamagedError: A row or a file of the bank is damaged; the copies that there are stay as they are.
        ExistsError: The folder holds something else.
    """
    from lorabank.bank.objects.layout import Layout
    from lorabank.bank.upkeep.backup import back_up_database, copy_bank

    layout = Layout(Path(path))
    return back_up_database(layout) if target is None else copy_bank(layout, Path(target))


@checked
def restore(path: str | Path, backup: str | Path, *, incomplete: bool = False, dry_run: bool = False) -> RestoreResult:
    """Put a backup back; it is checked first, and the database that is there is kept aside.

    Args:
        path: The bank's folder; with a copy of a whole bank it need not exist.
        backup: A database in the bank's `backups/` (path or name), or a copy of the whole bank.
        incomplete: Put it back although files that it names are gone.
        dry_run: Check it and say what would change.

    Raises:
        NotFoundError: There is no such backup.
        DamagedError: It is damaged, or files that it names are gone.
        IncompatibleError: It is of another bank, or a newer version wrote it.
        BusyError: An operation is under way.
    """
    from lorabank.bank.objects.layout import Layout
    from lorabank.bank.upkeep.restore import restore as run

    return run(Layout(Path(path)), Path(backup), incomplete=incomplete, dry_run=dry_run)


@checked
def upgrade(path: str | Path, *, dry_run: bool = False) -> UpgradeResult:
    """Bring an older bank to this version's schema, after a backup."""
    from lorabank.bank.upkeep.upgrade import upgrade_database

    return upgrade_database(path, dry_run=dry_run)
