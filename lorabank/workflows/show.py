"""One task or composition with all that is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorabank.bank.bank import Bank
from lorabank.bank.blobs import parsed_blob
from lorabank.bank.snapshot import Snapshot
from lorabank.core.records import AdapterRecord, BaseModelRecord, CompositionRecord, EvaluationRecord, TaskRecord
from lorabank.evaluation.confusion import KEY
from lorabank.models.facts.curves import ROLE, LearningCurve


def find_named(snapshot: Snapshot, name: str) -> TaskRecord | CompositionRecord:
    """The task or composition of a name: they share one set of names.

    Raises:
        NotFoundError: With the nearest name, or that it was removed.
    """
    records: tuple[TaskRecord | CompositionRecord, ...] = (*snapshot.tasks, *snapshot.compositions)
    for record in records:
        if record.name == name:
            return record
    snapshot.refuse_damaged(name)
    raise snapshot.unknown("task or composition", name, (record.name for record in records))


def listed(names: Sequence[str], most: int = 20) -> str:
    """``"a, b, c"``; of very many names only the first."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def show(path: str | Path, name: str) -> dict[str, Any]:
    """One task or composition with everything that is stored of it; digests of adapters become task names."""
    bank = Bank.open(path)
    snapshot = bank.snapshot()
    record = find_named(snapshot, name)
    if isinstance(record, CompositionRecord):
        return _composition(bank, snapshot, record)
    return _task(bank, snapshot, record)


def _task(bank: Bank, snapshot: Snapshot, task: TaskRecord) -> dict[str, Any]:
    adapter = snapshot.adapter_of(task.name)
    task_of = {digest: other.task for digest, other in snapshot.adapters.items()}
    shown = adapter._asdict() | {
        "objects": dict(adapter.objects),
        "context": [task_of[digest] for digest in adapter.context],
    }
    shown["metrics"] = {key: value for key, value in adapter.metrics.items() if key != "overlap"}
    largest_first = sorted(adapter.metrics.get("overlap", {}).items(), key=lambda item: -item[1])
    overlap = {task_of.get(digest, digest): value for digest, value in largest_first}
    if known := adapter.metrics.get("known_rows"):
        shown["metrics"]["known_rows"] = {task_of.get(digest, digest): count for digest, count in known.items()}
    if (chain := adapter.metrics.get("continued_from")) is not None:
        shown["metrics"]["continued_from"] = task_of.get(chain, chain)
    versions = [
        {"version": number, "number": one.position, "made": one.created_at, "state": snapshot.state_of(one)}
        for number, one in enumerate(snapshot.versions(task), start=1)
    ]
    return {
        "task": task._asdict(),
        "version": len(versions),
        "versions": versions if len(versions) > 1 else [],
        "path": str(bank.adapter_path(adapter.digest)),
        "base": _base(snapshot.base),
        "datasets": [dataset._asdict() for dataset in snapshot.datasets if dataset.task == task.name],
        "adapter": shown,
        "overlap": overlap,
        "compositions": [made.name for made in snapshot.compositions if task.name in made.members],
        "scores": _scores(bank.task_scores(task.name)),
        "curve": None if (curve := curve_of(bank, adapter)) is None else asdict(curve),
    }


def curve_of(bank: Bank, adapter: AdapterRecord) -> LearningCurve | None:
    """How the training of an adapter went; None where that was not recorded.

    Raises:
        DamagedError: What was recorded cannot be read.
    """
    digest = adapter.objects.get(ROLE)
    return parsed_blob(bank, digest, LearningCurve.from_bytes) if digest else None


def _base(record: BaseModelRecord) -> dict[str, Any]:
    """The base model and the folder that plain transformers loads it from, None where it would have to be fetched."""
    from lorabank.models.bases.resolving import folder_of

    folder = folder_of(record)
    return {
        "name": record.name,
        "revision": record.revision,
        "fingerprint": record.fingerprint,
        "folder": str(folder) if folder else None,
    }


def _composition(bank: Bank, snapshot: Snapshot, record: CompositionRecord) -> dict[str, Any]:
    members = [
        {"task": task, "adapter": digest, "strategy": snapshot.adapters[digest].strategy}
        for task, digest in zip(record.members, record.adapters, strict=True)
    ]
    shown = record._asdict()
    del shown["members"], shown["adapters"]
    return {
        "composition": shown,
        "path": str(bank.path),
        "base": _base(bank.snapshot().base),
        "members": members,
        "scores": _scores(bank.composition_scores(record.name)),
    }


def _scores(records: Iterable[EvaluationRecord]) -> list[dict[str, Any]]:
    """Stored cells, oldest first; of rows with labels also the macro-F1."""
    names = ("subject", "stage", "task", "metric", "value", "low", "high", "n", "task_id", "created_at")
    return [{name: getattr(record, name) for name in names} | _macro_f1(record) for record in records]


def _macro_f1(record: EvaluationRecord) -> dict[str, Any]:
    kept = record.detail.get(KEY)
    return {"macro_f1": kept["macro_f1"]} if isinstance(kept, Mapping) else {}
