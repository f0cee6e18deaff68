"""``lorabank add-task`` as a process, against a script with transformers' Trainer and PEFT that takes the same steps.

Both train the same rows in batches of the same size, score the same evaluation rows and store the adapter; lorabank
makes the bank, or reads its earlier tasks, and keeps routing statistics and rows beside it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.commands import BASE, child, command, demo_file, quick_bank
from benchmarks.harness import Result, children_cpu_time, compare, from_comparison

EARLIER = 9
BARS = {("1", "first"): 1.05, ("1", "tenth"): 0.9, ("4", "first"): 1.05, ("4", "tenth"): 0.9}
ROUNDS = {"1": 4, "4": 2}


def measure() -> list[Result]:
    """CPU time of whole processes: one epoch, as O-LoRA's authors train, and four, which is the default."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        banks = {"first": None, "tenth": quick_bank(place / "earlier", EARLIER)}
        return [result for epochs in ROUNDS for result in _measure(place, banks, epochs)]


def _measure(place: Path, banks: dict[str, Path | None], epochs: str) -> list[Result]:
    train, test = (str(demo_file("sentiment", split)) for split in ("train", "test"))
    script = child("-m", "benchmarks.peft_script", "train", BASE, train, test, epochs, str(place / "peft"))
    forms: dict[str, Callable[[], object]] = {"script": script}
    for which, earlier in banks.items():
        words = ("add-task", "sentiment", "--data", train, "--eval-data", test, "--epochs", epochs, "--device", "cpu")
        forms[which] = _on_a_copy(earlier, place / "bank", words)
    warmup = epochs == next(iter(ROUNDS))  # byte code and files are the same for both
    seen = compare(forms, baseline="script", rounds=ROUNDS[epochs], warmup=warmup, clock=children_cpu_time)
    what = f"480 rows, {'one epoch' if epochs == '1' else f'{epochs} epochs'}, against Trainer and PEFT"
    return [
        from_comparison("add_task", f"`lorabank add-task`, the {which} task, {what}", seen[which], BARS[epochs, which])
        for which in banks
    ]


def _on_a_copy(earlier: Path | None, bank: Path, words: tuple[str, ...]) -> Callable[[], object]:
    """The command on a bank as it was before; copying it is this process's time."""

    def run() -> None:
        shutil.rmtree(bank, ignore_errors=True)
        if earlier is not None:
            shutil.copytree(earlier, bank)
        command(bank, *words)()

    return run
