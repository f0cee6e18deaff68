"""``gated``: the adapters under a learned gate, for every module and token.

The gate, of the shelf `lorabank.core.shelves.GATES`, is fitted after the tasks were learnt, on the calibration samples
that the bank keeps: adapters and heads stay frozen, each row is judged by its own task's head, and the loss is the
cross entropy and the gate's own regulariser. One gate per stage, over the adapters of that stage, so that a matrix
shows what was possible then; a stage that was left out is fitted when it is asked for, and kept. With a single adapter
there is nothing to weigh and that adapter answers alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.compose.base import Fitted, Member, chosen_method, known, state_weights, stored_method
from lorabank.core.commands import Command
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import ConfigError, DivergedError, NotFoundError
from lorabank.core.machine.seeding import seed_everything
from lorabank.core.observer import Observer, SilentObserver
from lorabank.core.records import DERIVED, CompositionRecord
from lorabank.core.settings import validate
from lorabank.core.shelves import GATES, ROUTING, Shelf
from lorabank.models.finite import check_tensors
from lorabank.models.gates.base import Gate, GateMethod
from lorabank.models.mixing.runtime import Plan, Runtime

_NEAR_ZERO = 1e-3
_LOOKED_AT = 64
_FITTING = ("batch_size", "seed")
"""The settings of the fit, whatever the gate."""


class Gated:
    """Adapters under a gate.

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
    unused: ClassVar[tuple[str, ...]] = ("tolerance",)

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
        _check_samples(members)
        stages = [member.position for member in members[1:]]
        if config.stages == "last":
            stages = stages[-1:]
        stored: dict[str, Tensor] = {}
        report: dict[str, Any] = {}
        for stage in stages:
            gate = fit_gate(known(members, stage), method, config, runtime(), observer)
            stored |= {f"{stage}|{name}": tensor for name, tensor in gate.tensors().items()}
            if stage == stages[-1]:
                report = sparsity(gate, known(members, stage), runtime())
        parameters = {
            "gate": config.gate,
            **asdict(method),
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
        """The stored gates; a record that names none is of the attention, the first there was."""
        by_stage: dict[int, dict[str, Tensor]] = {}
        for key, tensor in (load_tensors(objects["selectors"]) if "selectors" in objects else {}).items():
            stage, _, name = key.partition("|")
            by_stage.setdefault(int(stage), {})[name] = tensor
        gate = str(record.parameters.get("gate", ComposeConfig.gate))
        try:
            stored = {name: record.parameters[name] for name in _FITTING if name in record.parameters}
            fitting = validate(ComposeConfig, stored)
        except ConfigError as error:
            raise ValueError(error.message) from error
        return cls(gate, stored_method(GATES, gate, record), fitting, by_stage, members, runtime, objects)

    def plan(self, stage: int, texts: Sequence[str]) -> Plan:
        """The stage's gate over the adapters it knows.

        Raises:
            NotFoundError: The stage was not fitted, and a member keeps no samples to fit it on.
        """
        members = known(self._members, stage)
        if len(members) == 1:
            return Plan(weights=state_weights(self._runtime().stack.names, {members[0].adapter: 1.0}))
        last = members[-1].position
        gate = self._method.build(self._runtime().stack.select(_digests(members)))
        if last not in self._tensors:
            self._tensors[last] = self._late(members, gate)
        return Plan(gate=gate.load_tensors(self._tensors[last]).requires_grad_(False), members=_digests(members))

    def _late(self, members: Sequence[Member], like: Gate) -> dict[str, Tensor]:
        """The tensors of a stage that was left out: as kept, if they fit the gate, or fitted now and kept."""
        model = self._runtime().base.model
        role = f"{DERIVED}{members[-1].position}, {model.dtype} on {model.device.type}"
        if role in self._objects:
            with suppress(SafetensorError, LookupError, RuntimeError):  # it can be fitted again
                return like.load_tensors(load_tensors(self._objects[role])).tensors()
        sampled = [_with_samples(member) for member in members]
        _check_samples(sampled)
        with torch.inference_mode(False), torch.enable_grad():
            gate = fit_gate(sampled, self._method, self._fitting, self._runtime(), SilentObserver())
        self._objects[role] = save_tensors(gate.tensors())
        return gate.tensors()

    def identity(self, stage: int) -> Any:
        """Which adapters compete, and the gate with its tensors, or with what they will be fitted from."""
        members = known(self._members, stage)
        last = members[-1].position
        if last in self._stored:
            digest = hashlib.sha256(save_tensors(dict(self._tensors[last]))).hexdigest()
            # The first gate's tensors say all of it; scores of it are kept since there was no other one.
            how = [] if self._name == ComposeConfig.gate else [self._name, asdict(self._method)]
            return ["attention", list(_digests(members)), digest, *how]
        if len(members) == 1:
            return ["attention", list(_digests(members)), None]
        settings = [getattr(self._fitting, name) for name in _FITTING]
        fitted_from = [self._name, asdict(self._method), settings, [member.lasting for member in members]]
        return ["attention", list(_digests(members)), fitted_from]

    def as_adapter(self, stage: int, stack: AdapterStack, weight: Callable[[str], Tensor]) -> LoraFactors | None:
        """The adapter of a stage that knows one alone; the weights over several depend on the token."""
        members = known(self._members, stage)
        if len(members) > 1:
            return None
        return stack.combine(torch.from_numpy(state_weights(stack.names, {members[0].adapter: 1.0})))


def fit_gate(
    members: Sequence[Member], method: GateMethod, config: ComposeConfig, runtime: Runtime, observer: Observer
) -> Gate:
    """Learn a gate on the members' calibration samples.

    Args:
        members: Two or more.
        method: The kind of gate, which says how long and how fast it learns.
        config: Batch size and seed.
        runtime: Its base, adapters and heads stay as they are.
        observer: Gets the loss.

    Raises:
        DivergedError: If the loss is not finite.
    """
    seed_everything(config.seed)
    texts = [text for member in members for text in member.texts]
    targets = [target for member in members for target in member.targets]
    heads = np.array([member.head for member in members for _ in member.texts], np.int64)
    gate = method.build(runtime.stack.select(_digests(members)))
    runtime.enter(Plan(gate=gate, members=_digests(members)))
    runtime.base.model.eval()
    optimizer = torch.optim.Adam(gate.parameters(), lr=method.learning_rate)
    steps = math.ceil(method.epochs * math.ceil(len(texts) / config.batch_size))
    observer.start(f"a gate over {len(members)} adapters", steps)
    done = 0
    try:
        while done < steps:
            for rows in torch.randperm(len(texts)).split(config.batch_size):
                if done == steps:
                    break
                batch = rows.tolist()
                task_loss = runtime.loss([texts[i] for i in batch], [targets[i] for i in batch], heads[batch])
                own = method.regulariser(gate)
                loss = task_loss + own
                if not torch.isfinite(loss):
                    raise DivergedError(
                        f"the gate diverged at step {done + 1}",
                        unchanged="the composition was not added to the bank",
                        hint=f"lower it: --set learning_rate={method.learning_rate / 10:g}",
                    )
                optimizer.zero_grad()
                loss.backward(inputs=list(gate.parameters()))
                optimizer.step()
                done += 1
                observer.advance(done, {"loss": float(task_loss.detach()), "regulariser": float(own.detach())})
    finally:
        observer.finish()
        runtime.mixture.off()
    check_tensors(dict(gate.named_parameters()), "the gate's parameters")
    return gate.requires_grad_(False)


@torch.inference_mode()
def sparsity(gate: Gate, members: Sequence[Member], runtime: Runtime) -> dict[str, Any]:
    """How few adapters answer, over up to 64 calibration texts, one at a time so that no padding counts.

    Returns:
        ``attention``: mean attention of the zero adapter (``"zero"``) and of each task, over modules and tokens;
        ``effective_adapters``: exp of the mean entropy, between 1 and K + 1;
        ``near_zero``: share of the parameters that the gate's regulariser makes small below 1e-3 in absolute value,
        where it has one.
    """
    seen: list[Tensor] = []
    per_member = max(1, _LOOKED_AT // len(members))
    runtime.enter(Plan(gate=gate, members=_digests(members)))
    with gate.watched(seen):
        for member in members:
            for text, target in list(zip(member.texts, member.targets, strict=True))[:per_member]:
                runtime.loss([text], [target], member.head)
    runtime.mixture.off()
    every = torch.cat([attention.flatten(0, -2) for attention in seen]).double()
    mean: NDArray[np.float64] = every.mean(0).cpu().numpy()
    entropy = -(every * every.clamp_min(1e-300).log()).sum(-1).mean()
    small = [parameter.flatten() for parameter in gate.regularised()]
    names = ("zero", *(member.task for member in members))
    found = {
        "attention": {name: float(value) for name, value in zip(names, mean, strict=True)},
        "effective_adapters": float(entropy.exp()),
    }
    if small:
        found["near_zero"] = float((torch.cat(small).abs() < _NEAR_ZERO).double().mean())
    return found


def _digests(members: Sequence[Member]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(member.adapter for member in members))


def _with_samples(member: Member) -> Member:
    """A member that was read without its calibration samples, with them."""
    texts, targets = member.samples()
    return replace(member, texts=tuple(texts), targets=tuple(targets))


def _check_samples(members: Sequence[Member]) -> None:
    missing = [member.task for member in members if not member.texts]
    if missing and len(members) > 1:
        raise NotFoundError(
            f"task {missing[0]!r} was added without calibration samples, which a gate is fitted on",
            hint=f"{ROUTING} needs none",
            commands=[Command("compose", "--mode", ROUTING)],
            unchanged="nothing was changed",
        )
