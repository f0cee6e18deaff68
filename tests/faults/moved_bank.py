"""F17: ``add-task`` killed in training, and resumed after other commands changed the bank.

After the kill a task is added, removed, or removed and added again with the same bytes or with others, in any order
and through the real command line; then the run is resumed. Where the past is what it was the adapter has the bytes of
an uninterrupted run; where it is not the answer is exit code 5, the bank is as before, and the interrupted run is
still there.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from lorabank.bank.bank import Bank
from lorabank.core.errors import LorabankError
from lorabank.core.shelves import STRATEGIES
from tests.faults.outcome import Outcome
from tests.faults.processes import ENDED, Child, in_a_fork, scratch
from tests.faults.training_kills import SETTINGS, _command, _train_and_import, save_material, train, warm_up

INCOMPATIBLE = 5
OFTEN = ("olora", "seqlora", "amlora")
"""What a short run tries; a longer one takes every strategy in turn."""


@dataclass
class Ground:
    """A strategy's bank with one task, the words of a training, and the digest that ``second`` must have."""

    start: Path
    words: list[str]
    digest: str
    seconds: float


def run(count: int | None, seed: int) -> Outcome:
    """``count`` kills and resumptions, 200 unless said otherwise."""
    outcome: Outcome = in_a_fork(lambda: _try_all(count or 200, seed))
    return outcome


def _try_all(count: int, seed: int) -> Outcome:
    outcome, chance = Outcome(), random.Random(seed)
    strategies = OFTEN if count < 50 else tuple(STRATEGIES)
    with scratch() as folder:
        warm_up()
        base, data = save_material(folder)
        grounds: dict[str, Ground] = {}
        resumed = 0
        for number in range(count):
            strategy = strategies[number % len(strategies)]
            if strategy not in grounds:
                grounds[strategy] = _prepare(folder, strategy, base, data)
            bank = Path(shutil.copytree(grounds[strategy].start, folder / "bank"))
            try:
                resumed += _try(grounds[strategy], bank, chance, outcome, f"try {number}, {strategy}")
            except LorabankError as error:
                outcome.find("damaged", f"try {number}, {strategy}: {error.message}")
            shutil.rmtree(bank)
        outcome.notes.append(f"{resumed} had a checkpoint and were resumed or refused")
    return outcome


def _try(ground: Ground, path: Path, chance: random.Random, outcome: Outcome, where: str) -> bool:
    """Whether there was a checkpoint to resume from."""
    if not _kill_after_a_checkpoint(ground, path, chance):
        return False
    outcome.tries += 1
    bank = Bank.open(path)
    begun = _past(bank)
    moves = chance.choices(("add", "remove", "again", "other"), k=chance.randint(0, 3))
    for move in moves:
        _move(ground, path, move)
    now, before = _past(bank), bank.snapshot()
    code = train(path, ["add-task", "second", "--resume"])
    where = f"{where}, {' '.join(moves) or 'nothing'} before --resume"
    for finding in bank.verify(full=True):
        outcome.find("damaged", f"{where}: {finding.subject}: {finding.message}")
    if now == begun:
        if code != ENDED:
            outcome.find("uncaught", f"{where}: the past is unchanged, and it ended with {code}")
        elif (digest := bank.snapshot().adapter_of("second").digest) != ground.digest:
            outcome.find("damaged", f"{where}: other bytes than an uninterrupted run: {digest[:12]}")
    elif code != INCOMPATIBLE:
        outcome.find("uncaught", f"{where}: resumed in another past, exit code {code}")
    elif bank.snapshot() != before or [one.name for one in bank.operations()] != ["second"]:
        outcome.find("lost", f"{where}: a refused --resume changed the bank")
    return True


def _past(bank: Bank) -> list[tuple[str, str]]:
    """What the next task is trained on top of; no strategy looks at anything that these do not decide."""
    snapshot = bank.snapshot()
    return [(task.name, snapshot.adapter_of(task.name).digest) for task in snapshot.tasks]


def _kill_after_a_checkpoint(ground: Ground, path: Path, chance: random.Random) -> bool:
    child = Child(lambda say: _command(["add-task", "second", *ground.words, "--bank", str(path)]))
    child.begin()
    patience = time.monotonic() + 60 + 20 * ground.seconds
    while time.monotonic() < patience and not any(path.glob("work/*/checkpoint-*")):
        if any(task.name == "second" for task in Bank.open(path).snapshot().tasks):
            break  # too late: it was quicker than the look
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.3) * ground.seconds)
    child.kill()
    if child.wait() != -signal.SIGKILL or not any(path.glob("work/*/checkpoint-*")):
        return False
    return [one.name for one in Bank.open(path).operations()] == ["second"]  # it was not killed behind its commit


def _move(ground: Ground, path: Path, move: str) -> None:
    """Change the bank; what is there already, or not there, stays as it is."""
    names = [task.name for task in Bank.open(path).snapshot().tasks]
    if move == "add" and "third" not in names:
        _must(path, ["add-task", "third", *ground.words])
    elif move == "remove" and "third" in names:
        _must(path, ["remove", "third", "--yes"])
    elif move in ("remove", "again", "other") and "first" in names:
        _must(path, ["remove", "first", "--yes"])
        if move != "remove":
            _must(path, ["add-task", "first", *ground.words, *(["--seed", "9"] if move == "other" else [])])


def _must(path: Path, words: list[str]) -> None:
    if (code := train(path, words)) != ENDED:
        raise RuntimeError(f"{' '.join(words[:2])} ended with {code}")


def _prepare(folder: Path, strategy: str, base: Path, data: Path) -> Ground:
    words = ["--data", str(data), "--strategy", strategy, *SETTINGS]
    start, whole = folder / f"start-{strategy}", folder / f"whole-{strategy}"
    _train_and_import(start, ["add-task", "first", *words, "--base", str(base)])
    shutil.copytree(start, whole)
    began = time.monotonic()
    _must(whole, ["add-task", "second", *words])
    seconds = time.monotonic() - began
    return Ground(start, words, Bank.open(whole).snapshot().adapter_of("second").digest, seconds)
