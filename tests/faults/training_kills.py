"""F3 and F4: SIGKILL of ``add-task`` while it really trains, and of a checkpoint while it is saved.

A process that has imported torch forks for each command. F3 kills the whole of ``add-task`` at a random moment, F4
at a random moment of a random checkpoint's saving (a checkpoint after every step; the timer of the child itself ends
it, as abruptly as SIGKILL does). The parent looks at the bank, resumes what was interrupted, and compares: nothing
acknowledged is lost, a whole checkpoint is there whenever one was whole before, and the adapter has the very bytes
of an uninterrupted run. The model is a two-layer BERT with random weights. On each push there are fewer kills than
at night, because each one trains twice: half a second that nothing can shorten.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorabank.bank.bank import Bank
from lorabank.core.errors import LorabankError
from tests.faults.outcome import Outcome
from tests.faults.processes import ENDED, Child, in_a_fork, scratch

SETTINGS = ["--epochs", "1", "--batch-size", "8", "--save-steps", "1", "--r", "2", "--device", "cpu"]
ROWS = 48
Kill = Callable[["Bench", Path, Outcome], tuple[int, str]]


def run_f3(count: int | None, seed: int) -> Outcome:
    """``count`` kills of the whole command, 300 unless said otherwise."""
    return _in_a_fork(count or 300, seed, kill_anywhere)


def run_f4(count: int | None, seed: int) -> Outcome:
    """``count`` kills while a checkpoint is saved, 60 unless said otherwise."""
    return _in_a_fork(count or 60, seed, kill_a_save)


def _in_a_fork(count: int, seed: int, kill: Kill) -> Outcome:
    outcome: Outcome = in_a_fork(lambda: _kill_and_resume(count, seed, kill))
    return outcome


@dataclass
class Bench:
    """What all tries share: where they begin, the words of the command, the digest it must give, its seconds."""

    start: Path
    words: list[str]
    digest: str
    seconds: float
    chance: random.Random


def _kill_and_resume(count: int, seed: int, kill: Kill) -> Outcome:
    outcome = Outcome()
    with scratch() as folder:
        bench = _prepare(folder, seed)
        resumed = 0
        for number in range(count):
            bank = Path(shutil.copytree(bench.start, folder / "bank"))
            code, how = kill(bench, bank, outcome)
            where = f"kill {number}, {how}"
            if code not in (ENDED, -signal.SIGKILL, -signal.SIGALRM):
                outcome.find("uncaught", f"{where}: ended with {code}")
            outcome.tries += code != ENDED
            try:
                resumed += _judge(bench, bank, code, outcome, where)
            except LorabankError as error:
                outcome.find("damaged", f"{where}: {error.message}")
            shutil.rmtree(bank)
        outcome.notes.append(f"{resumed} resumed from a checkpoint")
    return outcome


def _judge(bench: Bench, path: Path, code: int, outcome: Outcome, where: str) -> bool:
    """Whether there was something to resume."""
    bank = Bank.open(path)
    for finding in bank.verify(full=True):
        outcome.find("damaged", f"{where}: {finding.subject}: {finding.message}")
    names = [task.name for task in bank.snapshot().tasks]
    if "first" not in names or (code == ENDED and "second" not in names):
        outcome.find("lost", f"{where}: {names} are left")
    waiting = any(path.glob("work/*/checkpoint-*"))
    if "second" not in names:
        interrupted = [operation.name for operation in bank.operations()]
        words = ["add-task", "second", "--resume"] if interrupted else bench.words
        if (again := train(path, words)) != ENDED:
            outcome.find("uncaught", f"{where}: {' '.join(words[:3])} ended with {again}")
            return waiting
    if (digest := bank.snapshot().adapter_of("second").digest) != bench.digest:
        outcome.find("damaged", f"{where}: other bytes than an uninterrupted run: {digest[:12]}")
    return waiting


def kill_anywhere(bench: Bench, bank: Path, outcome: Outcome) -> tuple[int, str]:
    """SIGKILL a random time after the start."""
    seconds = bench.chance.uniform(0, 1.1 * bench.seconds)
    child = Child(lambda say: _command([*bench.words, "--bank", str(bank)]))
    child.begin()
    time.sleep(seconds)
    child.kill()
    return child.wait(), f"after {seconds:.3f} s"


def kill_a_save(bench: Bench, bank: Path, outcome: Outcome) -> tuple[int, str]:
    """End the process at a random moment of a random save, and see that an earlier checkpoint is still whole."""
    from lorabank.training.checkpoints import newest_checkpoint

    victim, moment = bench.chance.randrange(ROWS // 8 - 1), bench.chance.random()
    child = Child(lambda say: _command([*bench.words, "--bank", str(bank)], lambda: _doom_a_save(victim, moment)))
    child.begin()
    code = child.wait()
    where = f"in save {victim}, at {moment:.2f} of it"
    for work in (bank / "work").iterdir():
        if code != ENDED and victim > 0 and newest_checkpoint(work) is None:
            outcome.find("lost", f"{where}: no whole checkpoint is left")
    return code, where


def _doom_a_save(victim: int, moment: float) -> None:
    """The save before the victim tells how long one takes."""
    from lorabank.training import trainer

    module: Any = trainer
    save = module.save_checkpoint
    seen = [0, 0.003]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def doomed(*arguments: Any) -> Any:
        if seen[0] == victim:
            signal.setitimer(signal.ITIMER_REAL, max(1e-5, moment * seen[1]))
        began = time.monotonic()
        result = save(*arguments)
        seen[0] += 1
        seen[1] = time.monotonic() - began
        return result

    module.save_checkpoint = doomed


# ------------------------------------------------------------------------------------------------------- the trainings


def train(bank: Path, words: list[str], first: Callable[[], object] = lambda: None) -> int:
    """Run a command in a fork to its end; its exit code."""
    child = Child(lambda say: _command([*words, "--bank", str(bank)], first))
    child.begin()
    return child.wait()


def _command(words: list[str], first: Callable[[], object] = lambda: None) -> None:
    first()
    os._exit(_main(words))


def _main(words: list[str]) -> int:
    from lorabank_cli.main import main

    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    return main([*words, "--quiet"])


def warm_up() -> None:
    """Import what training needs, once, on one thread."""
    import torch
    import transformers.models.bert.modeling_bert  # noqa: F401

    torch.set_num_threads(1)


def _train_and_import(bank: Path, words: list[str]) -> None:
    """Run a command in a fork, then import here what it imported: the forks after it need not, for seconds each."""

    def run() -> list[str]:
        if _main([*words, "--bank", str(bank)]) != ENDED:
            raise RuntimeError("the first training failed")
        return list(sys.modules)

    for name in in_a_fork(run):
        with suppress(Exception):  # names that are no module of their own
            importlib.import_module(name)


def save_material(folder: Path) -> tuple[Path, Path]:
    """A tiny base model and a file of rows."""
    import torch
    import transformers

    from tests.conftest import _letter_tokenizer, _tiny_config

    torch.manual_seed(7)
    base, data = folder / "base", folder / "letters.jsonl"
    transformers.AutoModel.from_config(_tiny_config("bert")).save_pretrained(base)
    _letter_tokenizer("bert").save_pretrained(base)
    chance = random.Random(0)
    halves = {"first": "abcdefghijklm", "second": "nopqrstuvwxyz"}
    rows = [
        {"text": " ".join(chance.choices(half, k=chance.randint(3, 8))), "label": label}
        for _ in range(ROWS // 2)
        for label, half in halves.items()
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return base, data


def _prepare(folder: Path, seed: int) -> Bench:
    warm_up()
    base, data = save_material(folder)
    words = ["--data", str(data), *SETTINGS]
    start, whole = folder / "start", folder / "whole"
    _train_and_import(start, ["add-task", "first", *words, "--base", str(base)])
    shutil.copytree(start, whole)
    began = time.monotonic()
    second = ["add-task", "second", *words, "--seed", "3"]
    if train(whole, second) != ENDED:
        raise RuntimeError("the second training failed")
    seconds = time.monotonic() - began
    digest = Bank.open(whole).snapshot().adapter_of("second").digest
    return Bench(start, second, digest, seconds, random.Random(seed))
