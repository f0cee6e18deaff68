"""F9: one bit flips, in each kind of file that a bank has.

Each flip is made in an otherwise sound bank. ``verify --full`` must find it, or the bank must read exactly as before:
every record, every manifest field, equal. Nothing but lorabank's own errors may come out. A flip in a backup is looked
for once the backup is put back; one in a checkpoint must make resuming take the older checkpoint, or change nothing.
A flip in SQLite's log, which exists between a crash and the next command only, makes SQLite end the log there: whole
transactions go, and that the bank is then exactly as it was after an earlier one is all that can be asked.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Hashable, Mapping
from contextlib import closing
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from lorabank.bank.bank import Bank
from lorabank.bank.objects.layout import Layout
from lorabank.bank.objects.manifest import read_manifest
from lorabank.bank.objects.store import hash_file
from lorabank.core.errors import LorabankError
from tests.faults.outcome import Outcome
from tests.faults.processes import in_a_fork, scratch
from tests.faults.workload import KIT, filled, opened


@dataclass(frozen=True)
class Target:
    """A file whose bits flip.

    Attributes:
        name: The class.
        file: Below the bank.
        bits: The bits that may flip: a range of byte positions, None for all.
        allowed: What a bank that reads without a finding may hold.
        restore: Puts every other file back that reading may have changed.
    """

    name: str
    file: Path
    bits: range | None
    allowed: frozenset[Hashable]
    restore: Callable[[], object]


def run(count: int | None, seed: int) -> Outcome:
    """``count`` flips in each class, 2,000 unless said otherwise; a smaller file has each of its bits flipped once."""
    outcome = Outcome()
    count = count or 2000
    with scratch() as folder:
        place = Path(shutil.copytree(filled(), folder / "place"))
        for target in _targets(place, folder):
            flip_all(target, place, count, random.Random(seed), outcome)
    outcome.add(in_a_fork(lambda: _checkpoints(count, seed)))
    return outcome


def read_all(place: Path) -> Hashable:
    """Everything that a user can get out of the database, the manifest and the adapters."""
    bank = opened(place)
    snapshot, scores = bank.contents()
    folders = [bank.adapter_path(task.adapter) for task in snapshot.tasks if task.adapter]
    files = [(file.name, hash_file(file)) for folder in folders for file in sorted(folder.iterdir())]
    return repr(_whole((snapshot, scores, files, read_manifest(Layout(bank.path)))))


def _whole(value: Any) -> Any:
    """A value with all that it holds: the ``repr`` of a record shows a part."""
    if is_dataclass(value):
        return [_whole(getattr(value, one.name)) for one in fields(value)]
    if isinstance(value, Mapping):
        return sorted((key, _whole(one)) for key, one in value.items())
    return [_whole(one) for one in value] if isinstance(value, list | tuple) else value


def _targets(place: Path, folder: Path) -> list[Target]:
    bank = opened(place)
    adapter = bank.adapter_path(bank.snapshot().adapter_of("a").digest)
    tensors = adapter / "adapter_model.safetensors"
    header = 8 + int.from_bytes(tensors.read_bytes()[:8], "little")
    truth = frozenset((read_all(place),))
    database = place / "bank" / "bank.db"

    def still() -> None:
        for name in ("bank.db-wal", "bank.db-shm"):
            (place / "bank" / name).unlink(missing_ok=True)

    def target(name: str, file: Path, bits: range | None = None) -> Target:
        return Target(name, file, bits, truth, still)

    return [
        target("db", database),
        target("header", tensors, range(header)),
        target("tensors", tensors, range(header, tensors.stat().st_size)),
        target("config", adapter / "adapter_config.json"),
        target("bank.json", place / "bank" / "bank.json"),
        _log(place, folder, truth),
        _backup(place, folder, truth),
    ]


def _log(place: Path, folder: Path, truth: frozenset[Hashable]) -> Target:
    """A database with three transactions in its log, as a killed process leaves it."""
    crashed = Path(shutil.copytree(place, folder / "crashed"))
    states = set(truth)
    with closing(sqlite3.connect(crashed / "bank" / "bank.db")) as keeps_the_log:
        keeps_the_log.execute("SELECT 1 FROM tasks").fetchone()
        KIT.add_task(opened(crashed), "c", weight=3.0)
        states.add(read_all(crashed))
        opened(crashed).remove("c")
        states.add(read_all(crashed))
        kept = {name: (crashed / "bank" / name).read_bytes() for name in ("bank.db", "bank.db-wal")}

    def restore() -> None:
        (crashed / "bank" / "bank.db-shm").unlink(missing_ok=True)
        for name, data in kept.items():
            (crashed / "bank" / name).write_bytes(data)

    return Target("wal", crashed / "bank" / "bank.db-wal", None, frozenset(states), restore)


def _backup(place: Path, folder: Path, truth: frozenset[Hashable]) -> Target:
    """A backup put back into place: what its copy in ``backups`` would be taken for."""
    restored = Path(shutil.copytree(place, folder / "restored"))
    database = restored / "bank" / "bank.db"
    with closing(sqlite3.connect(place / "bank" / "bank.db")) as connection:
        database.unlink()
        connection.execute("VACUUM INTO ?", (str(database),))

    def restore() -> None:
        for name in ("bank.db-wal", "bank.db-shm"):
            (restored / "bank" / name).unlink(missing_ok=True)

    return Target("backup", database, None, truth, restore)


def flip_all(target: Target, place: Path, count: int, chance: random.Random, outcome: Outcome) -> None:
    """Flip bits one after another and judge each."""
    target.restore()
    content = target.file.read_bytes()
    mode = target.file.stat().st_mode
    positions = target.bits or range(len(content))
    flips = range(len(positions) * 8)
    chosen = chance.sample(flips, count) if count < len(flips) else list(flips)
    found = 0
    bank = next(parent for parent in target.file.parents if (parent / "bank.db").exists())
    for flip in chosen:
        position, bit = positions[flip // 8], flip % 8
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        target.restore()
        target.file.chmod(0o600)
        target.file.write_bytes(changed)
        found += _judged(target, bank.parent, f"bit {bit} of byte {position} of {target.name}", outcome)
    target.restore()
    target.file.write_bytes(content)
    target.file.chmod(mode)
    outcome.tries += len(chosen)
    outcome.notes.append(f"{target.name} {found} of {len(chosen)} found, the others without effect")


def _judged(target: Target, place: Path, where: str, outcome: Outcome) -> bool:
    """Whether the flip was found."""
    try:
        if Bank.open(place / "bank").verify(full=True):
            return True
        if read_all(place) not in target.allowed:
            outcome.find("damaged", f"{where}: not found, and the bank reads otherwise")
        return False
    except LorabankError:
        return True
    except Exception as error:
        outcome.find("uncaught", f"{where}: {type(error).__name__}: {error}")
        return False


def _checkpoints(count: int, seed: int) -> Outcome:
    """In a process of its own: a checkpoint is written and read with torch."""
    import torch

    from lorabank.training.checkpoints import newest_checkpoint, read_facts, read_tensors, save_checkpoint

    outcome = Outcome()
    chance = random.Random(seed)
    with scratch() as folder:
        for step in (1, 2):
            save_checkpoint(folder, step, {"trainable": {"A": torch.arange(24.0) + step}}, {"state": {"step": step}})
        newest = folder / "checkpoint-2"
        passed_over = tried = 0
        for file in sorted(newest.iterdir()):
            content = file.read_bytes()
            flips = range(len(content) * 8)
            for flip in chance.sample(flips, min(len(flips), count // 3)):
                changed = bytearray(content)
                changed[flip // 8] ^= 1 << flip % 8
                file.write_bytes(changed)
                tried += 1
                chosen = newest_checkpoint(folder)
                passed_over += chosen == folder / "checkpoint-1"
                if chosen not in (newest, folder / "checkpoint-1"):
                    outcome.find("lost", f"bit {flip} of {file.name}: no checkpoint is left")
                elif chosen == newest and not _same(read_tensors(newest, "trainable"), read_facts(newest, "state")):
                    outcome.find("damaged", f"bit {flip} of {file.name}: resumed from a changed checkpoint")
            file.write_bytes(content)
    outcome.tries += tried
    outcome.notes.append(f"checkpoint {passed_over} of {tried} passed over, the others without effect")
    return outcome


def _same(tensors: dict[str, object], facts: object) -> bool:
    import torch

    return facts == {"step": 2} and tensors.keys() == {"A"} and torch.equal(tensors["A"], torch.arange(24.0) + 2)  # type: ignore[arg-type]
