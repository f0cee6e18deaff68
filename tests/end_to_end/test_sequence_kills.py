"""``lorabank sequence run`` killed again and again: the same command goes on to the table of a whole run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorabank.bank.bank import Bank

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow, pytest.mark.timeout(900)]

EXPERIMENT = """
name = "letters"
base = {base}
orders = [["one", "two"]]
strategies = ["seqlora", "olora"]
selection = "not chosen"

[train]
epochs = 4
batch_size = 2
r = 2
save_steps = 1
device = "cpu"

[tasks.one]
data = {data}

[tasks.two]
data = {other}

[[compositions]]
mode = "prototype"
on = ["olora"]

[evaluation]
device = "cpu"
"""
KILLS = 4
PATIENCE = 300.0


def command(file: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "lorabank_cli", "--quiet", "sequence", "run", str(file), "--out", str(out)]


def whole_run(file: Path, out: Path) -> None:
    done = subprocess.run(command(file, out), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


def traces(out: Path) -> int:
    """Grows with everything that a run leaves: checkpoints, and adapters in their place."""
    banks = list(out.glob("banks/*/*/*"))
    checkpoints = sum(len(list((bank / "work").glob("*/checkpoint-*"))) for bank in banks)
    return checkpoints + 20 * sum(len(list((bank / "adapters").glob("*"))) for bank in banks)


def killed(file: Path, out: Path, chance: random.Random) -> None:
    """Start a run, and kill it a random moment after it has done something new."""
    begun = traces(out)
    process = subprocess.Popen(
        command(file, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + PATIENCE
    try:
        while traces(out) == begun:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 1.0))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def results(out: Path) -> tuple[str, list[object]]:
    """The table below the card, and every matrix."""
    table = (out / "table.md").read_text(encoding="utf-8").partition("## Means")[2]
    runs = json.loads((out / "results.json").read_text(encoding="utf-8"))["runs"]
    return table, [[run["strategy"], run["report"]["values"], run["report"]["scalars"]] for run in runs]


def test_a_killed_sequence_goes_on_to_the_same_table(base: Path, data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    turned = [{"text": f"{row['text']} z", "label": "ab"[row["label"] == "first"]} for row in rows]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in turned))
    file = tmp_path / "letters.toml"
    paths = {"base": base, "data": data, "other": other}
    file.write_text(EXPERIMENT.format(**{name: json.dumps(str(path)) for name, path in paths.items()}))
    whole_run(file, tmp_path / "whole")

    chance = random.Random(3)
    out = tmp_path / "killed"
    for _ in range(KILLS):
        killed(file, out, chance)
        for bank in out.glob("banks/*/*/*"):
            if Bank.exists(bank):
                assert Bank.open(bank).verify(full=True) == []
    whole_run(file, out)
    assert results(out) == results(tmp_path / "whole")
    for bank in out.glob("banks/*/*/*"):
        assert Bank.open(bank).verify(full=True) == []
        assert list((bank / "work").iterdir()) == []
