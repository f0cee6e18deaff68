"""An adapter from elsewhere on the bank's base: looked at and passed through it, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lorabank.algebra.compress import compress_dense
from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, DataError, IncompatibleError, leaving
from lorabank.core.observer import Observer
from lorabank.core.records import BaseModelRecord
from lorabank.core.shelves import TASK_TYPES
from lorabank.data.loading import TaskData
from lorabank.exchange.dora import from_dora
from lorabank.exchange.fit_check import check_effect, check_fits, largest_update
from lorabank.exchange.peft_folder import adapter_files, combined_files
from lorabank.exchange.placed.fused_attention import with_attention
from lorabank.exchange.placed.loralib_checkpoint import with_loralib
from lorabank.exchange.placed.stacked_experts import with_experts
from lorabank.exchange.placed.whole_biases import with_added
from lorabank.exchange.tuners.folder import tuner_files
from lorabank.exchange.tuners.untrusted import ForeignTuner, on_base
from lorabank.exchange.untrusted_adapter import ForeignAdapter
from lorabank.models.bases.loading import NEW_BANK, LoadedBase, weights_of
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.mixing.trial import try_base
from lorabank.models.tasks.heads import Head, load_head, put_head
from lorabank.models.tasks.task_types import TaskType
from lorabank.workflows.carrying.adapter_source import SAVED_AGAIN
from lorabank.workflows.learning.folders import stored_files
from lorabank.workflows.task_data import encode_rows, settled, task_statistics

_UNCHANGED = "nothing was changed"
_OF_ANOTHER = "import the adapter into a bank with the base model that it was trained on"

_PROBED = 16
"""Rows that are passed through the base with and without an imported adapter."""


@dataclass(frozen=True)
class Fitted:
    """An adapter that fits a base.

    Attributes:
        made: What it does to the weights: factors, of DoRA with its gains, or delta weights of full rank.
        files: It in the bank's own form, whatever else its folder held.
        r: Its rank.
        lora_alpha: Numerator of its scaling.
        use_rslora: Whether the scaling is ``lora_alpha / sqrt(r)``.
        unread: Why its config was not asked which modules are adapted, None where it was.
        facts: What the record keeps of how it was made.
        tuner: The tuner of PEFT that it is of; None for factors.
    """

    made: LoraFactors | DenseDelta
    files: Mapping[str, bytes]
    r: int
    lora_alpha: float
    use_rslora: bool
    unread: str | None
    facts: Mapping[str, Any]
    tuner: str | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that it changes."""
        return tuple(sorted(self.made.A if isinstance(self.made, LoraFactors) else self.made.delta))


@dataclass(frozen=True)
class Judged:
    """An adapter that fits and works, and what the bank keeps of its data.

    Attributes:
        adapter: It on the base.
        head: A classifier's head by full parameter name.
        files: As they are stored.
        config: The settings, what the data and the base decided filled in.
        statistics: What routing keeps of the last hidden state.
        others: What else it keeps, by role.
        rows_cut: Training rows that are longer.
        rows_dropped: Training rows whose answer does not fit.
        largest_update: See `largest_update`.
    """

    adapter: Fitted
    head: Mapping[str, Tensor]
    files: Mapping[str, bytes]
    config: TrainConfig
    statistics: bytes
    others: Mapping[str, bytes]
    rows_cut: int
    rows_dropped: int
    largest_update: float


