"""F19: wrong clocks. Backups, restores and changes while the time stands still, jumps ahead and falls back.

A model knows what the bank holds and what each copy holds that must be there: the three made last, and whatever a
restore just said that it kept. No step may lose a name that is in the bank, or a copy that was named.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lorabank.bank.catalog import times
from lorabank.bank.objects.layout import Layout
from lorabank.bank.upkeep import copies
from lorabank.bank.upkeep.backup import back_up_database
from lorabank.bank.upkeep.restore import restore
from lorabank.core.errors import LorabankError
from tests.faults.outcome import Outcome
from tests.faults.processes import scratch
from tests.faults.upkeep import names
from tests.faults.workload import KIT, filled, opened

STEPS = 12
JUMPS = (
    timedelta(0),
    timedelta(microseconds=1),
    timedelta(seconds=1),
    -timedelta(seconds=1),
    timedelta(days=1),
    -timedelta(days=1),
    timedelta(days=3650),
    -timedelta(days=3650),
)


def run(count: int | None, seed: int) -> Outcome:
    """``count`` steps, 240 unless said otherwise, twelve on each bank."""
    chance = random.Random(seed)
    outcome = Outcome()
    with scratch() as folder, wrong_clock() as clock:
        left = count or 240
        while left > 0 and not outcome.enough:
            place = Path(shutil.copytree(filled(), folder / "place"))
            clock.moment = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
            bank = _Judged(place, outcome)
            for _ in range(min(left, STEPS)):
                clock.moment += chance.choice(JUMPS)
                try:
                    bank.step(chance, clock.moment)
                except LorabankError as error:
                    outcome.find("uncaught", f"at {clock.moment}: {error.message}")
                outcome.tries += 1
            left -= STEPS
            shutil.rmtree(place)
    return outcome


class _Clock:
    moment = datetime(2030, 1, 2, tzinfo=UTC)


@contextmanager
def wrong_clock() -> Iterator[_Clock]:
    """The time that names copies and is written into rows is what the caller sets."""
    clock, modules = _Clock(), (copies, times)

    class Set(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return clock.moment.astimezone(tz)

    kept: list[Any] = [module.datetime for module in modules]  # type: ignore[attr-defined]
    for module in modules:
        module.datetime = Set  # type: ignore[attr-defined]
    try:
        yield clock
    finally:
        for module, sound in zip(modules, kept, strict=True):
            module.datetime = sound  # type: ignore[attr-defined]


class _Judged:
    """A bank, and what must be where."""

    def __init__(self, place: Path, outcome: Outcome) -> None:
        self._place, self._outcome = place, outcome
        self._layout = Layout(place / "bank")
        self._here = names(self._layout.database)
        self._copies: list[tuple[Path, set[str]]] = []
        self._number = 0

    def step(self, chance: random.Random, moment: datetime) -> None:
        """One change, and a look."""
        kind = chance.choice(("compose", "backup", "backup", "restore", "remove"))
        bank = opened(self._place)
        if kind == "compose":
            self._number += 1
            KIT.compose(bank, f"n{self._number}", ("a",), content=str(self._number).encode())
            self._here = self._here | {f"n{self._number}"}
        elif kind == "backup":
            self._made(Path(back_up_database(self._layout).path), self._here)
        elif kind == "restore" and self._copies:
            path, held = chance.choice(self._copies)
            kept = restore(self._layout, path, incomplete=False, dry_run=False).kept
            before, self._here = self._here, held
            self._made(Path(str(kept)), before, spared=(path, held))
        elif kind == "remove" and (extra := sorted(self._here - {"a", "b"})):
            bank.remove(extra[0])
            self._here = self._here - {extra[0]}
        self._look(f"{kind} at {moment}")

    def _made(self, path: Path, held: set[str], spared: tuple[Path, set[str]] | None = None) -> None:
        self._copies = [*self._copies, (path, held)][-copies.KEPT_COPIES :]
        if spared is not None and spared not in self._copies:
            self._copies.insert(0, spared)

    def _look(self, where: str) -> None:
        if (found := names(self._layout.database)) != self._here:
            self._outcome.find("lost", f"{where}: the bank holds {sorted(found)}, and should {sorted(self._here)}")
        for path, held in self._copies:
            if not path.is_file():
                self._outcome.find("lost", f"{where}: {path.name} is gone")
            elif names(path) != held:
                self._outcome.find("damaged", f"{where}: {path.name} holds {sorted(names(path))}")
        for finding in opened(self._place).verify(full=True):
            self._outcome.find("damaged", f"{where}: {finding.subject}: {finding.message}")
