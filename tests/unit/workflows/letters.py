"""A small experiment on rows of letters, and who watches it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from lorabank.core.observer import SilentObserver

TASKS = {"one": ("no", "yes"), "two": ("x", "y", "z")}
TRAIN = {
    "epochs": 2.0, "r": 2, "batch_size": 8, "learning_rate": 0.01, "device": "cpu", "clusters_per_task": 2,
    "keep_samples": 8, "save_steps": 2, "max_length": 16,
}  # fmt: skip

EXPERIMENT = """
name = "letters"
base = "base"
orders = [["one", "two"], ["two", "one"]]
strategies = ["seqlora", "olora"]
selection = "not chosen"

[train]
{train}

[tasks.one]
data = "one.jsonl"
eval_data = "one-test.jsonl"

[tasks.two]
data = "two.jsonl"
eval_data = "two-test.jsonl"

[[compositions]]
mode = "prototype"
on = ["olora"]

[evaluation]
device = "cpu"
"""


class Told(SilentObserver):
    """Keeps notices; presses Ctrl-C at the n-th step of the n-th job."""

    def __init__(self, job: int = 0, step: int = 0) -> None:
        self.notices: list[str] = []
        self.jobs: list[str] = []
        self._at = (job, step)

    def notice(self, message: str) -> None:
        self.notices.append(message)

    def start(self, what: str, total: int) -> None:
        self.jobs.append(what)

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        if (len(self.jobs), done) == self._at:
            raise KeyboardInterrupt


def write_rows(path: Path, labels: tuple[str, ...], rows: int, seed: int) -> None:
    chance = random.Random(seed)
    size = 26 // len(labels)
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    lines = [
        {"text": " ".join(chance.choices(alphabet[k * size : (k + 1) * size], k=8)), "label": labels[k]}
        for k in (row % len(labels) for row in range(rows))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def changed(file: Path, *changes: tuple[str, str]) -> Path:
    text = file.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    return file
