"""Records to database rows and back, and the digest that each row carries.

SQLite's own integrity check passes on most single flipped bits, so each row holds a SHA-256 of its immutable
columns. Columns that are NULL are left out of it: a later schema may add a column without touching old rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lorabank.bank.catalog.columns import answers_in_text, sound
from lorabank.bank.objects.canonical import canonical
from lorabank.core.errors import DataError
from lorabank.core.records import (
    AdapterRecord,
    BaseModelRecord,
    CompositionRecord,
    DatasetRecord,
    EvaluationRecord,
    OperationRecord,
    TaskRecord,
)

Row = Mapping[str, Any]

IMMUTABLE: dict[str, tuple[str, ...]] = {
    "bank": ("id", "bank_id", "format", "created_at", "created_with"),
    "base_model": (
        "id", "name", "source", "revision", "config_hash", "fingerprint", "tokenizer_hash", "chat_template_hash",
        "dtype", "quantisation", "task_type", "hidden_size", "parameters", "created_at",
    ),
    "blobs": ("digest", "bytes", "created_at"),
    "tasks": (
        "position", "name", "task_type", "labels", "statistics", "prompt_template", "created_at", "note", "tags",
        "first_name", "replaces", "removed_at",
    ),
    "datasets": (
        "id", "task", "split", "rows", "columns", "sha256", "source", "rows_dropped", "rows_cut", "blob",
        "row_digests",
    ),
    "adapters": (
        "id", "digest", "r", "lora_alpha", "use_rslora", "target_modules", "strategy", "penalties", "seed", "steps",
        "wall_seconds", "device", "bytes", "head_digest", "versions", "config", "metrics", "created_at",
    ),
    "adapter_files": ("adapter", "name", "sha256", "bytes"),
    "adapter_context": ("adapter", "ordinal", "member"),
    "adapter_objects": ("adapter", "role", "blob"),
    "compositions": ("id", "name", "mode", "parameters", "created_at", "note", "tags", "removed_at"),
    "composition_members": ("composition", "ordinal", "adapter", "known_as"),
    "composition_objects": ("composition", "role", "blob"),
    "evaluations": (
        "key", "subject", "stage", "task", "metric", "value", "n", "low", "high", "task_id", "settings", "detail",
        "created_at",
    ),
    "operations": ("id", "kind", "name", "config", "started_at"),
    "events": ("id", "kind", "name", "detail", "undoes", "version", "created_at"),
}  # fmt: skip
"""Table to the columns that its row digest covers."""

LATER = frozenset(("note", "tags", "first_name", "replaces", "row_digests", "known_as"))
"""Columns among them that older schemas do not have: there they are as good as empty."""

CHANGING: dict[str, tuple[str, ...]] = {
    "tasks": ("state",),
    "compositions": ("state",),
    "operations": ("pid", "boot_id", "host", "process_start", "seen_at"),
}
"""Table to the columns that change, and that no digest covers."""


def row_digest(table: str, row: Row) -> str:
    """SHA-256 of the immutable columns of a row."""
    import hashlib  # loads OpenSSL, and reading needs no digest

    there = [column for column in IMMUTABLE[table] if column not in LATER or column in row]
    content = [table, [[column, row[column]] for column in there if row[column] is not None]]
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def is_sealed(table: str, row: Row) -> bool:
    """Whether a row still has its digest.

    A row that was removed under schema 0003 or an older one has the digest that it had in use.
    """
    given = str(row["row_digest"])
    if row_digest(table, row) == given:
        return True
    return row.get("state") == "removed" and row_digest(table, {**row, "removed_at": None}) == given


def sealed(table: str, row: Row) -> dict[str, Any]:
    """The row with its digest."""
    return {**row, "row_digest": row_digest(table, row)}


def base_model_row(record: BaseModelRecord) -> dict[str, Any]:
    """The one row of ``base_model``."""
    row = {column: getattr(record, column) for column in IMMUTABLE["base_model"] if column != "id"}
    return sealed("base_model", {"id": 1, **row})


def base_model_record(row: Row) -> BaseModelRecord:
    """The base model from its row."""
    return BaseModelRecord(**sound("base_model", row))


def blob_row(digest: str, size: int, created_at: str) -> dict[str, Any]:
    """A row of ``blobs``."""
    return sealed("blobs", {"digest": digest, "bytes": size, "created_at": created_at})


def task_row(record: TaskRecord) -> dict[str, Any]:
    """A row of ``tasks``; its adapter is found through ``adapters.id``, which is the task's position."""
    row = {
        "position": record.position,
        "name": record.name,
        "task_type": record.task_type,
        "labels": canonical(record.labels),
        "statistics": record.statistics,
        "prompt_template": record.prompt_template,
        "created_at": record.created_at,
        "note": record.note,
        "tags": joined(record.tags),
        "first_name": record.first_name,
        "replaces": record.replaces,
        "removed_at": None,
    }
    return {**sealed("tasks", row), "state": record.state}


def joined(tags: Sequence[str]) -> str | None:
    """Tags as a column holds them."""
    return ",".join(tags) or None


def split(tags: str | None) -> tuple[str, ...]:
    """Tags from their column."""
    return tuple(tags.split(",")) if tags else ()


def task_record(row: Row) -> TaskRecord:
    """A task from its row joined with the digest of its adapter (column ``adapter``)."""
    values = sound("tasks", row)
    return TaskRecord(**values | {"labels": tuple(values["labels"]), "tags": split(values["tags"])})


