"""What mergers that need plain factors of one shape refuse, in one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from lorabank.algebra.factors import LoraFactors
from lorabank.core.commands import Command
from lorabank.core.errors import IncompatibleError
from lorabank.core.shelves import SUMMING


def unfit(message: str) -> IncompatibleError:
    """The error for members that a merger cannot take; it proposes the sum, which takes all."""
    return IncompatibleError(
        message,
        hint="leave a member out, or sum the delta weights, which any adapters can be",
        commands=[Command("compose", "--mode", SUMMING)],
        unchanged="nothing was changed",
    )


def check_plain(tasks: Sequence[str], adapters: Sequence[LoraFactors], why: str) -> None:
    """Refuse row gains (DoRA); ``why`` says what a merger reads, as "knots decomposes low ranks".

    Raises:
        IncompatibleError: An adapter has one.
    """
    for task, factors in zip(tasks, adapters, strict=True):
        if factors.gain:
            raise unfit(f"{why} only, and the adapter of task {task!r} has a row gain (DoRA)")


def check_ranks(tasks: Sequence[str], adapters: Sequence[LoraFactors], why: str) -> None:
    """Refuse different ranks on one module.

    Raises:
        IncompatibleError: Two adapters have them.
    """
    first: dict[str, tuple[str, int]] = {}
    for task, factors in zip(tasks, adapters, strict=True):
        for module, a in factors.A.items():
            other, rank = first.setdefault(module, (task, len(a)))
            if rank != len(a):
                raise unfit(f"{why}, and tasks {other!r} and {task!r} have ranks {rank} and {len(a)} on {module}")
