"""What `lorabank --help` and `lorabank list` cost beside the start of Python itself."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import Result, child_environment, children_cpu_time, compare, from_comparison
from lorabank.bank.bank import Bank
from lorabank.core.records import AdapterRecord, BaseModelRecord, DatasetRecord, TaskRecord

TASKS = 15
BAR = 6.0
ROUNDS = 30


def measure() -> list[Result]:
    """CPU time of whole processes; the bank that is listed holds 15 tasks."""
    with tempfile.TemporaryDirectory() as folder:
        bank = Path(folder) / "bank"
        _fill(bank)
        forms = {
            "python": _command("-c", "0"),
            "--help": _command("-m", "lorabank_cli", "--help"),
            "list": _command("-m", "lorabank_cli", "--bank", str(bank), "list"),
        }
        seen = compare(forms, baseline="python", rounds=ROUNDS, clock=children_cpu_time)
    return [
        replace(from_comparison("startup", f"`lorabank {form}` against `python -c 0`", comparison, BAR), floor=1.0)
        for form, comparison in seen.items()
    ]


def _command(*words: str) -> Callable[[], None]:
    def run() -> None:
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=child_environment())

    return run


def _fill(path: Path) -> None:
    """A bank with the records of some tasks; the adapters' files are as small as they can be."""
    digest = "0" * 64
    base = BaseModelRecord("base", "local", None, digest, digest, digest, "float32", "SEQ_CLS", 384, 22_713_216)
    bank = Bank.create(path, base)
    for number in range(1, TASKS + 1):
        name = f"task-{number}"
        with bank.reserve("add-task", name, {}) as operation:
            files = {"adapter_config.json": f'{{"task": "{name}"}}'.encode()}
            adapter = AdapterRecord(
                digest=operation.stage_adapter(files),
                task=name,
                r=8,
                lora_alpha=32.0,
                use_rslora=False,
                target_modules=("query", "value"),
                strategy="olora",
                penalties={"orthogonal": 0.5},
                context=(),
                seed=0,
                steps=150,
                wall_seconds=30.0,
                device="cpu",
                bytes=0,
                head_digest=None,
                files={},
                versions={},
                config={},
                metrics={"accuracy": 0.9},
            )
            task = TaskRecord(name, 0, "SEQ_CLS", ("negative", "positive"), "ready", adapter=adapter.digest)
            rows = DatasetRecord(name, "train", 480, ("text", "label"), digest, "train.jsonl")
            operation.commit_task(task, adapter, [rows])
