"""What a merger found with the model and the rows that tasks kept: one result for each stage, stored.

As a gate does (`lorabank.compose.gated`), a merger that is fitted gets a result for every stage, over the members that
the stage knows, so that a matrix shows what was possible then. A stage that was left out is fitted when it is asked
for, and kept. Delta weights of full rank are as large as the weights that are adapted; with ``max_rank`` they are
stored as they are cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lorabank.algebra.compress import compress_dense
from lorabank.algebra.factors import DenseDelta
from lorabank.algebra.stack import AdapterStack
from lorabank.compose.base import Member, known
from lorabank.compose.mergers.base import Merge, Merger, Sources, Told
from lorabank.compose.mergers.kept import KeptRows, Measured, check_kept
from lorabank.compose.mergers.storing import merge_of, merge_tensors
from lorabank.compose.vectors import read_adapters, vector_name, vector_stack
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
        objects: Role to what is stored; results that were missing are put into it.
    """

    def __init__(
        self,
        name: str,
        merger: Merger,
        fitting: ComposeConfig,
        runtime: Callable[[], Runtime],
        objects: MutableMapping[str, bytes],
    ) -> None:
        self._name, self._merger, self._fitting = name, merger, fitting
        self._runtime, self._objects = runtime, objects

    @property
    def parameters(self) -> dict[str, Any]:
        """How they are fitted, as JSON values."""
        return {name: getattr(self._fitting, name) for name in _FITTING}

    def fit(self, members: Sequence[Member], observer: Observer) -> Told:
        """Fit every stage of the members, or the last one (``stages`` of the settings).

        Returns:
            What the merger found for the last stage, uncut.

        Raises:
            NotFoundError: A member kept no rows.
        """
        check_kept(self._name, members)
        stages = [member.position for member in members]
        if self._fitting.stages == "last":
            stages = stages[-1:]
        measured: Measured | None = {} if len(stages) > 1 else None
        for stage in stages:
            told = self._found(known(members, stage), observer, measured)
            self._objects[_role(stage)] = self._stored(told.merge, known(members, stage))
        return told

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
        sampled = [member.with_samples() for member in members]
        check_kept(self._name, sampled)
        with torch.inference_mode(False), torch.enable_grad():
            data = self._stored(self._found(sampled, SilentObserver(), None).merge, members)
        self._objects[late] = data
        return merge_of(load_tensors(data), _tasks(members))

    def identity(self, members: Sequence[Member]) -> Any:
        """What decides the result: its digest, or what it will be fitted from."""
        role = _role(members[-1].position)
        if role in self._objects:
            return hashlib.sha256(self._objects[role]).hexdigest()
        return [self.parameters, [member.lasting for member in members]]

    def _stored(self, made: Merge, members: Sequence[Member]) -> bytes:
        if isinstance(made, DenseDelta) and self._merger.max_rank is not None:
            made = compress_dense(made, self._merger.max_rank).factors
        data: bytes = save_tensors(merge_tensors(made, _tasks(members)))
        return data

    def _weight(self, module: str) -> Tensor:
        return self._runtime().mixture.base_weight(module).cpu()

    def _found(self, members: Sequence[Member], observer: Observer, measured: Measured | None) -> Told:
        def ask() -> KeptRows:
            by_task = {member.task: member for member in members}
            seed, batch_size = self._fitting.seed, self._fitting.batch_size
            return KeptRows(by_task, self._runtime(), observer, batch_size, seed, measured)

        read = partial(_read, members)
        names = [vector_name(member) for member in members]
        made = self._merger.merge(Sources(_tasks(members), names, read, self._weight, ask=ask))
        return made if isinstance(made, Told) else Told(made, {})


def _read(members: Sequence[Member]) -> AdapterStack:
    return vector_stack(members, read_adapters(members))


def _tasks(members: Sequence[Member]) -> list[str]:
    return [member.task for member in members]


def _role(stage: int) -> str:
    return f"merge of stage {stage}"
