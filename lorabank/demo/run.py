"""``lorabank demo``: the main job on four small real tasks, from an empty folder to a table."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig, TrainConfig
from lorabank.core.observer import Observer
from lorabank.demo.steps import Step, Steps
from lorabank.demo.table import markdown
from lorabank.sequences.bank import compose_and_measure, learn, learnt_tasks, proposing
from lorabank.sequences.report import write_report
from lorabank.workflows.compose import compose
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.results import DemoResult, MatrixReport

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
    ComposeConfig(mode="routed", name="routed"),
)


_ROWS, _HELD_OUT = 480, 240
"""Rows of each task to train on and to score."""
_TRAINED = 3
"""Passes through the model that a training row costs: one forward, and backward about two."""
_ATTENDED = 1.5
"""Passes that a row under attention costs, where each adapter and the selector run for themselves."""
_FITTED = 12
"""Passes that a row costs on which a selector is fitted."""


_PLAN = (
    "{0} tasks ({1}) are learnt one after another, and each is scored after each; {2} steps, under ten minutes on two "
    "quiet cores:",
    "  train one adapter on every task in turn (seqlora), which is what forgets",
    "  train an adapter for each task, orthogonal to the earlier ones (olora)",
    "  compose olora's adapters: equal weights (manual), attention, routing by the text (routed)",
    "  score all five ways to answer on every task; data, banks, plots and a report are written to {3}",
)


class _Part(NamedTuple):
    """A step of the demo, and what does it."""

    step: Step
    run: Callable[[Observer], object]


def demo(target: Path, *, seed: int, epochs: float | None, observer: Observer) -> DemoResult:
    """Sequential training (one adapter for all tasks) beside O-LoRA with three ways to compose.

    A demo that was interrupted is resumed: what is in its banks is not trained again.

    Args:
        target: Folder for data, banks, heat-maps, the table and the report.
        seed: Seed of both sequences.
        epochs: Passes over each task's rows; None for the default.
        observer: Gets notices and progress.
    """
    started = time.monotonic()
    copy_data(target / "data")
    changed = {} if epochs is None else {"epochs": epochs}
    rows: list[dict[str, Any]] = []
    paths: list[str] = []
    parts: list[_Part] = []
    for strategy, compositions in (("seqlora", ()), ("olora", COMPOSITIONS)):
        parts += _learning(target, strategy, seed, changed)
        parts += _composing(target / strategy, compositions, seed)
        parts.append(_measuring(target, strategy, compositions, seed, rows, paths))
    for line in _PLAN:
        observer.notice(line.format(len(TASKS), ", ".join(TASKS), len(parts), target))
    steps = Steps(observer, "demo", [part.step for part in parts])
    try:
        for part in parts:
            if not part.step.done:
                steps.begin()
                part.run(steps)
    finally:
        steps.close()
    page = target / "table.md"
    page.write_text(markdown(rows), encoding="utf-8")
    compared = write_report([target / "seqlora", target / "olora"], target / "report.html")
    return DemoResult(tuple(rows), (*paths, str(page), str(compared)), time.monotonic() - started)


def _learning(target: Path, strategy: str, seed: int, changed: Mapping[str, Any]) -> list[_Part]:
    """Each task, unless it is in the bank."""
    bank, passes = target / strategy, float(changed.get("epochs", SETTINGS["epochs"]))
    work = {"training": _ROWS * passes * _TRAINED, "scoring": _HELD_OUT, "": _ROWS}
    there = learnt_tasks(bank)
    return [
        _Part(
            Step(f"{strategy} learns {task}", work, task in there),
            partial(_learn, bank, target / "data", task, strategy, seed, changed),
        )
        for task in TASKS
    ]


def _composing(bank: Path, compositions: Sequence[ComposeConfig], seed: int) -> list[_Part]:
    """Each composition, unless it is in the bank."""
    samples = SETTINGS["keep_samples"] * sum(range(2, len(TASKS) + 1))  # of the stages that have a selector
    work = {"attention": {"attention over": 2 * samples * _FITTED}}
    there = _composed(bank)
    return [
        _Part(
            Step(f"composing {config.mode}", work.get(config.mode, {"": _HELD_OUT}), config.name in there),
            partial(_compose, bank, replace(config, seed=seed)),
        )
        for config in compositions
    ]


def _measuring(
    target: Path,
    strategy: str,
    compositions: Sequence[ComposeConfig],
    seed: int,
    rows: list[dict[str, Any]],
    paths: list[str],
) -> _Part:
    """The matrix of the state as trained and of each composition: table rows and heat-maps."""
    cells = len(TASKS) * (len(TASKS) + 1) // 2 * _HELD_OUT
    work = {"scoring as-trained": float(cells - len(TASKS) * _HELD_OUT)}
    work |= {f"scoring {one.name}": cells * (_ATTENDED if one.mode == "attention" else 1.0) for one in compositions}

    def run(observer: Observer) -> None:
        from lorabank.workflows.publish import save_plot

        bank = target / strategy
        for report in measure(bank, compositions, seed=seed, observer=observer):
            rows.append(table_row(strategy, report))
            name = strategy if report.subject == "as-trained" else f"{strategy}-{report.subject}"
            paths.append(str(save_plot(report, target / f"{name}.png")))

    return _Part(Step(f"scoring {strategy}", work), run)


def _composed(bank: Path) -> frozenset[str]:
    """Names of the compositions of a bank; none where there is no bank yet."""
    there = learnt_tasks(bank)
    return frozenset(one.name for one in Bank.open(bank).snapshot().compositions) if there else frozenset()


def _compose(bank: Path, config: ComposeConfig, observer: Observer) -> None:
    with proposing(bank):
        compose(OpenBank(bank), config, observer)


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
        if task not in there:
            observer.notice(f"{strategy}: learning {task}")
            _learn(bank, data, task, strategy, seed, changed, observer)


def _learn(
    bank: Path, data: Path, task: str, strategy: str, seed: int, changed: Mapping[str, Any], observer: Observer
) -> None:
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
    """One line of the demo's table; ``scores`` are those on each task after the last."""
    row: dict[str, Any] = {
        "strategy": strategy,
        "answers": report.subject,
        "task_id": report.task_id,
        "scores": dict(zip(report.tasks, report.values[-1], strict=True)),
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
