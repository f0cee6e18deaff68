"""A bank: one base model, the tasks learnt on it, and everything that was made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorabank.bank.catalog.reading import (
    read_evaluations,
    read_events,
    read_learnt_scores,
    read_operations,
    read_scores,
    read_snapshot,
)
from lorabank.bank.catalog.sqlite import SqliteCatalog
from lorabank.bank.objects.layout import Layout
from lorabank.bank.objects.manifest import read_manifest
from lorabank.core.commands import LIST
from lorabank.core.errors import DamagedError, NotFoundError
from lorabank.core.records import BaseModelRecord, CompositionRecord, EvaluationRecord, Finding, OperationRecord

if TYPE_CHECKING:
    from lorabank.bank.catalog.base import Catalog
    from lorabank.bank.catalog.events import EventRecord
    from lorabank.bank.objects.base import Objects
    from lorabank.bank.operations import Operation
    from lorabank.bank.snapshot import Snapshot
    from lorabank.bank.upkeep.gc import GcResult
    from lorabank.bank.upkeep.undo import UndoResult


class Bank:
    """A bank that can be read and written: rows in a catalog, content in objects, and a folder on this machine.

    The folder holds ``bank.json`` and the work of changes under way; rows and content too, unless other places for
    them are given. Reading needs the standard library alone, and what writes is imported when it is called. Use
    ``create`` or ``open``.

    Attributes:
        path: The folder.
        id: The bank's id: random, made once.
        catalog: Where the bank's rows lie.
    """

    def __init__(
        self, layout: Layout, identifier: str, objects: Objects | None = None, catalog: Catalog | None = None
    ) -> None:
        self.path = layout.root
        self.id = identifier
        self.catalog: Catalog = SqliteCatalog(layout) if catalog is None else catalog
        self._layout = layout
        self._objects = objects

    @property
    def objects(self) -> Objects:
        """Where the bank's content lies: its own folder, unless it was made with another place."""
        if self._objects is None:
            from lorabank.bank.objects.folder import FolderObjects

            self._objects = FolderObjects(self._layout)
        return self._objects

    @classmethod
    def create(
        cls,
        path: Path | str,
        base: BaseModelRecord,
        *,
        objects: Objects | None = None,
        catalog: Catalog | None = None,
    ) -> Bank:
        """Make a new bank.

        Args:
            path: A folder that does not exist, or is empty.
            base: The base model of every adapter to come.
            objects: Where its content goes; None for the folder.
            catalog: Where its rows go, which has none yet; None for a database in the folder.

        Raises:
            ExistsError: There is a bank, or the folder holds other things.
            StorageError: No space, no permission, or an input/output error.
        """
        from lorabank.bank.creation import create

        layout = Layout(Path(path))
        return cls(layout, create(layout, base, catalog), objects, catalog)

    @classmethod
    def open(cls, path: Path | str, *, objects: Objects | None = None, catalog: Catalog | None = None) -> Bank:
        """Open a bank.

        Args:
            path: Its folder.
            objects: Where its content lies; None for the folder.
            catalog: Where its rows lie; None for the database in the folder.

        Raises:
            NotFoundError: There is no bank.
            IncompatibleError: Its schema is newer, or older and must be upgraded.
            DamagedError: It cannot be read.
        """
        layout = Layout(Path(path))
        bank = cls(layout, read_manifest(layout)["id"], objects, catalog)
        with bank.catalog.read():
            return bank

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether there is a finished bank in the folder."""
        return Layout(Path(path)).manifest.is_file()

    def snapshot(self) -> Snapshot:
        """Everything in the bank, read in one transaction."""
        with self.catalog.read() as view:
            return read_snapshot(view, self._layout)

    def last_change(self) -> tuple[Any, ...]:
        """What is another value after every change of what `snapshot` reads: each one leaves an event."""
        with self.catalog.read() as view:
            newest = view.last("events")
            return () if newest is None else (newest["id"], newest["created_at"], newest["row_digest"])

    def learnt_scores(self) -> tuple[Snapshot, dict[int, EvaluationRecord]]:
        """Everything in the bank, and the score of each task right after it was learnt, where it was measured.

        Returns:
            The snapshot, and by a task's position its newest cell as trained with the task id given, read in the same
            transaction.
        """
        with self.catalog.read() as view:
            snapshot = read_snapshot(view, self._layout)
            return snapshot, read_learnt_scores(view, snapshot)

    def contents(self) -> tuple[Snapshot, list[EvaluationRecord]]:
        """Everything in the bank and every stored score, oldest first, read in one transaction."""
        with self.catalog.read() as view:
            return read_snapshot(view, self._layout), read_evaluations(view)

    def evaluations(self, keys: Iterable[str]) -> dict[str, EvaluationRecord]:
        """The stored scores with these keys, by key."""
        with self.catalog.read() as view:
            return read_scores(view, keys)

    def all_evaluations(self) -> list[EvaluationRecord]:
        """Every stored score, oldest first."""
        with self.catalog.read() as view:
            return read_evaluations(view)

    def task_scores(self, name: str) -> list[EvaluationRecord]:
        """The stored scores on a task, oldest first, without those of another version or task that had its name."""
        from lorabank.bank.history import read_task_scores

        return read_task_scores(self.catalog, self.snapshot().task(name).position)

    def composition_scores(self, name: str) -> list[EvaluationRecord]:
        """The same of a composition; none where there is no such."""
        from lorabank.bank.history import read_composition_scores

        return read_composition_scores(self.catalog, name)

    def add_evaluations(self, records: Iterable[EvaluationRecord]) -> None:
        """Store scores; one whose key is there already is left as it is.

        Raises:
            DataError: A value is not finite.
            BusyError: Another process kept the database locked.
        """
        from lorabank.bank.catalog.commits import insert_evaluations

        insert_evaluations(self.catalog, list(records))

    def operations(self) -> list[OperationRecord]:
        """Changes under way or interrupted, oldest first; ``alive`` says which."""
        with self.catalog.read() as view:
            return read_operations(view)

    def reserve(self, kind: str, name: str, config: Mapping[str, Any]) -> Operation:
        """Reserve a name before the work starts, so that a name that is taken is refused at once.

        Args:
            kind: ``"add-task"``, ``"compose"`` or another verb, shown to who meets the reservation.
            name: Name of the task or composition to be; both share one set of names.
            config: Settings, kept for ``resume``. ``{"replace": True}`` lets ``compose`` take a composition's name,
                ``{"replaces": POSITION}`` lets a task take that task's name and, with the commit, its place;
                ``"note"`` and ``"tags"`` enter the bank with the commit.

        Raises:
            ConfigError: The name cannot be used.
            ExistsError: The name is taken, or an interrupted ``add-task`` of this name has checkpoints.
            BusyError: Another operation is under way.
            StorageError: The disk is nearly full.
        """
        from lorabank.bank.operations import reserve

        return reserve(self._layout, self.catalog, self.objects, kind, name, config)

    def resume(self, kind: str, name: str) -> Operation:
        """Take over the reservation of a dead process, with its settings and its ``work`` folder.

        Raises:
            NotFoundError: There is nothing to resume.
            BusyError: The operation, or another one, is still alive.
        """
        from lorabank.bank.operations import take_over

        return take_over(self._layout, self.catalog, self.objects, kind, name)

    def discard(self, name: str) -> None:
        """Drop the reservation of a dead process, with its checkpoints.

        Raises:
            NotFoundError: There is none of this name.
            BusyError: Its process is alive.
        """
        from lorabank.bank.operations import discard

        discard(self._layout, self.catalog, name)

    def keep_derived(self, composition: CompositionRecord, role: str, data: bytes) -> None:
        """Keep what follows from a composition beside it, so that it is worked out once; what is there stays.

        Args:
            composition: As it was read of the bank.
            role: Begins with `lorabank.core.records.DERIVED`.
            data: The content.

        Raises:
            NotFoundError: The composition was removed, or another one has its name.
            DataError: The content is broken.
            BusyError: Another process holds the bank.
            StorageError: No space, or an input/output error.
        """
        from lorabank.bank.derived import keep_derived
        from lorabank.bank.failures import reported

        with reported(self.path, unchanged="the bank was not changed"):
            keep_derived(self.catalog, self.objects, composition, role, data)

    def adapter_path(self, digest: str) -> Path:
        """The PEFT folder of an adapter; nothing is checked."""
        return self.objects.local(digest)

    def verified_adapter(self, digest: str) -> Path:
        """The PEFT folder of an adapter, checked as by `verified_adapters`."""
        return self._verified([digest])[digest][0]

    def verified_adapters(self, digests: Iterable[str]) -> dict[str, Path]:
        """The PEFT folders of adapters by digest, after every file's SHA-256 was compared with the records.

        Raises:
            NotFoundError: The bank has no such adapter.
            DamagedError: A file is missing or changed.
        """
        return {digest: folder for digest, (folder, _) in self._verified(digests).items()}

    def _verified(self, digests: Iterable[str]) -> dict[str, tuple[Path, list[str]]]:
        """Each adapter's folder and the names of its files."""
        from lorabank.bank.upkeep.referenced import recorded_files

        with self.catalog.read() as view:
            recorded = {digest: recorded_files(view, digest) for digest in digests}
        for digest, files in recorded.items():
            if not files:
                message = f"the bank has no adapter {digest[:12]!r}"
                raise NotFoundError(message, commands=[LIST], unchanged="the bank was not changed")
            if problems := self.objects.adapter_problems(digest, files):
                raise DamagedError(f"adapter {self.objects.local(digest)}: {problems[0]}")
        return {d: (self.objects.local(d), [file.name for file in files]) for d, files in recorded.items()}

    def adapter_files(self, digest: str) -> dict[str, bytes]:
        """The content of an adapter's files by name, checked as by `verified_adapters`.

        Raises:
            NotFoundError: The bank has no such adapter.
            DamagedError: A file is missing or changed.
            StorageError: A file cannot be read.
        """
        from lorabank.bank.failures import reported

        folder, names = self._verified([digest])[digest]
        with reported(folder):
            return {name: (folder / name).read_bytes() for name in names}

    def read_blob(self, digest: str) -> bytes:
        """The content of a blob, after its SHA-256 was compared.

        Raises:
            DamagedError: It is missing or changed.
        """
        return self.objects.get(digest)

    def remove(self, name: str, *, cascade: bool = False, dry_run: bool = False) -> tuple[str, ...]:
        """Remove a task or composition; its rows stay as lineage, its files go with ``gc``.

        Args:
            name: The task or composition.
            cascade: With a task, remove the compositions that need it.
            dry_run: Change nothing.

        Returns:
            The names removed, or to be removed.

        Raises:
            NotFoundError: There is nothing of this name.
            ExistsError: A composition needs the task.
            BusyError: An operation is under way.
        """
        from lorabank.bank.upkeep.removal import remove

        return remove(self._layout, self.catalog, name, cascade=cascade, dry_run=dry_run)

    def rename(self, old: str, new: str) -> None:
        """Give a task or composition another name; members, scores and lineage keep meaning the same.

        Raises:
            NotFoundError: There is nothing of the old name.
            ConfigError, ExistsError: The new name cannot be used.
            BusyError: An operation is under way.
        """
        from lorabank.bank.upkeep.remarks import rename

        rename(self._layout, self.catalog, old, new)

    def set_note(self, name: str, text: str | None) -> None:
        """Write a note to a task or composition in the place of the one it has; None or blanks for none.

        Raises:
            NotFoundError: There is nothing of this name.
            ConfigError: The note cannot be stored.
        """
        from lorabank.bank.upkeep.remarks import set_note

        set_note(self._layout, self.catalog, name, text)

    def change_tags(self, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> tuple[str, ...]:
        """Add tags to a task or composition and take others away.

        Returns:
            Its tags now.

        Raises:
            NotFoundError: There is nothing of this name, or it has no such tag.
            ConfigError: A tag cannot be stored.
        """
        from lorabank.bank.upkeep.remarks import change_tags

        return change_tags(self._layout, self.catalog, name, add, remove)

    def history(self) -> list[EventRecord]:
        """Every change of the bank, oldest first."""
        with self.catalog.read() as view:
            return read_events(view)

    def undo(self, *, dry_run: bool = False) -> UndoResult:
        """Take the newest change back that was not taken back yet; repeated, it goes further back.

        Args:
            dry_run: Check that it can be done, change nothing.

        Raises:
            NotFoundError: There is nothing to take back, or files that it needs are gone.
            ExistsError: A name that would come back is in use.
            BusyError: An operation is under way.
        """
        from lorabank.bank.upkeep.undo import undo

        return undo(self._layout, self.catalog, self.objects, dry_run=dry_run)

    def verify(self, *, full: bool, part: tuple[int, int] | None = None) -> list[Finding]:
        """Check the bank; an empty list means that nothing is wrong.

        Args:
            full: Also hash every file, read safetensors headers strictly, and look for values that are not finite.
                Otherwise: rows and their digests, and that files exist with the recorded size.
            part: ``(n, t)``: read the files of the n-th of t parts. All t parts together are a full check.

        Raises:
            ConfigError: There is no such part.
        """
        from lorabank.bank.upkeep.verify import verify

        return verify(self._layout, self.catalog, self.objects, full=full, part=part)

    def gc(self, *, dry_run: bool = False, grace_hours: float = 24.0) -> GcResult:
        """Delete files that nothing refers to.

        Args:
            dry_run: List them, change nothing.
            grace_hours: Younger adapters and blobs stay.

        Raises:
            BusyError: An operation is under way.
            DamagedError: A row cannot be trusted, so nothing is deleted.
        """
        from lorabank.bank.upkeep.gc import gc

        return gc(self._layout, self.catalog, self.objects, dry_run=dry_run, grace_hours=grace_hours)