@leaving(_UNCHANGED, hint=_OF_ANOTHER, commands=NEW_BANK, kinds=(IncompatibleError,))
def judge(
    adapter: ForeignAdapter | ForeignTuner,
    opened: OpenBase,
    data: TaskData,
    labels: tuple[str, ...],
    config: TrainConfig,
    as_lora: int | None,
    observer: Observer,
) -> Judged:
    """Put the adapter on the base and look at it; nothing is written."""
    base, record = opened.load(device=config.device), opened.record
    if isinstance(adapter, ForeignTuner):
        fitted = _fit_tuner(adapter, base, record, as_lora)
    elif as_lora is None:
        fitted = _fit_factors(adapter, base, record)
    else:
        raise ConfigError(
            "--as-lora is for tuners whose delta weights have full rank, and this is an adapter of factors already",
            hint="leave --as-lora out",
            unchanged=_UNCHANGED,
        )
    head = _load_head(base, adapter.head, labels) if base.head_modules else None
    config = settled(config, data, min(config.max_length, base.max_length or config.max_length))
    examples = encode_rows(opened, data, config.max_length)
    if head is not None:
        put_head(base.model, head)
    task_type: TaskType = TASK_TYPES.load(record.task_type)()
    try_base(base, task_type, examples, record.name, training=False)
    statistics, others = task_statistics(base, data.train, config)
    check_effect(base, record.task_type, fitted.made, head, examples.rows[:_PROBED], adapter.file)
    files = fitted.files if fitted.tuner else stored_files(fitted.files, record, len(labels), observer)
    return Judged(
        adapter=fitted,
        head=adapter.head,
        files=files,
        config=config,
        statistics=statistics,
        others=others,
        rows_cut=examples.cut,
        rows_dropped=examples.dropped,
        largest_update=largest_update(fitted.made, base.model),
    )


@leaving(_UNCHANGED, hint=SAVED_AGAIN, kinds=(DataError,))
def _fit_factors(adapter: ForeignAdapter, base: LoadedBase, record: BaseModelRecord) -> Fitted:
    adapter = with_attention(with_experts(adapter, base.model), base.model)
    adapter = with_loralib(adapter, base)
    unread = check_fits(adapter, base, record.task_type)
    if adapter.magnitude:
        adapter = replace(adapter, factors=from_dora(adapter.factors, adapter.magnitude, weights_of(base)))
    adapter = with_added(adapter, base)
    files = adapter_files(
        adapter.factors,
        adapter.head,
        base_model=record.name,
        task_type=record.task_type,
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        use_rslora=adapter.use_rslora,
        head_modules=base.head_modules,
        rank_pattern=adapter.rank_pattern,
        alpha_pattern=adapter.alpha_pattern,
        weight=weights_of(base),
    )
    facts = {"tasks_in_source": adapter.tasks}
    return Fitted(adapter.factors, files, adapter.r, adapter.lora_alpha, adapter.use_rslora, unread, facts)


@leaving(_UNCHANGED, hint=SAVED_AGAIN, kinds=(DataError,))
def _fit_tuner(adapter: ForeignTuner, base: LoadedBase, record: BaseModelRecord, as_lora: int | None) -> Fitted:
    """A tuner as it is, or cut to a rank."""
    if record.quantisation:
        raise IncompatibleError(
            f"a {adapter.name} of PEFT changes weights in floats, and the bank's base is quantised "
            f"({record.quantisation})",
            hint="a bank on the base in floats",
            unchanged=_UNCHANGED,
        )
    state, dense, unread = on_base(adapter, base, record.task_type)
    named: dict[str, Any] = {
        "base_model": record.name,
        "task_type": record.task_type,
        "head_modules": base.head_modules,
    }
    facts: dict[str, Any] = {"tasks_in_source": 1}
    if as_lora is None:
        files, rank = tuner_files(state, adapter.head, **named), state.r
        return Fitted(
            dense, files, rank, float(rank), use_rslora=False, unread=unread, facts=facts, tuner=adapter.name
        )
    cut = compress_dense(DenseDelta({name: delta.cpu() for name, delta in dense.delta.items()}), as_lora)
    squares = {name: float(delta.double().square().sum()) for name, delta in dense.delta.items()}
    lost = sum(squares[name] * error**2 for name, error in cut.relative_error.items())
    facts["as_lora"] = {
        "tuner": adapter.name,
        "relative_error": (lost / sum(squares.values())) ** 0.5,
        "by_module": dict(cut.relative_error),
    }
    files, rank = combined_files(cut.factors, adapter.head, **named), max(len(a) for a in cut.factors.A.values())
    return Fitted(cut.factors, files, rank, float(rank), use_rslora=False, unread=unread, facts=facts)


def _load_head(base: LoadedBase, state: Mapping[str, Tensor], labels: tuple[str, ...]) -> Head:
    try:
        return load_head(base.model, base.head_modules, len(labels), dict(state))
    except IncompatibleError as error:
        raise IncompatibleError(
            error.message,
            hint="name the labels in the order of the head's outputs: --labels A,B,...",
            unchanged=_UNCHANGED,
        ) from error
