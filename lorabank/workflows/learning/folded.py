"""What a fold gives, and what one would give: frozen, plain values that turn into JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lorabank.core.commands import Command
from lorabank.core.records import CompositionRecord, TaskRecord


@dataclass(frozen=True)
class FoldResult:
    """Tasks that are answered by one folded adapter now.

    Attributes:
        composition: The folded adapter by itself.
        tasks: The tasks' new versions; the first one's adapter holds the folded factors.
        rank: Maximum rank of the folded adapter on a module.
        report: ``relative_error`` of the truncation and ``distance`` from the weighted sum, by module.
        scores: For each task ``task``, ``metric``, ``before``, ``after`` and ``rows``.
        bytes_before: Bytes of the tasks' old adapters.
        bytes_after: Bytes of their new ones.
        kept: Old task whose adapter stays in the bank, to the tasks that were trained on top of it.
        superseded: Compositions that held an old version: name to the command that makes each again.
    """

    composition: CompositionRecord
    tasks: tuple[TaskRecord, ...]
    rank: int
    report: dict[str, Any]
    scores: list[dict[str, Any]]
    bytes_before: int
    bytes_after: int
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)
    superseded: dict[str, Command] = field(default_factory=dict)


@dataclass(frozen=True)
class FoldPlan:
    """What a fold would do, and what it would cost each task.

    Attributes:
        tasks: The tasks.
        into: Name of the composition to be.
        rank: Maximum rank of the folded adapter on a module.
        report: As of `FoldResult`.
        scores: As of `FoldResult`.
        refused: Why it would be refused; None where it would not.
        bytes_before: Bytes of the tasks' adapters.
        kept: As of `FoldResult`.
        superseded: Names of the compositions that would go with the old versions.
    """

    tasks: tuple[str, ...]
    into: str
    rank: int
    report: dict[str, Any]
    scores: list[dict[str, Any]]
    refused: str | None
    bytes_before: int
    kept: dict[str, tuple[str, ...]]
    superseded: tuple[str, ...]
