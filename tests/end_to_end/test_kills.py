"""SIGKILL at random moments of real commands: the bank opens, keeps what was acknowledged, and is clean.

A process that has imported torch runs each command in a fork of itself, so that fifty of them take a minute.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorabank.bank.bank import Bank
from lorabank.bank.snapshot import Snapshot

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = 50
SETTINGS = ["--epochs", "1", "--batch-size", "8", "--save-steps", "1", "--r", "2", "--device", "cpu"]

# Imports first, then for each line [words, seconds | null]: fork, run the command, kill it after so many seconds.
WARM = """
import json, os, signal, sys, time
from lorabank_cli.main import main
import lorabank.api, lorabank.training.run, lorabank.workflows.learning.train, lorabank.workflows.evaluate
import lorabank.workflows.compose, lorabank.workflows.assemble, lorabank.compose.gated, lorabank.compose.routed
import lorabank.compose.merged, lorabank.bank.catalog.commits, lorabank.bank.operations, lorabank.bank.upkeep.removal
import transformers.models.bert.modeling_bert

for line in sys.stdin:
    words, seconds = json.loads(line)
    child = os.fork()
    if child == 0:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1):
            os.dup2(nothing, descriptor)
        os._exit(main(words))
    ended = 0
    deadline = None if seconds is None else time.monotonic() + seconds
    started = time.monotonic()
    while not ended:
        ended, status = os.waitpid(child, 0 if deadline is None else os.WNOHANG)
        if not ended and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        elif not ended:
            time.sleep(0.001)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - started]), flush=True)
"""


class Warm:
    """Runs ``lorabank`` commands on one bank."""

    def __init__(self, process: subprocess.Popen[str], bank: Path) -> None:
        self._process = process
        self._bank = bank

    def run(self, words: list[str], seconds: float | None = None) -> tuple[int, float]:
        """Exit code (-9 for a kill) and how long the command took."""
        line = json.dumps([[*words, "--bank", str(self._bank), "--quiet"], seconds])
        print(line, file=self._process.stdin, flush=True)
        code, took = json.loads(self._process.stdout.readline())
        return code, took


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[Warm]:
    with (
        open(tmp_path / "errors.txt", "w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", WARM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        yield Warm(process, tmp_path / "bank")
        process.stdin.close()


def names(snapshot: Snapshot) -> dict[str, str]:
    """What the bank holds: name to a digest of what must not change."""
    return {task.name: task.adapter for task in snapshot.tasks} | {
        one.name: json.dumps([one.mode, one.members, one.parameters, one.objects], sort_keys=True)
        for one in snapshot.compositions
    }


def dependants(snapshot: Snapshot, name: str) -> set[str]:
    """What ``remove --cascade`` takes away with a task."""
    return {name} | {one.name for one in snapshot.compositions if name in one.members}


def chosen_command(chance: random.Random, bank: Bank, train: list[str], number: int) -> tuple[list[str], set[str]]:
    """A command that makes sense now, and the names it may change."""
    snapshot = bank.snapshot()
    interrupted = [operation.name for operation in bank.operations() if operation.kind == "add-task"]
    kinds = ["add-task"] * 3 if len(snapshot.tasks) < 4 else []
    kinds += ["compose"] * 2 if snapshot.tasks else []
    kinds += ["remove"] * 2 if len(snapshot.tasks) + len(snapshot.compositions) > 2 else []
    kinds += ["resume"] * 2 if interrupted else []
    kind = chance.choice(kinds)
    if kind == "add-task":
        return ["add-task", f"task{number}", *train, "--seed", str(number)], {f"task{number}"}
    if kind == "resume":
        name = chance.choice(interrupted)
        # an operation killed before its first checkpoint starts anew, with the rows it was given
        return ["add-task", name, "--resume"], {name}
    if kind == "compose":
        mode = chance.choice(["manual", "prototype", "attention"])
        return ["compose", "--mode", mode, "--name", f"mix{number}", "--device", "cpu"], {f"mix{number}"}
    name = chance.choice(sorted(names(snapshot)))
    return ["remove", name, "--cascade", "--yes"], dependants(snapshot, name)


def test_fifty_kills(warm: Warm, base: Path, data: Path, tmp_path: Path) -> None:
    chance = random.Random(20)
    train = ["--data", str(data), *SETTINGS]
    assert warm.run(["add-task", "first", *train, "--base", str(base)])[0] == 0
    usual = {}
    for words in (
        ["add-task", "second", *train],
        ["compose", "--mode", "attention", "--device", "cpu"],
        ["remove", "attention", "--yes"],
    ):
        code, usual[words[0]] = warm.run(words)
        assert code == 0

    bank = Bank.open(tmp_path / "bank")
    kept = names(bank.snapshot())
    kills, changed, number = 0, {"before": 0, "after": 0}, 0
    while kills < KILLS:
        number += 1
        words, touched = chosen_command(chance, bank, train, number)
        code, _ = warm.run(words, chance.uniform(0, 1.1 * usual[words[0]]))
        kills += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), f"{words}: {(tmp_path / 'errors.txt').read_text(encoding='utf-8')[-500:]}"

        bank = Bank.open(tmp_path / "bank")
        found = names(bank.snapshot())
        assert bank.verify(full=True) == [], f"after {words}"
        untouched = {name: value for name, value in kept.items() if name not in touched}
        assert {name: value for name, value in found.items() if name not in touched} == untouched, f"after {words}"
        # whole or not at all
        before = {name: kept[name] for name in touched & kept.keys()}
        after = {name: found[name] for name in touched & found.keys()}
        if words[0] == "remove":
            assert after in ({}, before), f"after {words}"
            done = not after
        else:
            done = bool(after)
        if code == 0:
            assert done, f"{words} was acknowledged"
        else:
            changed["after" if done else "before"] += 1
        kept = found
    assert changed["before"] > 0

    # what is left can be used, and cleaned up
    if not bank.snapshot().tasks:
        assert warm.run(["add-task", "last", *train])[0] == 0
    task = bank.snapshot().tasks[-1].name
    assert warm.run(["predict", "a b c", "--task", task, "--device", "cpu"])[0] == 0
    assert warm.run(["gc", "--yes"])[0] == 0
    assert Bank.open(tmp_path / "bank").verify(full=True) == []
    assert names(Bank.open(tmp_path / "bank").snapshot()).items() >= kept.items()
