"""What a card on the hub says beyond a folder's: licence, data, results as the hub reads them, and all scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lorabank import __version__
from lorabank.bank.snapshot import Snapshot
from lorabank.core.commands import Command
from lorabank.core.task_kinds import task_kind
from lorabank.workflows.carrying.model_card import as_markdown, name_on_hub
from lorabank.workflows.show import listed

if TYPE_CHECKING:
    from lorabank.workflows.results import MatrixReport

_LIBRARY = "continual-learning"


def with_results(
    page: bytes,
    snapshot: Snapshot,
    reports: Sequence[MatrixReport],
    *,
    tasks: Sequence[str],
    repository: str,
    license: str | None,
    datasets: Sequence[str],
) -> bytes:
    """A model card with licence, data, results and matrices.

    Args:
        page: The card.
        snapshot: The bank.
        reports: Matrices whose last row the repository answers with, of the first of them the results.
        tasks: Whose results and data they are.
        repository: Its name on the hub.
        license: As the hub spells it.
        datasets: Of the hub; those that tasks were read from are added.
    """
    card = ModelCard(page.decode())
    data: Any = card.data
    sources = [one.source for one in snapshot.datasets if one.task in tasks]
    used = dict.fromkeys([*datasets, *filter(None, map(_on_hub, sources))])
    data.license, data.datasets = license, [*used] or None
    data.tags = [*(data.tags or ()), _LIBRARY]
    kind = task_kind(snapshot.base.task_type).pipeline
    if results := [one for report in reports[:1] for one in _results(report, tasks, kind or "text-generation")]:
        data.model_name, data.eval_results = repository.partition("/")[2], results
    parts = [f"---\n{data.to_yaml()}\n---\n{card.text.rstrip()}", *map(_matrix, reports)]
    return ("\n\n".join(parts) + "\n").encode()


def bank_card(snapshot: Snapshot, repository: str) -> bytes:
    """``README.md`` of a whole bank: base, tasks, compositions, and how to load it."""
    base, first = snapshot.base, snapshot.tasks[0].name if snapshot.tasks else "TASK"
    data = ModelCardData(
        base_model=name_on_hub(base),
        pipeline_tag=task_kind(base.task_type).pipeline,
        tags=["lora", "lorabank"],
    )
    base_name = as_markdown(base.name)
    tasks = [
        f"| {as_markdown(task.name)} | {as_markdown(snapshot.adapter_of(task.name).strategy)} | "
        f"{as_markdown(listed(task.labels))} |"
        for task in snapshot.tasks
    ]
    compositions = [
        f"| {as_markdown(one.name)} | {as_markdown(one.mode)} | {as_markdown(', '.join(one.members))} |"
        for one in snapshot.compositions
    ]
    commands = Command("pull", repository), Command("predict", "--task", first, "TEXT")
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {repository.partition('/')[2]}",
        f"A bank of {len(tasks)} tasks on {base_name}, written by lorabank {__version__}: every adapter, composition "
        "and score, and the rows that the bank keeps of its tasks.",
        "\n".join(["| task | trained by | labels |", "| --- | --- | --- |", *tasks]),
        *(["\n".join(["| composition | mode | of |", "| --- | --- | --- |", *compositions])] if compositions else []),
        "## How to load it",
        "\n".join(["```shell", *(command.line("bank") for command in commands), "```"]),
    ]
    return ("\n\n".join(parts) + "\n").encode()


def _on_hub(source: str) -> str | None:
    """The hub's data set that rows were read from: ``hf:OWNER/NAME[/CONFIG][:SPLIT]``."""
    if not source.startswith("hf:"):
        return None
    return "/".join(source.removeprefix("hf:").partition(":")[0].split("/")[:2])


def _results(report: MatrixReport, tasks: Sequence[str], kind: str) -> list[EvalResult]:
    last = zip(report.tasks, report.values[-1], strict=True)
    return [
        EvalResult(kind, dataset_type=task, dataset_name=task, metric_type=report.metric, metric_value=round(value, 4))
        for task, value in last
        if task in tasks and value is not None
    ]


def _matrix(report: MatrixReport) -> str:
    """What was forgotten: a row after each task, a column for each task."""
    after = ["no task", *report.tasks]
    lines = [
        f"| {as_markdown(name)} | {' | '.join('' if value is None else f'{value:.3f}' for value in row)} |"
        for name, row in zip(after, report.values, strict=True)
    ]
    head = f"| after | {' | '.join(f'on {as_markdown(task)}' for task in report.tasks)} |"
    named = [f"{name.replace('_', ' ')} {value:.3f}" for name, value in report.scalars.items() if value is not None]
    parts = [
        f"## Scores of {as_markdown(report.subject)}: {report.metric.replace('_', ' ')}",
        "\n".join([head, "| --- " * (1 + len(report.tasks)) + "|", *lines]),
        *([f"{'; '.join(named)}."] if named else []),
    ]
    return "\n\n".join(parts)
