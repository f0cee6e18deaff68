"""What a merger found with the model and the rows that tasks kept: one result for each stage, stored.

As a gate does (`lorabank.compose.gated`), a merger that is fitted gets a result for every stage, over the members that
the stage knows, so that a matrix shows what was possible then. A stage that was left out is fitted when it is asked
for, and kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lorabank.algebra.stack import AdapterStack
from lorabank.compose.base import Member, known
from lorabank.compose.mergers.base import Merge, Merger, Sources, Told
from lorabank.compose.mergers.kept import KeptRows, check_kept
from lorabank.compose.mergers.storing import merge_of, merge_tensors
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import ConfigError
from lorabank.core.observer import Observer, SilentObserver
from lorabank.core.records import DERIVED
from lorabank.core.settings import validate
from lorabank.models.mixing.runtime import Runtime

_FITTING = ("batch_size", "seed")


def fitting_of(parameters: Mapping[str, Any]) -> ComposeConfig:
    """How a stored merge was fitted.

    Raises:
        ValueError: What is stored is not a valid setting.
    """
    try:
        return validate(ComposeConfig, {name: parameters[name] for name in _FITTING if name in parameters})
    except ConfigError as error:
        raise ValueError(error.message) from error


class FittedMerges:
    """The results of a merger by stage.

    Args:
        name: The merger's name on the shelf.
        merger: It with its settings.
        fitting: Batch size and seed.
        runtime: The model.
        weight: Module name to the untouched base's weight ``[d_out, d_in]``, on the CPU.
        objects: Role to what is stored; results that were missing are put into it.
    """

    def __init__(
        self,
        name: str,
        merger: Merger,
        fitting: ComposeConfig,
        runtime: Callable[[], Runtime],
        weight: Callable[[str], Tensor],
        objects: MutableMapping[str, bytes],
    ) -> None:
        self._name, self._merger, self._fitting = name, merger, fitting
        self._runtime, self._weight, self._objects = runtime, weight, objects

    @property
    def parameters(self) -> dict[str, Any]:
        """How they are fitted, as JSON values."""
        return {name: getattr(self._fitting, name) for name in _FITTING}

    def fit(self, members: Sequence[Member], observer: Observer) -> Mapping[str, Any]:
        """Fit every stage of the members, or the last one (``stages`` of the settings).

        Returns:
            What the merger tells of the last stage.

        Raises:
            NotFoundError: A member kept no rows.
        """
        check_kept(self._name, members)
        stages = [member.position for member in members]
        if self._fitting.stages == "last":
            stages = stages[-1:]
        measured: dict[tuple[str, str], object] | None = {} if len(stages) > 1 else None
        told: Told | None = None
        for stage in stages:
            told = self._found(known(members, stage), observer, measured)
            self._objects[_role(stage)] = save_tensors(merge_tensors(told.merge, _tasks(known(members, stage))))
        return told.report if told else {}

    def at(self, members: Sequence[Member]) -> Merge:
        """The result over the members that a stage knows: as stored, or fitted now and kept.

        Raises:
            NotFoundError: The stage was not fitted, and a member keeps no rows to fit it on.
        """
        stage = members[-1].position
        if _role(stage) in self._objects:
            return merge_of(load_tensors(self._objects[_role(stage)]), _tasks(members))
        model = self._runtime().base.model
        late = f"{DERIVED}{stage}, {model.dtype} on {model.device.type}"
        if late in self._objects:
            with suppress(SafetensorError, ValueError):  # it can be fitted again
                return merge_of(load_tensors(self._objects[late]), _tasks(members))
        sampled = [_with_samples(member) for member in members]
        check_kept(self._name, sampled)
        with torch.inference_mode(False), torch.enable_grad():
            made = self._found(sampled, SilentObserver(), None).merge
        self._objects[late] = save_tensors(merge_tensors(made, _tasks(members)))
        return made

    def identity(self, members: Sequence[Member]) -> Any:
        """What decides the result: its digest, or what it will be fitted from."""
        role = _role(members[-1].position)
        if role in self._objects:
            return hashlib.sha256(self._objects[role]).hexdigest()
        return [self.parameters, [member.lasting for member in members]]

    def _found(
        self, members: Sequence[Member], observer: Observer, measured: dict[tuple[str, str], object] | None
    ) -> Told:
        def ask() -> KeptRows:
            by_task = {member.task: member for member in members}
            seed, batch_size = self._fitting.seed, self._fitting.batch_size
            return KeptRows(by_task, self._runtime(), observer, batch_size, seed, measured)

        factors = {member.adapter: member.factors for member in members}
        read = partial(_read, factors)
        adapters = [member.adapter for member in members]
        made = self._merger.merge(Sources(_tasks(members), adapters, read, self._weight, ask=ask))
        return made if isinstance(made, Told) else Told(made, {})


def _read(factors: Mapping[str, Callable[[], Any]]) -> AdapterStack:
    return AdapterStack.build({adapter: read() for adapter, read in factors.items()})


def _tasks(members: Sequence[Member]) -> list[str]:
    return [member.task for member in members]


def _role(stage: int) -> str:
    return f"merge of stage {stage}"


def _with_samples(member: Member) -> Member:
    texts, targets = member.samples()
    return replace(member, texts=tuple(texts), targets=tuple(targets))