def dataset_row(record: DatasetRecord, identifier: int, position: int) -> dict[str, Any]:
    """A row of ``datasets`` for the task at ``position``."""
    row = {
        "id": identifier,
        "task": position,
        "split": record.split,
        "rows": int(record.rows),
        "columns": canonical(record.columns),
        "sha256": record.sha256,
        "source": record.source,
        "rows_dropped": int(record.rows_dropped),
        "rows_cut": int(record.rows_cut),
        "blob": record.blob,
        "row_digests": record.row_digests,
    }
    return sealed("datasets", row)


def dataset_record(row: Row) -> DatasetRecord:
    """A data set from its row joined with the name of its task (column ``task_name``)."""
    values = sound("datasets", row)
    return DatasetRecord(task=values.pop("task_name"), **values | {"columns": tuple(values["columns"])})


_ADAPTER_PLAIN = (
    "digest", "r", "lora_alpha", "strategy", "seed", "steps", "wall_seconds", "device", "bytes", "head_digest",
    "created_at",
)  # fmt: skip
_ADAPTER_JSON = ("penalties", "versions", "config", "metrics")


def adapter_row(record: AdapterRecord, position: int) -> dict[str, Any]:
    """A row of ``adapters``; files, context and objects have tables of their own."""
    row = {column: getattr(record, column) for column in _ADAPTER_PLAIN}
    row |= {column: canonical(getattr(record, column)) for column in (*_ADAPTER_JSON, "target_modules")}
    # SQLite gives REAL columns back as floats and booleans as integers: the digest must see the same.
    row |= {column: int(row[column]) for column in ("r", "seed", "steps", "bytes")}
    row |= {
        "id": position,
        "lora_alpha": finite(record.lora_alpha, "lora_alpha"),
        "wall_seconds": finite(record.wall_seconds, "wall_seconds"),
        "use_rslora": int(record.use_rslora),
    }
    return sealed("adapters", row)


def adapter_record(
    row: Row, files: Mapping[str, str], context: Sequence[str], objects: Mapping[str, str]
) -> AdapterRecord:
    """An adapter from its row joined with the name and type of its task (columns ``task_name``, ``task_type``)."""
    values = sound("adapters", row)
    if row["task_type"] != "SEQ_CLS":
        answers_in_text(values["task_name"], values["config"])
    return AdapterRecord(
        task=values.pop("task_name"),
        use_rslora=bool(values.pop("use_rslora")),
        target_modules=tuple(values.pop("target_modules")),
        context=tuple(context),
        files=dict(files),
        objects=dict(objects),
        **values,
    )


def composition_row(record: CompositionRecord, identifier: int) -> dict[str, Any]:
    """A row of ``compositions``; members and objects have tables of their own."""
    row = {
        "id": identifier,
        "name": record.name,
        "mode": record.mode,
        "parameters": canonical(record.parameters),
        "created_at": record.created_at,
        "note": record.note,
        "tags": joined(record.tags),
        "removed_at": None,
    }
    return {**sealed("compositions", row), "state": "ready"}


def composition_record(
    row: Row, members: Sequence[tuple[str, str]], objects: Mapping[str, str], names: Mapping[str, str]
) -> CompositionRecord:
    """A composition from its row.

    Args:
        row: Its row.
        members: Its members as (name of the task now, digest of the adapter).
        objects: Its blobs by role.
        names: What each member was called when the composition was made, and is called now: what a composition
            keeps of a member stands under the former.
    """
    values = sound("compositions", row)
    weights = values["parameters"].get("weights")
    if isinstance(weights, dict):
        values["parameters"]["weights"] = {names.get(task, task): weight for task, weight in weights.items()}
    return CompositionRecord(
        members=tuple(task for task, _ in members),
        adapters=tuple(digest for _, digest in members),
        objects={_renamed(role, names): blob for role, blob in objects.items()},
        **values | {"tags": split(values["tags"])},
    )


def _renamed(role: str, names: Mapping[str, str]) -> str:
    kind, colon, task = role.partition(":")
    return f"{kind}{colon}{names.get(task, task)}" if colon else role


def evaluation_row(record: EvaluationRecord) -> dict[str, Any]:
    """A row of ``evaluations``."""
    row = {column: getattr(record, column) for column in IMMUTABLE["evaluations"]}
    row |= {column: canonical(row[column]) for column in ("settings", "detail")}
    row |= {
        column: finite(row[column], f"evaluation of {record.task}: {column}") for column in ("value", "low", "high")
    }
    row |= {column: int(row[column]) for column in ("stage", "n")}
    return sealed("evaluations", row)


def evaluation_record(row: Row) -> EvaluationRecord:
    """An evaluation from its row."""
    return EvaluationRecord(**sound("evaluations", row))


def operation_row(record: OperationRecord, process_start: int) -> dict[str, Any]:
    """A row of ``operations``; the process columns change when a dead reservation is taken over."""
    columns = ("id", "kind", "name", "started_at")
    row = {column: getattr(record, column) for column in columns} | {"config": canonical(record.config)}
    process = {"pid": record.pid, "boot_id": record.boot_id, "host": record.host, "process_start": process_start}
    return {**sealed("operations", row), **process, "seen_at": record.seen_at}


def operation_record(row: Row, alive: bool) -> OperationRecord:
    """A reservation from its row; one of an older schema, or from before it, was seen when it was made."""
    values = sound("operations", row)
    del values["process_start"]
    seen_at = row["seen_at"] if "seen_at" in row.keys() else None  # noqa: SIM118
    return OperationRecord(**values | {"seen_at": values["started_at"] if seen_at is None else seen_at}, alive=alive)


def finite(value: Any, what: str) -> float:
    """A float that can be stored.

    Raises:
        DataError: It is NaN or infinite.
    """
    number = float(value)
    if not math.isfinite(number):
        raise DataError(f"{what} = {number} is not finite", unchanged="the bank was not changed")
    return number
