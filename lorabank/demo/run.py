"""``lorabank demo``: the main job on four small real tasks, from an empty folder to a table."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from lorabank.core.config import ComposeConfig, EvalConfig, TrainConfig
from lorabank.core.observer import Observer
from lorabank.workflows.results import DemoResult, MatrixReport
from lorabank.workflows.sequence_bank import compose_and_measure, learn, learnt_tasks

TASKS = ("sentiment", "spam", "products", "tweets")
SETTINGS: dict[str, Any] = {
    "target_modules": "all-linear",
    "lr_scheduler_type": "linear",
    "epochs": 3.0,
    "max_length": 64,
    "keep_samples": 64,
}
"""Sized for two CPU cores: few passes (so every linear layer and a rate that falls), short texts, few samples.

Chosen on rows cut from the training files: ``python -m benchmarks.sequences --dev 120 --no-compose --set ...``.
"""
COMPOSITIONS = (
    ComposeConfig(mode="manual", name="manual", weights=",".join(f"{task}=0.25" for task in TASKS)),
    ComposeConfig(mode="attention", name="attention"),
    ComposeConfig(mode="prototype", name="prototype", router="gaussian"),
)


def demo(target: Path, *, seed: int, epochs: float | None, observer: Observer) -> DemoResult:
    """Sequential training (one adapter goes on) beside O-LoRA with three ways to compose.

    A folder of an earlier, interrupted demo is gone on with: what is in its banks is not trained again.

    Args:
        target: Folder for data, banks, heat-maps and the report.
        seed: Seed of both sequences.
        epochs: Passes over each task's rows; None for the default.
        observer: Gets notices and progress.
    """
    from lorabank.workflows.sharing import report as write_report
    from lorabank.workflows.sharing import save_plot

    started = time.monotonic()
    copy_data(target / "data")
    changed = {} if epochs is None else {"epochs": epochs}
    rows: list[dict[str, Any]] = []
    paths: list[str] = []
    for strategy, compositions in (("seqlora", ()), ("olora", COMPOSITIONS)):
        bank = target / strategy
        train_sequence(bank, target / "data", strategy, seed=seed, changed=changed, observer=observer)
        reports = measure(bank, compositions, seed=seed, observer=observer)
        rows += [table_row(strategy, report) for report in reports]
        for report in reports:
            name = strategy if report.subject == "as-trained" else f"{strategy}-{report.subject}"
            paths.append(str(save_plot(report, target / f"{name}.png")))
        paths.append(str(write_report(bank, target / f"{strategy}.html")))
    return DemoResult(tuple(rows), tuple(paths), time.monotonic() - started)


def copy_data(target: Path) -> None:
    """The demo's tasks as files, to look at and to train on."""
    for task in TASKS:
        with as_file(files("lorabank.demo") / "data" / task) as source:
            shutil.copytree(source, target / task, dirs_exist_ok=True)


def train_sequence(
    bank: Path, data: Path, strategy: str, *, seed: int, changed: Mapping[str, Any], observer: Observer
) -> None:
    """Add the four tasks that are not in the bank yet, in order, with SETTINGS and what is changed in them."""
    there = learnt_tasks(bank)
    for task in TASKS:
        if task in there:
            continue
        observer.notice(f"{strategy}: learning {task}")
        config = TrainConfig(
            data=str(data / task / "train.jsonl"),
            eval_data=str(data / task / "test.jsonl"),
            strategy=strategy,
            seed=seed,
            **{**SETTINGS, **changed},
        )
        learn(bank, task, config, None, observer)


def measure(
    bank: Path, compositions: Sequence[ComposeConfig], *, seed: int, observer: Observer
) -> tuple[MatrixReport, ...]:
    """Add the compositions that are not there yet; the whole matrix of the state as trained and of each."""
    seeded = [replace(config, seed=seed) for config in compositions]
    return compose_and_measure(bank, seeded, EvalConfig(all=True, forgetting_matrix=True), observer)


def table_row(strategy: str, report: MatrixReport) -> dict[str, Any]:
    """One line of the demo's table."""
    row: dict[str, Any] = {
        "strategy": strategy,
        "answers": report.subject,
        "task_id": report.task_id,
        **{
            name: report.scalars[name]
            for name in ("average_accuracy", "learning_accuracy", "backward_transfer", "forgetting")
        },
        "oracle": None,
        "routing_accuracy": None,
    }
    if report.routing:
        row |= {"oracle": report.routing["oracle"], "routing_accuracy": report.routing["accuracy"]}
    return row
