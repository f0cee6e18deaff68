"""Changes of a bank: a name is reserved, files are staged, and one transaction makes them part of the bank."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from lorabank.bank.catalog.base import Catalog, Transaction, View
from lorabank.bank.catalog.commits import Version, in_use, insert_composition, insert_fold, insert_task
from lorabank.bank.catalog.heartbeat import Heartbeat
from lorabank.bank.catalog.reading import read_operations
from lorabank.bank.catalog.rows import row_of
from lorabank.bank.catalog.times import now
from lorabank.bank.failures import busy, reported, taken
from lorabank.bank.locks import boot_id, host_name, process_start
from lorabank.bank.objects.base import Objects
from lorabank.bank.objects.layout import Layout, check_name
from lorabank.bank.objects.store import check_space
from lorabank.core.commands import Command
from lorabank.core.errors import DivergedError, ExistsError, LorabankError, NotFoundError
from lorabank.core.records import AdapterRecord, CompositionRecord, DatasetRecord, OperationRecord, TaskRecord

RESUMABLE = "add-task"
"""The kind of operation whose work outlives its process."""


class Operation:
    """A change under way: the holder of a reserved name.

    A context manager. Without a commit the reservation is dropped at the end of the block; an ``add-task`` that was
    interrupted keeps its reservation and ``work`` when a checkpoint lies there, so that it can be resumed. One that
    diverged would diverge again, so it keeps nothing.

    While the block lasts the reservation says every minute that its process lives; what another process took over
    meanwhile is that one's, and neither committed nor dropped here.

    Args:
        layout: The bank's folder.
        catalog: Where its rows lie.
        objects: Where its content lies.
        record: The reservation, already in the catalog.
        holder: Its process columns as they are there.
    """

    def __init__(
        self, layout: Layout, catalog: Catalog, objects: Objects, record: OperationRecord, holder: Mapping[str, Any]
    ) -> None:
        self.id = record.id
        self.kind = record.kind
        self.name = record.name
        self.config: dict[str, Any] = record.config
        self.work = layout.work(record.id)
        self._layout = layout
        self._catalog = catalog
        self._objects = objects
        self._stage = objects.stage(record.id)
        self._shared_lock = ExitStack()
        self._finished = False
        self._mine = {"id": record.id, **holder}
        self._heartbeat = Heartbeat(catalog, self._mine)
        self.work.mkdir(mode=0o700, exist_ok=True)

    def stage_blob(self, data: bytes) -> str:
        """Write a blob beside the bank and check it; it enters with the commit.

        Args:
            data: The content; safetensors are checked for their header and for finite values.

        Returns:
            Its SHA-256.

        Raises:
            DataError: The content is broken.
            StorageError: No space, or an input/output error.
        """
        self._hold_lock()
        with reported(self._layout.root, unchanged="the bank was not changed"):
            return self._stage.add_blob(data)

    def stage_adapter(self, files: Mapping[str, bytes]) -> str:
        """Write an adapter folder beside the bank and check it; it enters with the commit.

        Args:
            files: File name to content: ``adapter_config.json``, ``adapter_model.safetensors``.

        Returns:
            The adapter's digest, over its files' names, hashes and sizes.

        Raises:
            ConfigError: A file's name cannot be used.
            DataError: A file is broken, or holds values that are not finite.
            StorageError: No space, or an input/output error.
        """
        self._hold_lock()
        with reported(self._layout.root, unchanged="the bank was not changed"):
            return self._stage.add_adapter(files)

    def commit_task(self, task: TaskRecord, adapter: AdapterRecord, datasets: Sequence[DatasetRecord]) -> TaskRecord:
        """Make a task part of the bank.

        Args:
            task: The task; its position, state, note and tags are set here.
            adapter: Its adapter; files, size and time are taken from what was staged. Each digest in its objects
                must have been staged, or be in the bank.
            datasets: Its data sets.

        Returns:
            The task as stored.

        Raises:
            ExistsError: The name was taken meanwhile.
            IncompatibleError: A file, blob or adapter that the task refers to is not in the bank.
        """
        self._place()
        task, replaces = task._replace(**self._remarks()), self.config.get("replaces")
        with self._catalog.write() as transaction:
            self._end(transaction)
            stored = insert_task(
                transaction, self._objects, self._stage, task, adapter, datasets, kind=self.kind, replaces=replaces
            )
        self._finish()
        return stored

    def commit_composition(self, composition: CompositionRecord, *, replace: bool = False) -> CompositionRecord:
        """Make a composition part of the bank.

        Args:
            composition: The composition; its time, note and tags are set here.
            replace: Remove the composition that has this name.

        Returns:
            The composition as stored.

        Raises:
            ExistsError: The name was taken meanwhile.
            IncompatibleError: A member or object is not in the bank.
        """
        self._place()
        composition = composition._replace(**self._remarks())
        with self._catalog.write() as transaction:
            self._end(transaction)
            stored = insert_composition(transaction, self._objects, self._stage, composition, replace=replace)
        self._finish()
        return stored

    def commit_fold(self, versions: Sequence[Version], composition: CompositionRecord) -> CompositionRecord:
        """Make new versions of several tasks part of the bank, and a composition of them, as one change.

        Args:
            versions: The new versions, each of which says what it ``replaces``; the first one's adapter may be in the
                contexts of the others.
            composition: The composition; its time, note and tags are set here.

        Returns:
            The composition as stored.

        Raises:
            ExistsError: A name was taken meanwhile.
            IncompatibleError: A file, blob or adapter that is referred to is not in the bank.
        """
        self._place()
        composition = composition._replace(**self._remarks())
        with self._catalog.write() as transaction:
            self._end(transaction)
            stored = insert_fold(transaction, self._objects, self._stage, versions, composition)
        self._finish()
        return stored

    def __enter__(self) -> Operation:
        self._heartbeat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._heartbeat.stop()
        self._shared_lock.close()
        if self._finished:
            return
        self._stage.discard()
        # What ended the block matters more than a reservation that cannot be dropped: it lapses with this process.
        with suppress(LorabankError) if error else nullcontext():
            interrupted = error is not None and not isinstance(error, DivergedError)
            self._give_up(resumable=interrupted and self.kind == RESUMABLE and holds_checkpoint(self.work))

    def _give_up(self, *, resumable: bool) -> None:
        """Drop the reservation with its work, or leave both to be resumed at once, also by this process."""
        with self._catalog.write() as transaction:
            if resumable:
                transaction.update("operations", self._mine, pid=0)
                return
            mine = transaction.delete("operations", self._mine)
        if mine:
            shutil.rmtree(self.work, ignore_errors=True)

    def _hold_lock(self) -> None:
        """From the first staged file to the commit, not while training: ``gc`` would wait for hours."""
        if not self._finished and self._stage.is_empty:
            self._shared_lock.close()
            self._shared_lock.enter_context(self._catalog.lock(exclusive=False))

    def _remarks(self) -> dict[str, Any]:
        """Note and tags, which were given with the reservation: see `lorabank.bank.upkeep.remarks.remarks`."""
        return {"note": self.config.get("note"), "tags": tuple(self.config.get("tags", ()))}

    def _place(self) -> None:
        self._hold_lock()
        with reported(self._layout.root, unchanged="the bank was not changed"):
            self._stage.place()

    def _end(self, transaction: Transaction) -> None:
        """Drop the reservation inside the commit's transaction, so that both happen or neither."""
        if transaction.delete("operations", self._mine) != 1:
            raise NotFoundError(
                f"the reservation of {self.kind} {self.name!r} is gone: another process dropped it or took it over",
                unchanged="the bank was not changed",
            )

    def _finish(self) -> None:
        self._finished = True
        self._shared_lock.close()
        self._stage.discard()
        shutil.rmtree(self.work, ignore_errors=True)


