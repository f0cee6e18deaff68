"""``manual``: fixed weights, the delta weights summed exactly (task arithmetic, arXiv 2212.04089).

    delta W = sum_k w_k s_k B_k A_k

Exact for mixed ranks, scalings and signs, because the factors are concatenated and not averaged. With ``max_rank`` the
sum is cut to its best approximation of that rank, and the relative error of every module is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from lorabank.algebra.compress import compress
from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.compose.base import Fitted, Member, known, made_again, state_weights
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import ConfigError, DamagedError
from lorabank.core.observer import Observer
from lorabank.core.records import CompositionRecord
from lorabank.core.settings import nearest
from lorabank.models.bases.finite import check_tensors, not_finite
from lorabank.models.mixing.resident_stack import ResidentStack
from lorabank.models.mixing.runtime import Plan, Runtime


class Weighted:
    """A weighted sum of adapters."""

    mode: ClassVar[str] = "manual"
    routed: ClassVar[bool] = False

    def __init__(
        self,
        weights: Mapping[str, float],
        max_rank: int | None,
        members: Sequence[Member],
        stack: Callable[[], AdapterStack | ResidentStack],
    ) -> None:
        self._weights = dict(weights)
        self._max_rank = max_rank
        self.members = members
        self._stack = stack

    @classmethod
    def fit(
        cls, members: Sequence[Member], config: ComposeConfig, runtime: Callable[[], Runtime], observer: Observer
    ) -> Fitted:
        """Check the weights, on a kept sample of each member too; with ``max_rank`` measure what compression costs.

        Raises:
            DivergedError: The sum, or what the model answers with it, is not finite.
        """
        weights = parse_weights(config.weights, [member.task for member in members])
        parameters: dict[str, Any] = {"weights": weights, "max_rank": config.max_rank}
        composed = cls(weights, None, members, lambda: runtime().stack)
        if any(member.texts for member in members):
            _try_out(composed, runtime())
        if config.max_rank is None:
            return Fitted(parameters)
        compressed = compress(composed.adapter(members[-1].position), config.max_rank)
        parameters["relative_error"] = dict(compressed.relative_error)
        return Fitted(parameters, report={"relative_error": dict(compressed.relative_error)})

    @classmethod
    def load(
        cls,
        record: CompositionRecord,
        objects: Mapping[str, bytes],
        members: Sequence[Member],
        runtime: Callable[[], Runtime],
    ) -> Weighted:
        """The stored weights."""
        return cls(*stored_weights(record, members), members, lambda: runtime().stack)

    def plan(self, stage: int, texts: Sequence[str]) -> Plan:
        """One constant state for all texts."""
        if self._max_rank is not None:
            return Plan(factors=compress(self.adapter(stage), self._max_rank).factors)
        return Plan(weights=state_weights(self._stack().names, self._state(stage)))

    def identity(self, stage: int) -> Any:
        """Weights by adapter, and the rank they are cut to."""
        return ["sum", self._max_rank, sorted(self._state(stage).items())]

    def adapter(self, stage: int) -> LoraFactors:
        """The sum as one exact adapter.

        Raises:
            DivergedError: A weight is so large that its factors are not finite.
        """
        stack = self._stack()
        factors = stack.combine(torch.from_numpy(state_weights(stack.names, self._state(stage))))
        check_tensors(factors.B, "the weighted sums on")
        return factors

    def _state(self, stage: int) -> dict[str, float]:
        state: dict[str, float] = {}
        for member in known(self.members, stage):
            state[member.adapter] = state.get(member.adapter, 0.0) + self._weights[member.task]
        return state


def stored_weights(record: CompositionRecord, members: Sequence[Member]) -> tuple[dict[str, float], int | None]:
    """The weight of each member, and the rank that the sum is cut to.

    Raises:
        DamagedError: The record does not say them.
    """
    try:
        weights = {member.task: float(record.parameters["weights"][member.task]) for member in members}
        max_rank = record.parameters["max_rank"]
        if not all(map(math.isfinite, weights.values())) or not (max_rank is None or 0 < int(max_rank) == max_rank):
            raise ValueError(f"weights {weights}, max_rank {max_rank}")
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise DamagedError(
            f"composition {record.name[:80]!r} does not say the weights of its members ({error!r})"[:500],
            commands=[made_again(record, "--weights", ",".join(f"{task}=WEIGHT" for task in record.members))],
        ) from error
    return weights, max_rank


@torch.inference_mode()
def _try_out(composed: Weighted, runtime: Runtime) -> None:
    """Answer one kept sample of each member: weights that are too large show there, not in the factors."""
    members = composed.members
    runtime.enter(composed.plan(members[-1].position, ()))
    for member in members:
        if member.texts and not bool(runtime.loss(member.texts[:1], member.targets[:1], member.head).isfinite()):
            raise not_finite(f"the answers to a sample of {member.task!r}")


def parse_weights(text: str | None, tasks: Sequence[str]) -> dict[str, float]:
    """``"sentiment=0.7,spam=-0.3"`` as a mapping; None gives every task the weight 1.

    Raises:
        ConfigError: For an unknown, missing or repeated task, or a weight that is no finite number.
    """
    if text is None:
        return dict.fromkeys(tasks, 1.0)
    weights: dict[str, float] = {}
    for part in text.split(","):
        task, _, number = (piece.strip() for piece in part.partition("="))
        if task not in tasks:
            raise ConfigError(
                f"--weights names {task!r}, which is not a member.{nearest(task, list(tasks))}",
                hint=f"members: {', '.join(tasks)}",
                unchanged="nothing was changed",
            )
        if task in weights:
            raise ConfigError(f"--weights names {task!r} twice", unchanged="nothing was changed")
        try:
            weights[task] = float(number)
        except ValueError:
            weights[task] = float("nan")
        if not abs(weights[task]) < float("inf"):
            raise ConfigError(
                f"--weights: {part.strip()!r} is not TASK=NUMBER",
                hint=f"for example --weights {','.join(f'{name}=1' for name in tasks)}",
                unchanged="nothing was changed",
            )
    return {task: weights.get(task, 0.0) for task in tasks}
