"""F2: SIGKILL before every single system call by which a command changes files or takes a lock.

An undisturbed run under strace counts the calls of each kind; then the command runs once for each of them, from the
same start, in a child that strace kills as it makes the k-th call of that kind. The parent looks at what is left: it
is as before or as after, ``verify --full`` finds nothing, nothing half-written stands under a digest, the command
can be run again, and ``gc`` leaves no rest. Where strace is missing, the steps that Python can see are taken
instead.
"""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

from tests.faults.outcome import Outcome
from tests.faults.processes import Say, scratch
from tests.faults.tracing import CALLS, cannot_trace, counted, disturbed
from tests.faults.workload import COMMANDS, Case, case, judge
from tests.unit.bank.test_kill import run_killed


def run(count: int | None, seed: int) -> Outcome:
    """Kill at every call, or at ``count`` calls chosen by ``seed``."""
    outcome = Outcome()
    reason = cannot_trace()
    if reason:
        outcome.notes.append(f"{reason}: killed at the steps that Python sees")
    with scratch() as folder:
        for command in COMMANDS:
            one = case(command, folder)
            share = None if count is None else max(1, count // len(COMMANDS))
            tried = outcome.tries
            if reason:
                _at_steps(one, folder, share, outcome)
            else:
                _at_calls(one, folder, share, seed, outcome)
            outcome.notes.append(f"{command.name} {outcome.tries - tried}")
    return outcome


def _at_calls(one: Case, folder: Path, share: int | None, seed: int, outcome: Outcome) -> None:
    place = one.command.place(folder / "counted")
    calls = counted(_acting(one, place))
    shutil.rmtree(place)
    points = [(name, k) for name in CALLS for k in range(1, calls[name] + 1)]
    if share is not None:
        points = random.Random(seed).sample(points, min(share, len(points)))
    for name, k in points:
        if outcome.enough:
            return
        place = one.command.place(folder / "killed")
        code, said = disturbed(_acting(one, place), name, f"signal=KILL:when={k}")
        where = f"{one.command.name} killed at {name} {k}"
        if code == -signal.SIGKILL:
            outcome.tries += 1
        elif code != 0:  # it may make a call less than it did when it was counted, but it never fails
            outcome.find("uncaught", f"{where}: ended with {code}: {said}")
        judge(one, place, acknowledged="done" in said, outcome=outcome, where=where, again=True)
        shutil.rmtree(place)


def _at_steps(one: Case, folder: Path, share: int | None, outcome: Outcome) -> None:
    step = 0
    while share is None or step < share:
        step += 1
        place = one.command.place(folder / "killed")
        killed = run_killed(lambda place=place: one.command.act(place), step)  # type: ignore[misc]
        where = f"{one.command.name} killed at step {step}"
        judge(one, place, acknowledged=not killed, outcome=outcome, where=where, again=True)
        shutil.rmtree(place)
        if not killed:
            return
        outcome.tries += 1


def _acting(one: Case, place: Path):  # type: ignore[no-untyped-def]
    def act(say: Say) -> None:
        one.command.act(place)
        say("done")

    return act
