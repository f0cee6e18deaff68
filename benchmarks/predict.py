"""``lorabank predict`` as a process: many texts over nine tasks, against a script with PEFT alone.

The script is a careful one: both its passes are sorted by length, and the texts of a task are answered together. Both
route by the nearest of the same centroids, and read the same adapters.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.commands import BASE, SETS, child, command, demo_file, quick_bank, rows
from benchmarks.harness import Result, children_cpu_time, compare, from_comparison
from lorabank import ComposeConfig, api
from lorabank.bank.bank import Bank
from lorabank.compose.routers.statistics import TaskStatistics

TASKS, TEXTS = 9, 1200
BARS = {0: 0.8, 3: 0.8}
"""By the first layer that is adapted: where it is not the lowest, the two passes of a text share the layers below."""
ROUNDS = 3


def measure() -> list[Result]:
    """CPU time of whole processes, and which part of the texts both route alike."""
    with tempfile.TemporaryDirectory() as folder:
        return [_measure(Path(folder), first_layer) for first_layer in BARS]


def _measure(place: Path, first_layer: int) -> Result:
    bank = quick_bank(place / f"bank-{first_layer}", TASKS, first_layer=first_layer)
    api.compose(bank, ComposeConfig(mode="routed", device="cpu"))
    texts, centroids = _mixed(place / "texts.jsonl"), place / "centroids.npy"
    opened = Bank.open(bank)
    tasks = opened.snapshot().tasks
    kept = [TaskStatistics.from_bytes(opened.read_blob(str(task.statistics))).centroids for task in tasks]
    np.save(centroids, np.stack(kept))
    adapters = [str(bank / "adapters" / str(task.adapter)) for task in tasks]
    ours = command(bank, "--json", "predict", "--composition", "routed", "--data", str(texts), "--device", "cpu")
    script = child("-m", "benchmarks.peft_script", "predict", BASE, str(centroids), str(texts), *adapters)
    said, theirs = json.loads(ours())["predictions"], json.loads(script())  # and warmed up
    alike = np.mean([one["task"] == tasks[k].name for one, k in zip(said, theirs["routes"], strict=True)])
    forms = {"script": script, "lorabank": ours}
    seen = compare(forms, baseline="script", rounds=ROUNDS, warmup=0, clock=children_cpu_time)
    where = f" adapted from layer {first_layer} of 6 on" if first_layer else ""
    what = f"`lorabank predict`, {TEXTS} texts over {TASKS} tasks{where}, against PEFT sorted by length"
    result = from_comparison("predict", what, seen["lorabank"], BARS[first_layer])
    return replace(result, detail=result.detail | {"routed alike": alike})


def _mixed(path: Path) -> Path:
    """Texts of all sets, mixed."""
    found = [row["text"] for split in ("test", "train") for name in SETS for row in rows(demo_file(name, split))]
    order = np.random.default_rng(0).permutation(TEXTS)
    path.write_text("".join(json.dumps({"text": found[i]}) + "\n" for i in order), encoding="utf-8")
    return path
