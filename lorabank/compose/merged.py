"""``merged``: the members made into one state that is the same for all texts.

A merger of the shelf `lorabank.core.shelves.MERGERS` says how: by a weight for each member (the delta weights are then
summed exactly), as one adapter, or as delta weights of full rank. The result goes into the working copy of the
weights, so that a forward pass costs what the base's costs. With ``max_rank`` it is cut to its best approximation of
that rank, row gains left out, and the relative error of every module is kept. What a merger finds with the model and
the rows that tasks kept is stored (`lorabank.compose.fitted_merges`); all others are made again from the adapters.

Every result is compared with the exact weighted sum of the members' delta weights (`lorabank.algebra.distance`), and
refused above ``tolerance``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lorabank.algebra.compress import cut_to_rank
from lorabank.algebra.distance import distance_from_sum
from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.compose.base import Fitted, Member, chosen_method, known, state_weights, stored_method
from lorabank.compose.fitted_merges import FittedMerges, fitting_of
from lorabank.compose.mergers.base import ByModule, Merge, Merger, Sources, Told
from lorabank.compose.vectors import are_sums, by_adapter, read_adapters, taken_over, vector_name, vector_stack
from lorabank.core.commands import Command
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import GateError, NotFoundError
from lorabank.core.observer import Observer
from lorabank.core.records import CompositionRecord
from lorabank.core.settings import setting_names
from lorabank.core.shelf import Shelf
from lorabank.core.shelves import MERGERS, STRATEGIES
from lorabank.models.finite import check_tensors, not_finite
from lorabank.models.mixing.resident_stack import ResidentStack
from lorabank.models.mixing.runtime import Plan, Runtime


class Merged:
    """One constant state.

    Args:
        name: The merger's name on the shelf.
        merger: It with its settings; the result is cut to its ``max_rank``.
        members: The tasks.
        runtime: Gives the adapters and the base's weights.
        fits: Of a merger that is fitted: what it found.
    """

    routed: ClassVar[bool] = False
    shelf: ClassVar[Shelf | None] = MERGERS

    def __init__(
        self,
        name: str,
        merger: Merger,
        members: Sequence[Member],
        runtime: Callable[[], Runtime],
        fits: FittedMerges | None = None,
    ) -> None:
        self.members = members
        self._name = name
        self._merger = merger
        self._runtime = runtime
        self._fits = fits
        self._planned: tuple[int, Plan] | None = None

    @classmethod
    def fit(
        cls, members: Sequence[Member], config: ComposeConfig, runtime: Callable[[], Runtime], observer: Observer
    ) -> Fitted:
        """Check the settings and the result: on a kept sample of each member, and against the exact weighted sum.

        Raises:
            DivergedError: The result, or what the model answers with it, is not finite.
            GateError: The result is farther from the sum than ``tolerance``.
            NotFoundError: A member did not record what the merger needs, or kept no rows that it is fitted on.
        """
        tasks = [member.task for member in members]
        merger = cls.checked(tasks, config)
        over = config.over or merger.over
        members = taken_over(members, over)
        _check_facts(config.merger, merger, members)
        objects: dict[str, bytes] = {}
        fits = FittedMerges(config.merger, merger, config, runtime, objects) if merger.fitted else None
        told = fits.fit(members, observer) if fits else None
        composed = cls(config.merger, replace(merger, max_rank=None), members, runtime, fits)
        if any(member.texts for member in members):
            _try_out(cls(config.merger, merger, members, runtime, fits), runtime())  # as it will answer: cut
        stack = read_adapters(members)

        def weight(module: str) -> Tensor:
            return composed._weight(module).cpu()  # where the stack is

        made, weights = composed._merged(members[-1].position, stack, weight, told and told.merge)
        parameters = {"merger": config.merger, **merger.parameters()}
        if are_sums(members) and {over, merger.over} != {"adapters"}:
            parameters["over"] = over
        if fits and told:
            parameters |= {**fits.parameters, **told.report}
        report: dict[str, Any] = {}
        if merger.max_rank is not None:
            cut = cut_to_rank(made, merger.max_rank)
            made, report["relative_error"] = cut.factors, dict(cut.relative_error)
        summed = by_adapter(members, weights)
        exact = torch.tensor([summed[name] for name in stack.names], dtype=torch.float64)
        report["distance"] = distance_from_sum(made, stack, exact, weight)
        _check_distance(report["distance"], merger, config.tolerance)
        parameters |= {name: dict(values) for name, values in report.items()}
        if config.tolerance is not None:
            parameters["tolerance"] = config.tolerance
        if over == "adapters" and (remark := _untrained(members, summed, merger, config)):
            report["untrained_state"] = remark
        return Fitted(parameters, objects, {**(told.report if told else {}), **report}, scored=config.scores)

    @classmethod
    def checked(cls, tasks: Sequence[str], config: ComposeConfig) -> Merger:
        """The chosen merger for some tasks.

        Raises:
            ConfigError: Its settings do not fit these tasks: for example its weights name another one.
        """
        chosen: Merger = chosen_method(MERGERS, config)
        merger = chosen.prepared(tasks)
        merger.check(tasks)
        return merger

    @classmethod
    def load(
        cls,
        record: CompositionRecord,
        objects: MutableMapping[str, bytes],
        members: Sequence[Member],
        runtime: Callable[[], Runtime],
    ) -> Merged:
        """The stored settings; a record that names no merger is of a weighted sum, the first there was."""
        name = str(record.parameters.get("merger", ComposeConfig.merger))
        merger: Merger = stored_method(MERGERS, name, record).prepared([member.task for member in members])
        members = taken_over(members, "states" if record.parameters.get("over") == "states" else "adapters")
        if not merger.fitted:
            return cls(name, merger, members, runtime)
        fits = FittedMerges(name, merger, fitting_of(record.parameters), runtime, objects)
        return cls(name, merger, members, runtime, fits)

    def plan(self, stage: int, texts: Sequence[str]) -> Plan:
        """One constant state for all texts."""
        if self._planned is None or self._planned[0] != stage:
            self._planned = stage, self._plan(stage)
        return self._planned[1]

    def _plan(self, stage: int) -> Plan:
        weights = None if self._merger.max_rank is not None else self._weights(stage)
        stack = self._runtime().stack
        if weights is not None:
            return Plan(weights=state_weights(stack.names, weights))
        made, _ = self._merged(stage, stack, self._weight)
        if self._merger.max_rank is not None:
            return Plan(factors=cut_to_rank(made, self._merger.max_rank).factors)
        return Plan(dense=made) if isinstance(made, DenseDelta) else Plan(factors=made)

    def identity(self, stage: int) -> Any:
        """Weights by adapter and the rank they are cut to, or the merger, its settings and the adapters."""
        weights = self._weights(stage)
        if weights is not None:
            return ["sum", self._merger.max_rank, sorted(weights.items())]
        members = known(self.members, stage)
        adapters = [vector_name(member) for member in members]
        facts = {role: [member.facts.get(role) for member in members] for role in self._merger.needs}
        merger = self._merger.prepared([member.task for member in members])
        parameters = {
            name: _by_vector(members, value) if isinstance(value, Mapping) else value
            for name, value in merger.parameters().items()
        }
        fitted = [self._fits.identity(members)] if self._fits else []
        return ["merged", self._name, parameters, adapters, *([facts] if facts else []), *fitted]

    def as_adapter(self, stage: int, stack: AdapterStack, weight: Callable[[str], Tensor]) -> LoraFactors | None:
        """The state as one exact adapter; None where its delta weights have full rank."""
        made, _ = self._merged(stage, stack, weight)
        if self._merger.max_rank is not None:
            return cut_to_rank(made, self._merger.max_rank).factors
        return None if isinstance(made, DenseDelta) else made

    def _weight(self, module: str) -> Tensor:
        return self._runtime().mixture.base_weight(module)

    def _weights(self, stage: int) -> dict[str, float] | None:
        """Weight by adapter; None where the merger gives something else, or has to read adapters for them."""
        members = known(self.members, stage)
        weights = self._merger.sum_of([member.task for member in members])
        return None if weights is None else by_adapter(members, weights)

    def _merged(
        self,
        stage: int,
        stack: AdapterStack | ResidentStack,
        weight: Callable[[str], Tensor],
        found: Merge | Told | None = None,
    ) -> tuple[LoraFactors | DenseDelta, Mapping[str, float]]:
        """What the merger makes of the members that a stage knows, and the weights of the sum that it is near.

        ``found`` is what it has just found, uncut.

        Raises:
            DivergedError: It is not finite.
        """
        members = known(self.members, stage)
        tasks = [member.task for member in members]

        def facts(role: str) -> Iterator[bytes]:
            return (member.read_fact(member.facts[role]) for member in members)

        names = [vector_name(member) for member in members]
        sources = Sources(tasks, names, partial(vector_stack, members, stack), weight, facts)
        if found is None:
            found = self._fits.at(members) if self._fits else self._merger.merge(sources)
        made = found.merge if isinstance(found, Told) else found
        weights = made if isinstance(made, Mapping) else self._merger.near(tasks)
        if isinstance(made, ByModule):
            weights = made.mean(tasks)
            by_module = {
                module: sources.over(dict(zip(tasks, own.tolist(), strict=True))).float()
                for module, own in made.weights.items()
            }
            made = sources.stack.combine_by_module(by_module)
        elif isinstance(made, Mapping):
            made = stack.combine(torch.from_numpy(state_weights(stack.names, by_adapter(members, made))))
        made = made.single()
        if isinstance(made, DenseDelta):
            check_tensors(made.delta, "the merged delta weights of")
        else:
            check_tensors(made.B, "the weighted sums on")
            check_tensors(made.gain, "the row gains of")
        return made, weights


def _by_vector(members: Sequence[Member], weights: Mapping[str, float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for member in members:
        name = vector_name(member)
        total[name] = total.get(name, 0.0) + weights[member.task]
    return total


def _untrained(
    members: Sequence[Member], weights: Mapping[str, float], merger: Merger, config: ComposeConfig
) -> dict[str, str | Command] | None:
    """That weights by adapter are no state that was trained, and what to type; None where they are, or may be any.

    The command weighs states as the adapters were weighed, or equally where no weights were given: states share
    adapters, so that the weight 1 for each would count an adapter several times.
    """
    used = {digest: weight for digest, weight in weights.items() if weight}
    if not are_sums(members) or any(used == dict.fromkeys(member.state, 1.0) for member in members):
        return None
    shares = config.weights
    if shares is None and "weights" in setting_names(merger) and not any(s.startswith("weights=") for s in config.set):
        shares = ",".join(f"{member.task}={1 / len(members):.3g}" for member in members)
    named = [("--name", config.name), ("--tasks", config.tasks), ("--merger", config.merger), ("--weights", shares)]
    named += [("--set", one) for one in config.set]
    given = [word for option, value in named if value for word in (option, value)]
    again = Command("compose", "--mode", config.mode, *given, "--over", "states", "--replace")
    return {"message": "these weights of adapters make a state that no task was trained in", "command": again}


def _check_facts(name: str, merger: Merger, members: Sequence[Member]) -> None:
    """Refuse a member that did not record what the merger needs."""
    for role in merger.needs:
        missing = [member.task for member in members if role not in member.facts]
        if missing:
            recorded_by = [known for known, strategy in STRATEGIES.items() if role in strategy.needs]
            raise NotFoundError(
                f"task {missing[0]!r} recorded no {role!r}, which the merger {name} needs of every member",
                hint=f"leave it out; --strategy {' or '.join(recorded_by)} records it"
                if recorded_by
                else "leave it out",
                unchanged="nothing was changed",
            )


def _check_distance(distance: Mapping[str, float], merger: Merger, tolerance: float | None) -> None:
    """Refuse a result that is too far from the weighted sum."""
    module = max(distance, key=lambda name: distance[name], default=None)
    if module is None or tolerance is None or distance[module] <= tolerance:
        return
    raise GateError(
        f"the merge is {distance[module]:.4g} of the weighted sum's norm away from it on {module}, above --tolerance "
        f"{tolerance:g}",
        hint="use a larger --tolerance"
        if merger.max_rank is None
        else "use a larger max_rank or a larger --tolerance",
        unchanged="the composition was not added to the bank",
    )


@torch.inference_mode()
def _try_out(composed: Merged, runtime: Runtime) -> None:
    """Answer one kept sample of each member: weights that are too large show there, not in the factors."""
    members = composed.members
    runtime.enter(composed.plan(members[-1].position, ()))
    for member in members:
        if member.texts and not bool(runtime.loss(member.texts[:1], member.targets[:1], member.head).isfinite()):
            raise not_finite(f"the answers to a sample of {member.task!r}")
