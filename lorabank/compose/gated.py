"""``gated``: the members' states under a gate, for every module and each token or text.

The gate, of the shelf `lorabank.core.shelves.GATES`, is fitted after the tasks were learnt, on the calibration samples
that the bank keeps (`gate_fitting`). A member is the state in which its task was learnt: its adapter and those that
were active with it. One gate per stage, over the states of that stage, so that a matrix shows what was possible then;
a stage that was left out is fitted when it is asked for, and kept. With a single state there is nothing to weigh and
it answers alone. Records of older versions weigh adapters, each by itself, and answer as they did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.compose.base import (
    OVER,
    Fitted,
    Member,
    chosen_method,
    known,
    parameters_of,
    state_weights,
    stored_method,
)
from lorabank.compose.gate_facts import facts_of, states_of
from lorabank.compose.gate_fitting import check_samples, fit_gate, sparsity
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import ConfigError
from lorabank.core.methods import values_of
from lorabank.core.observer import Observer, SilentObserver
from lorabank.core.records import DERIVED, CompositionRecord
from lorabank.core.settings import validate
from lorabank.core.shelf import Shelf
from lorabank.core.shelves import FIRST_GATE, GATES
from lorabank.models.gates.base import Gate, GateMethod, TokenGate
from lorabank.models.gates.texts import TextGate, TextWeights
from lorabank.models.mixing.runtime import Plan, Runtime

_AT_ONCE = 256
"""Texts whose inputs of all modules are in memory at a time."""

_FITTING = ("batch_size", "seed")
"""The settings of the fit, whatever the gate."""


class Gated:
    """States under a gate.

    Args:
        name: The gate's name on the shelf.
        method: It with its settings.
        fitting: How it is fitted.
        tensors: What was fitted, by stage.
        members: The tasks.
        runtime: Gives the adapters, and fits a stage that is missing.
        objects: Where such a stage is kept, for runtimes of the dtype and kind of device that it was fitted on.
    """

    routed: ClassVar[bool] = False
    shelf: ClassVar[Shelf | None] = GATES
    unused: ClassVar[tuple[str, ...]] = ("weights", "tolerance")

    def __init__(
        self,
        name: str,
        method: GateMethod,
        fitting: ComposeConfig,
        tensors: Mapping[int, Mapping[str, Tensor]],
        members: Sequence[Member],
        runtime: Callable[[], Runtime],
        objects: MutableMapping[str, bytes] | None = None,
    ) -> None:
        self._name = name
        self._method = method
        self._fitting = fitting
        self._stored = frozenset(tensors)
        self._tensors = dict(tensors)
        self._members = members
        self._runtime = runtime
        self._objects: MutableMapping[str, bytes] = {} if objects is None else objects

    @classmethod
    def fit(
        cls, members: Sequence[Member], config: ComposeConfig, runtime: Callable[[], Runtime], observer: Observer
    ) -> Fitted:
        """Fit a gate for every stage of two or more adapters (or for the last one only)."""
        method: GateMethod = chosen_method(GATES, config)
        over = config.over or "states"
        members = _over(members, over)
        if method.trained:
            check_samples(members)
        stages = [member.position for member in members if len(states_of(known(members, member.position))) > 1]
        if config.stages == "last":
            stages = stages[-1:]
        stored: dict[str, Tensor] = {}
        report: dict[str, Any] = {}
        for stage in stages:
            gate, learnt = fit_gate(known(members, stage), method, config, runtime(), observer)
            stored |= {f"{stage}|{name}": tensor for name, tensor in gate.tensors().items()}
            if stage == stages[-1] and all(member.texts for member in members):
                report = sparsity(gate, known(members, stage), runtime()) | learnt
        parameters = {
            "gate": config.gate,
            OVER: over,
            **values_of(method),
            **{name: getattr(config, name) for name in _FITTING},
            "stages": stages,
            "sparsity": report,
        }
        objects = {"selectors": save_tensors(stored)} if stored else {}
        return Fitted(parameters, objects, report)

    @classmethod
    def load(
        cls,
        record: CompositionRecord,
        objects: MutableMapping[str, bytes],
        members: Sequence[Member],
        runtime: Callable[[], Runtime],
    ) -> Gated:
        """The stored gates."""
        by_stage: dict[int, dict[str, Tensor]] = {}
        for key, tensor in (load_tensors(objects["selectors"]) if "selectors" in objects else {}).items():
            stage, _, name = key.partition("|")
            by_stage.setdefault(int(stage), {})[name] = tensor
        gate = str(parameters_of(record)["gate"])
        members = _over(members, record.parameters.get(OVER, "adapters"))
        try:
            stored = {name: record.parameters[name] for name in _FITTING if name in record.parameters}
            fitting = validate(ComposeConfig, stored)
        except ConfigError as error:
            raise ValueError(error.message) from error
        return cls(gate, stored_method(GATES, gate, record), fitting, by_stage, members, runtime, objects)

    def plan(self, stage: int, texts: Sequence[str]) -> Plan:
        """The stage's gate over the states it knows.

        Raises:
            NotFoundError: The stage was not fitted, and a member keeps no samples to fit it on.
        """
        members, runtime = known(self._members, stage), self._runtime()
        states, last = states_of(members), members[-1].position
        if self._alone(members):
            return Plan(weights=state_weights(runtime.stack.names, dict.fromkeys(states[0], 1.0)))
        gate = self._method.build(runtime.states(states))
        if last not in self._tensors:
            self._tensors[last] = self._late(members, gate)
        gate.load_tensors(self._tensors[last]).requires_grad_(False)
        if isinstance(gate, TextGate):
            return Plan(texts=_weighed(gate, members, runtime, texts), states=states)
        assert isinstance(gate, TokenGate)
        return Plan(gate=gate, states=states)

    def _alone(self, members: Sequence[Member]) -> bool:
        """Whether there is a single state, which nothing was fitted for."""
        return len(states_of(members)) == 1 and members[-1].position not in self._stored

    def _late(self, members: Sequence[Member], like: Gate) -> dict[str, Tensor]:
        """The tensors of a stage that was left out: as kept, if they fit the gate, or fitted now and kept."""
        model = self._runtime().base.model
        role = f"{DERIVED}{members[-1].position}, {model.dtype} on {model.device.type}"
        if role in self._objects:
            with suppress(SafetensorError, LookupError, RuntimeError):  # it can be fitted again
                return like.load_tensors(load_tensors(self._objects[role])).tensors()
        if self._method.trained:
            members = [member.with_samples() for member in members]
            check_samples(members)
        with torch.inference_mode(False), torch.enable_grad():
            gate, _ = fit_gate(members, self._method, self._fitting, self._runtime(), SilentObserver())
        self._objects[role] = save_tensors(gate.tensors())
        return gate.tensors()

    def identity(self, stage: int) -> Any:
        """Which states compete, and the gate with its tensors, or with what they will be fitted from."""
        members = known(self._members, stage)
        last = members[-1].position
        competing = [state[0] if len(state) == 1 else list(state) for state in states_of(members)]
        if self._alone(members):
            return ["attention", competing, None]
        routed = [[member.lasting, dict(member.facts)] for member in members] if self._method.routed else []
        if last in self._stored:
            digest = hashlib.sha256(save_tensors(dict(self._tensors[last]))).hexdigest()
            # The first gate's tensors say all of it; scores of it are kept since there was no other one.
            how = [] if self._name == FIRST_GATE[1] else [self._name, asdict(self._method), *routed]
            return ["attention", competing, digest, *how]
        settings = [getattr(self._fitting, name) for name in _FITTING]
        fitted_from = [self._name, asdict(self._method), settings, [member.lasting for member in members], *routed]
        return ["attention", competing, fitted_from]

    def as_adapter(self, stage: int, stack: AdapterStack, weight: Callable[[str], Tensor]) -> LoraFactors | None:
        """The adapter of a stage that knows one alone; the weights over several depend on the text."""
        members = known(self._members, stage)
        if not self._alone(members):
            return None
        (state,) = states_of(members)
        return stack.combine(torch.from_numpy(state_weights(stack.names, dict.fromkeys(state, 1.0))))


def _over(members: Sequence[Member], over: str) -> Sequence[Member]:
    """The members with the states that compete: their own, or their adapters, each by itself."""
    return members if over == "states" else [replace(member, state=(member.adapter,)) for member in members]


@torch.no_grad()
def _weighed(
    gate: TextGate, members: Sequence[Member], runtime: Runtime, texts: Sequence[str]
) -> dict[str, TextWeights]:
    """By module, the weights that a gate gives texts."""
    stack = runtime.states(states_of(members))
    parts = [
        gate.mix(stack, facts_of(gate, members, runtime, texts[start : start + _AT_ONCE]))
        for start in range(0, max(1, len(texts)), _AT_ONCE)
    ]
    return {
        module: TextWeights(
            torch.cat([part[module].rows for part in parts]), torch.cat([part[module].adapters for part in parts])
        )
        for module in parts[0]
    }
