"""``merged``: the members made into one state that is the same for all texts.

A merger of the shelf `lorabank.core.shelves.MERGERS` says how: by a weight for each member (the delta weights are then
summed exactly), as one adapter, or as delta weights of full rank. The result goes into the working copy of the
weights, so that a forward pass costs what the base's costs. With ``max_rank`` it is cut to its best approximation of
that rank, row gains left out, and the relative error of every module is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lorabank.algebra.compress import Compressed, compress, compress_dense
from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.compose.base import Fitted, Member, chosen_method, known, state_weights, stored_method
from lorabank.compose.mergers.base import Merge, Merger, Sources
from lorabank.core.config import ComposeConfig
from lorabank.core.observer import Observer
from lorabank.core.records import CompositionRecord
from lorabank.core.shelves import MERGERS
from lorabank.models.finite import check_tensors, not_finite
from lorabank.models.mixing.resident_stack import ResidentStack
from lorabank.models.mixing.runtime import Plan, Runtime


class Merged:
    """One constant state.

    Args:
        name: The merger's name on the shelf.
        merger: It with its settings.
        max_rank: The rank that the result is cut to, or None.
        members: The tasks.
        runtime: Gives the adapters and the base's weights.
    """

    routed: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        merger: Merger,
        max_rank: int | None,
        members: Sequence[Member],
        runtime: Callable[[], Runtime],
    ) -> None:
        self.members = members
        self._name = name
        self._merger = merger
        self._max_rank = max_rank
        self._runtime = runtime
        self._planned: tuple[int, Plan] | None = None

    @classmethod
    def fit(
        cls, members: Sequence[Member], config: ComposeConfig, runtime: Callable[[], Runtime], observer: Observer
    ) -> Fitted:
        """Check the settings, and the result on a kept sample of each member; with ``max_rank`` measure its error.

        Raises:
            DivergedError: The result, or what the model answers with it, is not finite.
        """
        chosen: Merger = chosen_method(MERGERS, config.merger, config)
        merger = chosen.prepared([member.task for member in members])
        parameters = {"merger": config.merger, **merger.parameters(), "max_rank": config.max_rank}
        composed = cls(config.merger, merger, None, members, runtime)
        if any(member.texts for member in members):
            _try_out(composed, runtime())
        if config.max_rank is None:
            return Fitted(parameters)
        last = members[-1].position
        cut = _cut(composed._merged(last, runtime().stack, composed._weight), config.max_rank)
        parameters["relative_error"] = dict(cut.relative_error)
        return Fitted(parameters, report={"relative_error": dict(cut.relative_error)})

    @classmethod
    def load(
        cls,
        record: CompositionRecord,
        objects: Mapping[str, bytes],
        members: Sequence[Member],
        runtime: Callable[[], Runtime],
    ) -> Merged:
        """The stored settings; a record that names no merger is of a weighted sum, the first there was."""
        name = str(record.parameters.get("merger", ComposeConfig.merger))
        max_rank = record.parameters["max_rank"]
        if not (max_rank is None or 0 < int(max_rank) == max_rank):
            raise ValueError(f"max_rank {max_rank}")
        merger: Merger = stored_method(MERGERS, name, record).prepared([member.task for member in members])
        return cls(name, merger, max_rank, members, runtime)

    def plan(self, stage: int, texts: Sequence[str]) -> Plan:
        """One constant state for all texts."""
        if self._planned is None or self._planned[0] != stage:
            self._planned = stage, self._plan(stage)
        return self._planned[1]

    def _plan(self, stage: int) -> Plan:
        weights = None if self._max_rank is not None else self._weights(stage)
        stack = self._runtime().stack
        if weights is not None:
            return Plan(weights=state_weights(stack.names, weights))
        made = self._merged(stage, stack, self._weight)
        if self._max_rank is not None:
            return Plan(factors=_cut(made, self._max_rank).factors)
        return Plan(dense=made) if isinstance(made, DenseDelta) else Plan(factors=made)

    def identity(self, stage: int) -> Any:
        """Weights by adapter and the rank they are cut to, or the merger, its settings and the adapters."""
        weights = self._weights(stage)
        if weights is not None:
            return ["sum", self._max_rank, sorted(weights.items())]
        adapters = [member.adapter for member in known(self.members, stage)]
        return ["merged", self._name, self._merger.parameters(), self._max_rank, adapters]

    def as_adapter(self, stage: int, stack: AdapterStack, weight: Callable[[str], Tensor]) -> LoraFactors | None:
        """The state as one exact adapter; None where its delta weights have full rank."""
        made = self._merged(stage, stack, weight)
        if self._max_rank is not None:
            return _cut(made, self._max_rank).factors
        return None if isinstance(made, DenseDelta) else made

    def _weight(self, module: str) -> Tensor:
        return self._runtime().mixture.base_weight(module)

    def _weights(self, stage: int) -> dict[str, float] | None:
        """Weight by adapter; None where the merger gives something else, or has to read adapters for them."""
        members = known(self.members, stage)
        weights = self._merger.sum_of([member.task for member in members])
        return None if weights is None else _by_adapter(members, weights)

    def _merged(
        self, stage: int, stack: AdapterStack | ResidentStack, weight: Callable[[str], Tensor]
    ) -> LoraFactors | DenseDelta:
        """What the merger makes of the members that a stage knows.

        Raises:
            DivergedError: It is not finite.
        """
        members = known(self.members, stage)
        digests = list(dict.fromkeys(member.adapter for member in members))
        sources = Sources([member.task for member in members], lambda: stack.select(digests), weight)
        made: Merge = self._merger.merge(sources)
        if isinstance(made, Mapping):
            made = stack.combine(torch.from_numpy(state_weights(stack.names, _by_adapter(members, made))))
        if isinstance(made, DenseDelta):
            check_tensors(made.delta, "the merged delta weights of")
        else:
            check_tensors(made.B, "the weighted sums on")
            check_tensors(made.gain, "the row gains of")
        return made


def _by_adapter(members: Sequence[Member], weights: Mapping[str, float]) -> dict[str, float]:
    state: dict[str, float] = {}
    for member in members:
        state[member.adapter] = state.get(member.adapter, 0.0) + weights[member.task]
    return state


def _cut(made: LoraFactors | DenseDelta, max_rank: int) -> Compressed:
    return compress_dense(made, max_rank) if isinstance(made, DenseDelta) else compress(made, max_rank)


@torch.inference_mode()
def _try_out(composed: Merged, runtime: Runtime) -> None:
    """Answer one kept sample of each member: weights that are too large show there, not in the factors."""
    members = composed.members
    runtime.enter(composed.plan(members[-1].position, ()))
    for member in members:
        if member.texts and not bool(runtime.loss(member.texts[:1], member.targets[:1], member.head).isfinite()):
            raise not_finite(f"the answers to a sample of {member.task!r}")