def reserve(
    layout: Layout, catalog: Catalog, objects: Objects, kind: str, name: str, config: Mapping[str, Any]
) -> Operation:
    """Reserve a name before the work starts; see ``Bank.reserve``."""
    check_name(name)
    holder, moment = _this_process(), now()
    record = OperationRecord(
        id=os.urandom(16).hex(),
        kind=kind,
        name=name,
        pid=holder["pid"],
        boot_id=holder["boot_id"],
        host=holder["host"],
        config=dict(config),
        started_at=moment,
        seen_at=moment,
    )
    with catalog.lock(exclusive=False):
        layout.make_folders()
        check_space(layout.root, 0)
        with catalog.write() as transaction:
            _refuse_taken(transaction, kind, name, config)
            _settle_operations(transaction, layout, name)
            transaction.insert("operations", row_of("operations", record, **holder))
        return Operation(layout, catalog, objects, record, holder)


def _this_process() -> dict[str, Any]:
    """The process columns of a reservation that this process holds."""
    pid = os.getpid()
    return {"pid": pid, "boot_id": boot_id(), "host": host_name(), "process_start": process_start(pid)}


def take_over(layout: Layout, catalog: Catalog, objects: Objects, kind: str, name: str) -> Operation:
    """Go on with a reservation whose process is dead; see ``Bank.resume``."""
    with catalog.lock(exclusive=False):
        with catalog.write() as transaction:
            found = None
            for operation in read_operations(transaction):
                if operation.alive:
                    raise busy(layout, operation)
                if (operation.kind, operation.name) == (kind, name):
                    found = operation
            if found is None:
                raise NotFoundError(
                    f"there is no interrupted {kind} {name[:80]!r} to resume",
                    hint="leave --resume out",
                    unchanged="the bank was not changed",
                )
            holder = _this_process()
            transaction.update("operations", {"id": found.id}, **holder, seen_at=now())
        return Operation(layout, catalog, objects, found, holder)


