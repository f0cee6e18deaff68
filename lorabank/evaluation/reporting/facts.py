"""What a report tells of a bank besides its scores: its tasks, how they are asked, and how they were trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorabank.bank.snapshot import Snapshot
from lorabank.core.methods import values_of
from lorabank.core.records import AdapterRecord, TaskRecord
from lorabank.core.task_kinds import task_kind
from lorabank.data.methods import recorded_scoring
from lorabank.evaluation.reporting.measured import Measured
from lorabank.evaluation.scoring import ACCURACY
from lorabank.evaluation.text_samples import metric_of


def trained_rows(snapshot: Snapshot, first: Measured | None) -> list[dict[str, Any]]:
    """Each task with its adapter, the tasks whose adapters were active while it was trained, and its score."""
    task_of = {digest: adapter.task for digest, adapter in snapshot.adapters.items()}
    scores = dict(zip(first.tasks, first.values[-1], strict=True)) if first else {}
    rows = []
    for task in snapshot.tasks:
        adapter = snapshot.adapter_of(task.name)
        context = [task_of.get(digest, digest[:12]) for digest in adapter.context]
        rows.append({"task": task, "adapter": adapter, "context": context, "score": scores.get(task.name)})
    return rows


def task_rows(snapshot: Snapshot, first: Measured | None) -> list[dict[str, Any]]:
    """The same with how each task is asked, its metric and its macro-F1."""
    rows = trained_rows(snapshot, first)
    for row in rows:
        task = row["task"]
        labels = first.labels.get(task.name) if first else None
        asked = _asked(task, row["adapter"])
        row |= {"asked": asked, "metric": asked["metric"] if asked else ACCURACY}
        row |= {"macro_f1": labels and labels.macro_f1}
    return rows


def shared_settings(adapters: Sequence[AdapterRecord]) -> tuple[dict[str, str], list[str]]:
    """The settings that are the same for every adapter, and the names of the others."""
    names = sorted({name for adapter in adapters for name in adapter.config})
    values = {name: {setting(adapter.config.get(name)) for adapter in adapters} for name in names}
    same = {name: next(iter(found)) for name, found in values.items() if len(found) == 1}
    return same, [name for name in names if name not in same]


def setting(value: Any) -> str:
    """The value of a setting for people; a dash where it has none."""
    if value is None or value == "":
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _asked(task: TaskRecord, adapter: AdapterRecord) -> dict[str, Any] | None:
    """How a language model is asked and scored; None for a classifier, which has no such choice."""
    if task_kind(task.task_type).labelled:
        return None
    scoring = adapter.config["scoring"]
    settings = values_of(recorded_scoring(adapter.config))
    return {
        "form": adapter.config["format"],
        "scoring": scoring,
        "metric": metric_of(scoring, adapter.metrics),
        "max_length": adapter.config["max_length"],
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items()),
    }
