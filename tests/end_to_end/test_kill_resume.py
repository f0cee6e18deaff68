"""``lorabank add-task`` killed in the middle of training, then ``--resume``: the adapter of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorabank.bank.bank import Bank

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

SETTINGS = ["--epochs", "4", "--batch-size", "2", "--save-steps", "1", "--r", "2", "--device", "cpu"]
"""19 rows, so ten steps an epoch: time enough to be killed in."""
PATIENCE = 240.0


def command(bank: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "lorabank_cli", "add-task", "letters", "--bank", str(bank), "--json", *words]


def run(bank: Path, *words: str) -> dict:
    done = subprocess.run(command(bank, *words), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wait_for_step(bank: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done = [int(path.name.rpartition("-")[2]) for path in bank.glob("work/*/checkpoint-*")]
        if max(done, default=0) >= step:
            return
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.005)
    raise TimeoutError(f"no checkpoint of step {step}")


def test_a_killed_training_resumes_to_the_same_adapter(base: Path, data: Path, tmp_path: Path) -> None:
    given = ["--data", str(data), "--base", str(base), *SETTINGS]
    whole = run(tmp_path / "whole", *given)

    bank = tmp_path / "bank"
    process = subprocess.Popen(
        command(bank, *given), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for_step(bank, 3, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert Bank.open(bank).snapshot().tasks == ()
    assert Bank.open(bank).verify(full=True) == []

    resumed = run(bank, "--resume")
    assert resumed["adapter"]["digest"] == whole["adapter"]["digest"]
    assert resumed["adapter"]["steps"] == whole["adapter"]["steps"]
    assert resumed["score"] == whole["score"]
    assert Bank.open(bank).verify(full=True) == []
    assert list((bank / "work").iterdir()) == []