def discard(layout: Layout, catalog: Catalog, name: str) -> None:
    """Drop a dead reservation with its checkpoints; see ``Bank.discard``."""
    with catalog.lock(exclusive=False):
        with catalog.write() as transaction:
            found = [operation for operation in read_operations(transaction) if operation.name == name]
            for operation in found:
                if operation.alive:
                    raise busy(layout, operation)
                transaction.delete("operations", {"id": operation.id})
        for operation in found:
            _clear(layout, operation.id)
    if not found:
        raise NotFoundError(f"there is no interrupted operation {name[:80]!r}", unchanged="the bank was not changed")


def drop(layout: Layout, catalog: Catalog, identifier: str) -> None:
    """Delete a reservation and what it left in ``work`` and ``staging``."""
    with catalog.write() as transaction:
        transaction.delete("operations", {"id": identifier})
    _clear(layout, identifier)


def _clear(layout: Layout, identifier: str) -> None:
    shutil.rmtree(layout.staging(identifier), ignore_errors=True)
    shutil.rmtree(layout.work(identifier), ignore_errors=True)


def refuse_live(view: View, layout: Layout) -> None:
    """Refuse while another process works on the bank.

    Raises:
        BusyError: Naming the process and what it does.
    """
    for operation in read_operations(view):
        if operation.alive:
            raise busy(layout, operation)


def refuse_reserved(view: View, layout: Layout, names: Collection[str], *, owners: Collection[int] = ()) -> None:
    """Refuse a name that an interrupted training has which can be resumed.

    Args:
        view: The rows.
        layout: The bank's folder.
        names: The names.
        owners: Positions of the tasks that get them: a training that is to replace such a task is in nobody's way.

    Raises:
        ExistsError: Saying how to resume it, or to drop it.
    """
    for operation in read_operations(view):
        if operation.config.get("replaces") in owners:
            continue
        if operation.name in names and operation.kind == RESUMABLE and holds_checkpoint(layout.work(operation.id)):
            raise ExistsError(
                f"an interrupted {operation.kind} has the name {operation.name!r}",
                hint="resume it first, or choose another name",
                commands=[Command("add-task", operation.name, "--resume")],
                unchanged="the bank was not changed",
            )


def holds_checkpoint(work: Path) -> bool:
    """Whether a work folder holds a finished checkpoint: a folder named ``checkpoint-...``."""
    return any(entry.is_dir() for entry in work.glob("checkpoint-*"))


def _settle_operations(transaction: Transaction, layout: Layout, name: str) -> None:
    """Refuse beside a live operation; let dead ones lapse, except what could be resumed."""
    refuse_live(transaction, layout)
    for operation in read_operations(transaction):
        if operation.kind == RESUMABLE and holds_checkpoint(layout.work(operation.id)):
            if operation.name == name:
                raise ExistsError(
                    f"an interrupted {operation.kind} {name!r} from {operation.started_at[:19]}Z has checkpoints",
                    hint="resume it, or start again with --restart",
                    commands=[Command("add-task", name, "--resume")],
                    unchanged="the bank was not changed",
                )
            continue
        transaction.delete("operations", {"id": operation.id})


def _refuse_taken(view: View, kind: str, name: str, config: Mapping[str, Any]) -> None:
    """Tasks and compositions share one set of names; a new version may have the name of what it replaces."""
    task = in_use(view, "tasks", name)
    if task is not None and task["position"] != config.get("replaces"):
        raise taken("task", name, kind=kind)
    replaces = kind == "compose" and config.get("replace")
    if not replaces and in_use(view, "compositions", name) is not None:
        raise taken("composition", name, kind=kind)
