"""What can be told of an adapter before it is trained: penalties, sizes, steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.task_kinds import task_kind
from lorabank.models.bases.loading import find_head_modules, input_limit
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.quiet import quiet_transformers
from lorabank.models.bases.resolving import locate_base
from lorabank.models.bases.sites import Site, matrix_of
from lorabank.models.bases.targets import find_targets
from lorabank.models.tasks.heads import build_head
from lorabank.training.methods import TrainMethods, chosen_methods
from lorabank.training.penalties.base import Penalty
from lorabank.training.strategies.base import Strategy


def resolve_penalties(config: TrainConfig, strategy: Strategy) -> list[tuple[str, float, Penalty]]:
    """Name, weight and object of each penalty that the settings ask for."""
    chosen: list[tuple[str, float, Penalty]] = []
    *_, name, penalty = chosen_methods(config)
    if name and penalty:
        weight = penalty.default_weight if config.penalty_weight is None else config.penalty_weight
        chosen += [(name, weight, penalty), *penalty.besides()]
    elif config.penalty_weight:
        raise ConfigError(
            f"penalty_weight = {config.penalty_weight} has no penalty to weigh: strategy {strategy.name!r} uses none",
            hint="add --penalty orthogonal",
            unchanged="nothing was changed",
        )
    return chosen


@dataclass(frozen=True)
class AdapterPlan:
    """What can be told of an adapter before it is trained.

    Attributes:
        target_modules: Full names of the modules that it changes.
        left_out: What is said about modules that were meant and cannot be changed; None where there are none.
        not_adapted: The other modules with weights, by kind and reason.
        parameters: Trainable parameters, with the head's.
        stored: Numbers that the bank stores of the adapter, with the head's.
        max_length: Tokens of a text: what was asked for, or the model's limit.
    """

    target_modules: tuple[str, ...]
    left_out: str | None
    not_adapted: tuple[str, ...]
    parameters: int
    stored: int
    max_length: int


def plan_adapter(base: OpenBase, config: TrainConfig, labels: int, earlier: int = 0) -> AdapterPlan:
    """Plan a task's adapter from the base's shapes and its tokenizer; no weight is loaded.

    Args:
        base: The bank's base model.
        config: The settings.
        labels: How many labels the task has.
        earlier: How many adapters the bank was given before.

    Raises:
        ConfigError: There is nothing to adapt, or a weight has the wrong shape for the start.
    """
    model = _shapes(base)
    kind = task_kind(base.record.task_type)
    head_modules = find_head_modules(model, set(), base.record.name) if kind.has_head else ()
    targets = find_targets(model, config.target_modules, head_modules, config.first_layer)
    methods = chosen_methods(config)
    for site in targets.sites:
        if refusal := methods.start.refusal(site, config.r, earlier):
            raise refusal
    adapter = sum(methods.variant.parameters(site.d_out, site.d_in, config.r) for site in targets.sites)
    head = build_head(model, head_modules, labels, config.seed).state() if kind.has_head else {}
    of_head = sum(tensor.numel() for tensor in head.values())
    return AdapterPlan(
        target_modules=targets.modules,
        left_out=targets.notice,
        not_adapted=targets.not_adapted,
        parameters=adapter + of_head,
        stored=_stored(targets.sites, config.r, methods) + of_head,
        max_length=min(config.max_length, input_limit(model, base.tokenizer) or config.max_length),
    )


def _stored(sites: Sequence[Site], r: int, methods: TrainMethods) -> int:
    """Numbers of the whole form: the start's share beside the trained one, gains with the magnitudes for PEFT."""
    rank = 2 * r if methods.start.shifts else r
    rows = {site.module_name: matrix_of(site.module).shape[0] for site in sites}
    low = sum(rank * (rows[site.module_name] + site.d_in) for site in sites)
    return low + 2 * sum(rows.values()) * methods.variant.gains


def _shapes(base: OpenBase) -> PreTrainedModel:
    auto = getattr(transformers, task_kind(base.record.task_type).auto_class)
    with quiet_transformers(), torch.device("meta"):
        config = AutoConfig.from_pretrained(locate_base(base.record).path, local_files_only=True)
        model: PreTrainedModel = auto.from_config(config)
    return model


def planned_steps(rows: int, config: TrainConfig) -> int:
    """Optimizer steps of a run over so many rows."""
    per_epoch = math.ceil(math.ceil(rows / config.batch_size) / config.gradient_accumulation_steps)
    return math.ceil(per_epoch * config.epochs)
