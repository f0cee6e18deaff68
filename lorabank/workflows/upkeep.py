"""Looking after a bank: one record with all that is known of it, and the facts of a bug report."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lorabank.bank.bank import Bank
from lorabank.bank.snapshot import Snapshot
from lorabank.core.config import DEFAULT_BASE, DEFAULT_LANGUAGE_MODEL, nearest
from lorabank.core.errors import LorabankError, NotFoundError
from lorabank.core.processor import cpu_dtype, cpu_flags
from lorabank.core.records import CompositionRecord, OperationRecord, TaskRecord

PACKAGES = (
    "lorabank", "torch", "transformers", "tokenizers", "safetensors", "accelerate", "huggingface-hub", "numpy",
    "scikit-learn", "pyarrow", "sqlalchemy", "alembic", "peft",
)  # fmt: skip
"""What a bug report should name; PEFT is not needed, but reads what is exported."""


def find_named(snapshot: Snapshot, name: str) -> TaskRecord | CompositionRecord:
    """The task or composition of a name: they share one set of names.

    Raises:
        NotFoundError: With the nearest name.
    """
    records: tuple[TaskRecord | CompositionRecord, ...] = (*snapshot.tasks, *snapshot.compositions)
    for record in records:
        if record.name == name:
            return record
    names = [record.name for record in records]
    there = f" The bank has: {listed(names)}." if names else " The bank is empty."
    raise NotFoundError(
        f"no task or composition {name[:80]!r}.{nearest(name, names)}{there}",
        hint="lorabank list" if names else "lorabank add-task NAME --data FILE",
    )


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
    overlap = {task_of.get(digest, digest): value for digest, value in adapter.metrics.get("overlap", {}).items()}
    if (chain := adapter.metrics.get("continued_from")) is not None:
        shown["metrics"]["continued_from"] = task_of.get(chain, chain)
    return {
        "task": task._asdict(),
        "path": str(bank.adapter_path(adapter.digest)),
        "datasets": [dataset._asdict() for dataset in snapshot.datasets if dataset.task == task.name],
        "adapter": shown,
        "overlap": overlap,
        "compositions": [made.name for made in snapshot.compositions if task.name in made.members],
        "scores": _scores(bank, lambda subject, on: on == task.name),
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
        "members": members,
        "scores": _scores(bank, lambda subject, on: subject == record.name),
    }


def _scores(bank: Bank, wanted: Callable[[str, str], bool]) -> list[dict[str, Any]]:
    """Stored cells, oldest first."""
    names = ("subject", "stage", "task", "metric", "value", "low", "high", "n", "task_id", "created_at")
    return [
        {name: getattr(record, name) for name in names}
        for record in bank.all_evaluations()
        if wanted(record.subject, record.task)
    ]


def doctor(path: str | Path) -> tuple[tuple[str, str], ...]:
    """Facts by name: versions, machine, devices, the bank, its base model. Nothing is changed or fetched."""
    facts = [("python", f"{platform.python_version()} ({platform.platform()})")]
    facts += [(package, _version(package)) for package in PACKAGES]
    facts += [("cpu", f"{os.cpu_count()} cores, {platform.machine()}"), ("cpu dtype", cpu_dtype(cpu_flags()))]
    facts += [("devices", _devices())]
    return (*facts, *_bank_facts(Path(path)))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    try:
        import torch
    except Exception as error:  # a broken installation is what a doctor must be able to tell
        return f"torch cannot be imported: {type(error).__name__}: {error}"
    threads = f"cpu ({torch.get_num_threads()} threads)"
    if not torch.cuda.is_available():
        return f"{threads}, no CUDA"
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    gpus = [f"cuda:{index} {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for index, gpu in enumerate(found)]
    return ", ".join([threads, *gpus])


def _bank_facts(path: Path) -> list[tuple[str, str]]:
    facts = [("bank", str(path.resolve()))]
    if not Bank.exists(path):
        return [
            *facts,
            ("bank state", "there is none"),
            ("base model", _reach(DEFAULT_BASE, None)),
            ("language model", _reach(DEFAULT_LANGUAGE_MODEL, None)),
        ]
    try:
        bank = Bank.open(path)
        snapshot = bank.snapshot()
        operations = bank.operations()
    except LorabankError as error:
        return [*facts, ("bank state", error.message + (f" ({error.hint})" if error.hint else ""))]
    from lorabank.bank.reading import REVISIONS

    found = len(bank.verify(full=False))
    state = (
        f"format {snapshot.format}, schema {REVISIONS[-1]}, {len(snapshot.tasks)} tasks, "
        f"{len(snapshot.compositions)} compositions; quick check: {found or 'no'} finding{'' if found == 1 else 's'}"
    )
    facts += [
        ("bank state", state),
        ("free space", f"{shutil.disk_usage(path).free / 2**30:.1f} GiB"),
        ("operations", "; ".join(map(_operation, operations)) or "none under way"),
        ("base model", _reach(snapshot.base.name, snapshot.base.revision)),
    ]
    return facts


def _operation(operation: OperationRecord) -> str:
    what = f"{operation.kind} {operation.name} since {operation.started_at[:19]}Z"
    if operation.alive:
        return f"{what}, process {operation.pid} on {operation.host}"
    again = f" (lorabank add-task {operation.name} --resume)" if operation.kind == "add-task" else ""
    return f"{what}, interrupted{again}"


def _reach(name: str, revision: str | None) -> str:
    """Where a base model's files are, without fetching them."""
    from lorabank.models.resolving import find_on_disk, hub_reachable

    found = find_on_disk(name, revision)
    if found is not None:
        return f"{name}: {found.path} ({found.source})"
    hub = "the hub answers" if hub_reachable() else "the hub does not answer"
    return f"{name}: not on this disk, {hub}"
