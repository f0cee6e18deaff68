"""F6: every state in which a power cut could leave the disk, enumerated and not waited for.

strace records each command's writes, renames, unlinks and syncs with their bytes. For a cut after each of them, a
disk model (``disk_model.py``) builds what may lie there: all that was not durable yet, none of it, all but one
change, one change alone. Each different state is put on the disk and judged. Then each sync that lorabank itself
makes is taken out of the record, one at a time: the enumeration must find a state that breaks a promise, so no sync
is there for nothing and none is missing. SQLite's own syncs are taken out too; how many of them are found is a note.
A sync that only serves tidiness cannot be found this way; there is none.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.faults.disk_model import Change, Disk, Node, Tree, durable_and_open, tree, write_tree
from tests.faults.outcome import Outcome, skipped
from tests.faults.processes import Say, scratch
from tests.faults.tracing import cannot_trace, recorded
from tests.faults.workload import BESIDE_A_READER, COMMANDS, Case, Command, case, judge

SPARE = {"sync backups"}
"""SQLite happens to sync this folder while it writes the copy there; lorabank does not rely on it."""

ENOUGH = 100
"""States of each command; for fewer, nothing is killed before."""


def run(count: int | None, seed: int) -> Outcome:
    """All states, or at most ``count`` of each command chosen by ``seed``; syncs are taken out only with all."""
    if reason := cannot_trace():
        return skipped(reason)
    outcome = Outcome()
    with scratch() as folder:
        for command in (BESIDE_A_READER, *COMMANDS):
            if outcome.enough:
                return outcome
            one = case(command, folder)
            explorer = Explorer(one, folder, *record(command, folder))
            tried = outcome.tries
            explorer.judge_all(outcome, count, seed)
            note = f"{command.name} {outcome.tries - tried}"
            if count is None and not outcome.findings:
                note += explorer.without_each_sync(outcome)
            outcome.notes.append(note)
        if count is None or count >= ENOUGH:
            _killed_before(COMMANDS[0], folder, outcome)
    return outcome


def _killed_before(command: Command, folder: Path, outcome: Outcome) -> None:
    """Killed at a sync, run again to its end, then the cut: what the first had renamed may not be durable."""
    one, tried, k = case(command, folder), outcome.tries, 0
    while True:
        k += 1
        place = command.place(folder / "twice")
        disk = Disk(place)
        code, said, calls = recorded(acting(command, place), "-e", f"inject=fsync:signal=KILL:when={k}")
        if code == 0:
            break
        disk.follow(calls)
        code, said, calls = recorded(acting(command, place))
        if code != 0:
            raise RuntimeError(f"{command.name} failed after it was killed at sync {k}: {said}")
        Explorer(one, folder, disk.root, disk.follow(calls)).judge_end(outcome)
        shutil.rmtree(place)
    outcome.notes.append(f"{command.name} killed at each sync before {outcome.tries - tried}")


def record(command: Command, folder: Path) -> tuple[Node, list[Change]]:
    """The place before the command, and the changes it makes."""
    place = command.place(folder / f"recorded-{command.name}")
    disk = Disk(place)
    code, said, calls = recorded(acting(command, place))
    if code != 0:
        raise RuntimeError(f"{command.name} failed while it was recorded: {said}")
    return disk.root, disk.follow(calls)


def acting(command: Command, place: Path) -> Callable[[Say], None]:
    """The command in a child; what it says last is in the record too."""

    def act(say: Say) -> None:
        command.act(place)
        say("done")

    return act


class Explorer:
    """Judges the states of one recorded command; each different one once."""

    def __init__(self, one: Case, folder: Path, root: Node, changes: list[Change]) -> None:
        self._case, self._folder, self._root, self._changes = one, folder, root, changes
        self._known: dict[tuple[bytes, bool], Outcome] = {}

    def judge_all(self, outcome: Outcome, count: int | None, seed: int) -> None:
        states = list(self._states(self._changes))
        if count is not None:
            states = random.Random(seed).sample(states, min(count, len(states)))
        seen = len(self._known)
        for state, acknowledged, where in states:
            outcome.add(self._verdict(state, acknowledged, where))
            if outcome.enough:
                break
        outcome.tries += len(self._known) - seen

    def judge_end(self, outcome: Outcome) -> None:
        """Only the cuts after everything was done."""
        for state in self._states(self._changes, range(len(self._changes), len(self._changes) + 1)):
            outcome.add(self._verdict(*state))
        outcome.tries += len(self._known)

    def without_each_sync(self, outcome: Outcome) -> str:
        """Take the syncs out one by one; says how many were missed at once."""
        found = {"its own": [0, 0], "SQLite's": [0, 0]}
        for position, change in enumerate(self._changes):
            if change.what != "sync":
                continue
            whose = "SQLite's" if ".db" in change.label or self._of_sqlite(position) else "its own"
            latest_first = range(len(self._changes) - 1, -1, -1)
            changes = [*self._changes[:position], *self._changes[position + 1 :]]
            caught = any(self._verdict(*state).findings for state in self._states(changes, latest_first))
            found[whose][0] += caught
            found[whose][1] += 1
            if not caught and whose == "its own" and change.label not in SPARE:
                outcome.find("uncaught", f"{self._case.command.name}: nothing breaks without '{change.label}'")
        return " (" + ", ".join(f"{whose} syncs {n} of {of}" for whose, (n, of) in found.items() if of) + ")"

    def _of_sqlite(self, position: int) -> bool:
        """SQLite syncs a folder right after it synced the log or journal that it made there."""
        before = self._changes[position - 1] if position else None
        return before is not None and before.what == "sync" and before.label.endswith(("-wal", "-journal"))

    def _states(self, changes: Sequence[Change], cuts: range | None = None) -> Iterator[tuple[Tree, bool, str]]:
        for cut in cuts or range(len(changes) + 1):
            done = changes[:cut]
            acknowledged = any(change.what == "said" for change in done)
            durable, pending = durable_and_open(done)
            for label, kept in _choices(pending):
                chosen = sorted([*durable, *kept])
                after = f" after '{done[-1].label}'" if done else ""
                where = f"{self._case.command.name} cut{after}, {label(changes)}"
                yield tree(self._root, [changes[i] for i in chosen]), acknowledged, where

    def _verdict(self, state: Tree, acknowledged: bool, where: str) -> Outcome:
        key = (_digest(state), acknowledged)
        if key not in self._known:
            outcome = Outcome()
            place = self._folder / "state"
            write_tree(state, place)
            judge(self._case, place, acknowledged=acknowledged, outcome=outcome, where=where, again=False)
            shutil.rmtree(place)
            self._known[key] = outcome
        return self._known[key]


def _choices(pending: list[int]) -> Iterator[tuple[Callable[[Sequence[Change]], str], list[int]]]:
    yield (lambda _: "all of it there"), pending
    if pending:
        yield (lambda _: "nothing of the rest there"), []
    if len(pending) > 1:
        for one in pending:
            yield (lambda changes, one=one: f"all but '{changes[one].label}'"), [i for i in pending if i != one]  # type: ignore[misc]
            yield (lambda changes, one=one: f"only '{changes[one].label}'"), [one]  # type: ignore[misc]


def _digest(state: Tree) -> bytes:
    digest = hashlib.sha256()
    for path, data in sorted(state.items()):
        digest.update(f"{path}\0{'/' if data is None else len(data)}\0".encode())
        digest.update(data or b"")
    return digest.digest()
