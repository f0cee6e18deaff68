"""Any order of adding, composing, removing, collecting, copying, mending, killing and damaging, against a model.

After each step the invariants of docs/bank.md hold: I1 and I7 (rows and files are what was written, or `verify` names
what is not), I2 and I3 (what was acknowledged is there, what was killed is there whole or not at all), I4 (nothing
outside is touched), I5 (no file goes that a row needs), I6 (reading changes nothing).

Small by default; ``STATE_MACHINE_EXAMPLES=200 STATE_MACHINE_STEPS=30`` runs it at size.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.bank.upkeep import referenced as live
from lorabank.core.errors import DamagedError, ExistsError, IncompatibleError, NotFoundError
from lorabank.exchange.safe_folders import write_folder
from tests.unit.bank.conftest import Kit
from tests.unit.bank.test_kill import run_killed

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
WEIGHTS = st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0])
kit = Kit()


@cache
def empty_bank() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lorabank-empty-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Bank.create(folder / "bank", Kit.base).path


@dataclass(frozen=True)
class Task:
    """What the model knows of a task: digests of its adapter, of the adapters below it, and of its blobs."""

    adapter: str
    context: tuple[str, ...]
    blobs: frozenset[str]


class BankMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
        self.path = Path(shutil.copytree(empty_bank(), self.folder / "bank"))
        self.mirror = self.folder / "mirror"  # every file that was ever stored, as a bank has them
        self.outside = self.folder / "outside"
        self.outside.mkdir()
        (self.outside / "thesis.tex").write_text("ten years")
        self.tasks: dict[str, Task] = {}
        self.compositions: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {}
        self.damaged: tuple[Path, bytes] | None = None

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @property
    def bank(self) -> Bank:
        return Bank.open(self.path)

    def live(self) -> set[str]:
        """Digests that must be on the disk."""
        needed = {task.adapter for task in self.tasks.values()}
        needed |= {digest for task in self.tasks.values() for digest in task.context}
        needed |= {digest for task in self.tasks.values() for digest in task.blobs}
        return needed | {digest for _, objects in self.compositions.values() for digest in objects}

    def observe(self) -> None:
        """Take over what is in the bank: after an acknowledged change its digests, after a kill how it ended."""
        snapshot = self.bank.snapshot()
        self.tasks = {}
        for task in snapshot.tasks:
            adapter = snapshot.by_position[task.position]
            kept = {data.blob for data in snapshot.datasets if data.task == task.name}
            blobs = {task.statistics, *adapter.objects.values(), *kept} - {None}
            self.tasks[task.name] = Task(adapter.digest, adapter.context, frozenset(map(str, blobs)))
        self.compositions = {
            made.name: (made.members, frozenset(made.objects.values())) for made in snapshot.compositions
        }
        for file in (file for name in ("adapters", "blobs") for file in (self.path / name).rglob("*")):
            kept = self.mirror / file.relative_to(self.path)
            if file.is_file() and not kept.exists() and not (self.damaged and file == self.damaged[0]):
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, kept)

    def names(self) -> set[str]:
        return {*self.tasks, *self.compositions}

    # -------------------------------------------------------------------------------------------- changes

    def add(self, name: str, weight: float, on_top: bool) -> None:
        context = tuple(task.adapter for task in self.tasks.values())[:2] if on_top else ()
        kit.add_task(self.bank, name, weight=weight, context=tuple(dict.fromkeys(context)))

    @rule(weight=WEIGHTS)
    def add_on_top(self, weight: float) -> None:
        """A task of a name that is free, trained on top of earlier ones."""
        self.add_task(next(name for name in map("t{}".format, range(100)) if name not in self.names()), weight, True)

    @rule(name=NAMES, weight=WEIGHTS, on_top=st.booleans())
    def add_task(self, name: str, weight: float, on_top: bool) -> None:
        """Also what import does: the same content under another name is one adapter."""
        before = self.names()
        if name in before:
            try:
                self.add(name, weight, on_top)
            except ExistsError:
                return
            raise AssertionError("the name was taken")
        try:
            self.add(name, weight, on_top)
        except IncompatibleError:  # an adapter below it is damaged beyond being a folder
            assert self.damaged
            return
        self.observe()
        assert self.names() == before | {name}

    @precondition(lambda self: self.tasks)
    @rule(name=NAMES, selector=WEIGHTS, data=st.data())
    def compose(self, name: str, selector: float, data: st.DataObject) -> None:
        before = self.names()
        if name in before:
            name = f"{name}-{len(before)}"
        members = data.draw(st.lists(st.sampled_from(sorted(self.tasks)), min_size=1, max_size=3, unique=True))
        kit.compose(self.bank, name, tuple(members), content=kit.safetensors(selector))
        self.observe()
        assert self.names() == before | {name}

    @rule(cascade=st.booleans(), and_collect=st.booleans(), data=st.data())
    def remove(self, cascade: bool, and_collect: bool, data: st.DataObject) -> None:
        before = self.names()
        name = data.draw(st.sampled_from([*sorted(before), "nobody"]))
        needed_by = {made for made, (members, _) in self.compositions.items() if name in members}
        try:
            gone = self.bank.remove(name, cascade=cascade)
        except NotFoundError:
            assert name not in before
            return
        except ExistsError:
            assert needed_by
            assert not cascade
            return
        assert set(gone) == {name} | (needed_by if name in self.tasks else set())
        self.observe()
        assert self.names() == before - set(gone)
        if and_collect:
            self.collect(True)

    @rule(all_at_once=st.booleans())
    def collect(self, all_at_once: bool) -> None:
        self.bank.gc(dry_run=False, grace_hours=-1 if all_at_once else 24)
        if all_at_once:
            there = {path.name for path in (self.path / "adapters").iterdir()}
            there |= {path.name for path in (self.path / "blobs").glob("??/*")}
            assert there == self.live()
            for name in ("staging", "work", "trash"):
                assert list((self.path / name).iterdir()) == []

    @rule()
    def upgrade(self) -> None:
        result = api.upgrade(self.path)
        assert result.before == result.after

    # --------------------------------------------------------------------------------------------- copies

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def export(self, data: st.DataObject) -> None:
        """What ``export`` does with a task's own adapter; these adapters have no base on which PEFT could be asked."""
        name = data.draw(st.sampled_from(sorted(self.tasks)))
        target = self.folder / "exported"
        try:
            folder = self.bank.verified_adapter(self.tasks[name].adapter)
        except DamagedError:
            assert self.damaged
            assert self.tasks[name].adapter in str(self.damaged[0])
            return
        write_folder(target, {path.name: path.read_bytes() for path in folder.iterdir()})
        assert kit.tree(target) == kit.tree(self.mirror / "adapters" / self.tasks[name].adapter)
        shutil.rmtree(target)

    @rule()
    def back_up_and_restore(self) -> None:
        before, snapshot = self.names(), self.bank.snapshot()
        made = api.backup(self.path)
        for name in sorted(before):
            self.bank.remove(name, cascade=True) if name in {t.name for t in self.bank.snapshot().tasks} else None
        try:
            api.restore(self.path, made.path)
        except DamagedError:  # the damage may be a file of another length: then it counts as missing
            assert self.damaged
            api.restore(self.path, made.path, incomplete=True)
        self.observe()
        assert self.names() == before
        assert self.bank.snapshot() == snapshot

    @precondition(lambda self: self.damaged is None)
    @rule()
    def copy_the_bank(self) -> None:
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        api.backup(self.path, copy)
        assert Bank.open(copy).snapshot() == self.bank.snapshot()
        assert Bank.open(copy).verify(full=True) == []

    # --------------------------------------------------------------------------------------------- faults

    @rule(
        kind=st.sampled_from(["add", "compose", "remove", "collect", "back up"]),
        step=st.integers(1, 60),
        weight=WEIGHTS,
    )
    def kill(self, kind: str, step: int, weight: float) -> None:
        """A process is killed in the middle of a change: it happened or not."""
        before = self.names()
        name = next((name for name in "abcde" if name not in before), None)
        first = min(self.tasks, default=None)
        actions: dict[str, Callable[[], object]] = {
            "collect": lambda: self.bank.gc(dry_run=False, grace_hours=-1),
            "back up": lambda: api.backup(self.path),
        }
        after = before
        if name is not None and kind == "add":
            after = before | {name}
            actions["add"] = lambda: self.add(name, weight, False)
        elif name is not None and first is not None and kind == "compose":
            after = before | {name}
            actions["compose"] = lambda: kit.compose(self.bank, name, (first,), content=kit.safetensors(weight))
        elif first is not None and kind == "remove":
            after = before - {first} - {made for made, (members, _) in self.compositions.items() if first in members}
            actions["remove"] = lambda: self.bank.remove(first, cascade=True)
        if kind not in actions:
            return
        killed = run_killed(actions[kind], step)
        self.observe()
        assert self.names() in ([before, after] if killed else [after])

    @precondition(lambda self: self.damaged is None and self.tasks)
    @rule(which=st.integers(0, 10**6), bit=st.integers(0, 10**6))
    def flip_a_bit_of_a_file(self, which: int, bit: int) -> None:
        files = [path for name in ("adapters", "blobs") for path in (self.path / name).rglob("*") if path.is_file()]
        path = sorted(files)[which % len(files)]
        content = path.read_bytes()
        changed = bytearray(content)
        changed[bit // 8 % len(changed)] ^= 1 << bit % 8
        kit.overwrite(path, bytes(changed))
        self.damaged = path, content

    @rule(bit=st.integers(0, 10**9))
    def flip_a_bit_of_the_database(self, bit: int) -> None:
        """Found, or without an effect; then the old file is put back."""
        snapshot, database = self.bank.contents(), self.path / "bank.db"
        assert not (self.path / "bank.db-wal").exists()
        content = database.read_bytes()
        changed = bytearray(content)
        changed[bit // 8 % len(changed)] ^= 1 << bit % 8
        database.write_bytes(changed)
        try:
            found = self.bank.verify(full=True)
            same = self.bank.contents() == snapshot
        except (DamagedError, IncompatibleError):
            found, same = ["refused"], False
        assert found or same
        for leftover in ("bank.db-wal", "bank.db-shm", "bank.db-journal"):
            (self.path / leftover).unlink(missing_ok=True)
        database.write_bytes(content)

    @rule(first_without=st.booleans())
    def mend(self, first_without: bool) -> None:
        before = self.bank.snapshot()
        aside: set[str] = set()
        if first_without:
            aside = set(api.repair(self.path).set_aside)
            snapshot = self.bank.snapshot()
            assert {task.name for task in snapshot.damaged_tasks} == aside
            assert {task.name for task in snapshot.tasks} == set(self.tasks) - aside
            assert self.damaged or not aside
        self.mirror.mkdir(exist_ok=True)
        assert set(api.repair(self.path, source=self.mirror).brought_back) == aside
        assert self.bank.snapshot() == before
        self.damaged = None

    # ----------------------------------------------------------------------------------------- invariants

    @invariant()
    def what_was_acknowledged_is_there(self) -> None:
        snapshot = self.bank.snapshot()
        assert {task.name for task in snapshot.tasks} == set(self.tasks)
        assert {made.name for made in snapshot.compositions} == set(self.compositions)
        assert snapshot.damaged_tasks == ()
        assert all(not operation.alive for operation in self.bank.operations())

    @invariant()
    def rows_and_files_are_what_was_written(self) -> None:
        findings = self.bank.verify(full=True)
        hurt = None
        if self.damaged is not None:
            path, content = self.damaged
            digest = next(part for part in reversed(path.parts) if len(part) == 64)
            if path.exists() and path.read_bytes() != content and digest in self.live():
                hurt = digest[:12]
        assert (findings == []) == (hurt is None), findings
        assert all(hurt is not None and hurt in finding.subject for finding in findings)

    @invariant()
    def reading_changes_nothing(self) -> None:
        before = {path: path.lstat().st_mtime_ns for path in self.path.rglob("*")}
        bank = self.bank
        bank.contents()
        bank.verify(full=False)
        bank.gc(dry_run=True, grace_hours=-1)
        assert {path: path.lstat().st_mtime_ns for path in self.path.rglob("*")} == before

    @invariant()
    def nothing_outside_is_touched(self) -> None:
        assert kit.tree(self.outside) == {"thesis.tex": b"ten years"}
        known = {"bank", "mirror", "outside", "copy"}
        assert {path.name for path in self.folder.iterdir()} <= known


TestBank = BankMachine.TestCase
TestBank.settings = settings(
    max_examples=int(os.environ.get("STATE_MACHINE_EXAMPLES", "8")),
    stateful_step_count=int(os.environ.get("STATE_MACHINE_STEPS", "12")),
    deadline=None,
    derandomize="STATE_MACHINE_EXAMPLES" not in os.environ,  # the same walks each time, unless they are many
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


def test_the_machine_finds_a_collection_that_takes_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """A harness that finds nothing proves nothing: adapters below a later one are not counted as needed."""
    monkeypatch.setattr(live, "_needed", lambda _, tasks: set(tasks))
    machine = BankMachine()
    try:
        for name, on_top in (("a", False), ("b", True)):
            machine.add(name, float(ord(name)), on_top)
            machine.observe()
        machine.bank.remove("a")
        machine.observe()
        with pytest.raises(AssertionError):
            machine.collect(True)
    finally:
        machine.teardown()
