"""What is known of a training before it begins: penalties, sizes, steps, and whether they are enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.task_kinds import task_kind
from lorabank.models.bases.kinds.bias import owner_of
from lorabank.models.bases.loading import find_head_modules, input_limit
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.sites import Site, kind_of, sizes_of
from lorabank.models.bases.targets import Targets
from lorabank.models.tasks.heads import build_head
from lorabank.training.methods import TrainMethods, check_packing, chosen_methods, found_targets
from lorabank.training.penalties.base import Penalty
from lorabank.training.strategies.base import Strategy

FEW_STEPS = 50
"""Fewer optimizer steps are seldom enough to learn a task."""


def resolve_penalties(config: TrainConfig, strategy: Strategy) -> list[tuple[str, float, Penalty]]:
    """Name, weight and object of each penalty that the settings ask for."""
    chosen: list[tuple[str, float, Penalty]] = []
    methods = chosen_methods(config)
    name, penalty = methods.penalty_name, methods.penalty
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
        LorabankError: As of `check_fit`.
    """
    model = base.shapes
    kind = task_kind(base.record.task_type)
    methods, targets, head_modules = _fitting(base, config, earlier)
    adapter = methods.variant.trained(targets.sites, config.r)
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


def check_fit(base: OpenBase, config: TrainConfig, earlier: int = 0) -> None:
    """Refuse methods that the base does not fit, from its shapes, before rows are read or a weight is loaded.

    Args:
        base: The bank's base model.
        config: The settings.
        earlier: How many adapters the bank was given before.

    Raises:
        ConfigError: There is nothing to adapt, a weight has the wrong shape for the start or the variant, or the
            strategy takes no packed rows.
        IncompatibleError: A saving does not fit the model.
    """
    _fitting(base, config, earlier)


def _fitting(base: OpenBase, config: TrainConfig, earlier: int) -> tuple[TrainMethods, Targets, tuple[str, ...]]:
    """The methods, what they adapt, and the modules of the head."""
    model, has_head = base.shapes, task_kind(base.record.task_type).has_head
    head_modules = find_head_modules(model, set(), base.record.name) if has_head else ()
    targets = found_targets(model, config, head_modules)
    methods = chosen_methods(config)
    check_packing(methods.strategy, config, earlier)
    if methods.variant.floats and base.record.quantisation:
        raise ConfigError(
            f"variant {config.variant!r} adapts linear layers in floats, and the base is quantised "
            f"({base.record.quantisation})",
            hint="another --variant, or a bank on the base in floats",
            unchanged="nothing was changed",
        )
    for site in targets.sites:
        for method in (methods.start, methods.variant):
            if refusal := method.refusal(site, config.r, earlier):
                raise refusal
    for saving in methods.savings:
        if unfit := saving.refusal(model, targets.modules):
            raise unfit
    return methods, targets, head_modules


def _stored(sites: Sequence[Site], r: int, methods: TrainMethods) -> int:
    """Numbers of the whole form: the start's share beside the trained one, gains with the magnitudes for PEFT."""
    if methods.variant.alone:
        return methods.variant.trained(sites, r)
    if methods.variant.biases:  # what PEFT reads of each beside what was added to it, and the factors that it asks for
        owners = ((site.name, owner_of(site.module)) for site in sites)
        _, carrier = min((name, owner) for name, owner in owners if kind_of(owner) is not None)
        return 2 * methods.variant.trained(sites, r) + sum(sizes_of(carrier))
    rank = methods.variant.rank(r) + r * methods.start.shifts
    rows = {site.module_name: sizes_of(site.module)[0] for site in sites}
    low = sum(rank * sum(sizes_of(site.module)) for site in sites)
    return low + 2 * sum(rows.values()) * methods.variant.gains


def rows_apart(rows: int, config: TrainConfig, number: int) -> list[int]:
    """Numbers of the own rows that the variant leaves out of the epochs; a resumed training has the same.

    Args:
        rows: How many there are.
        config: The settings.
        number: How many adapters the bank was given before.
    """
    count = chosen_methods(config).variant.apart(rows)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
    return sorted(torch.randperm(rows, generator=generator)[:count].tolist()) if count else []


def planned_steps(rows: int, config: TrainConfig) -> int:
    """Optimizer steps of a run over so many rows."""
    return config.max_steps or math.ceil(steps_per_epoch(rows, config) * config.epochs)


def steps_per_epoch(rows: int, config: TrainConfig) -> int:
    """Optimizer steps of one pass over so many rows."""
    return math.ceil(math.ceil(rows / config.batch_size) / config.gradient_accumulation_steps)


def few_steps(rows: int, config: TrainConfig) -> str | None:
    """What to type where a run over so many rows, or packs of them, has too few optimizer steps; else None."""
    steps = planned_steps(rows, config)
    if steps >= FEW_STEPS:
        return None
    counted = "1 optimizer step is very little" if steps == 1 else f"{steps} optimizer steps are few"
    told = f"{counted}, and a task is seldom learnt in fewer than {FEW_STEPS}"
    if config.max_steps is not None:
        return f"{told}: --max-steps {FEW_STEPS} or more"
    epochs = -(-FEW_STEPS // planned_steps(rows, replace(config, epochs=1.0)))
    longer = planned_steps(rows, replace(config, epochs=float(epochs)))
    smaller = {size: planned_steps(rows, replace(config, batch_size=size)) for size in range(1, config.batch_size)}
    enough = max((size for size, found in smaller.items() if found >= FEW_STEPS), default=None)
    batch = f", --batch-size {enough} gives {smaller[enough]}" if enough else ""
    return f"{told}: --epochs {epochs} gives {longer} steps{batch}"


def warmup_steps(steps: int, warmup: float) -> int:
    """Steps of a warm-up that is a number of steps or, below 1, a share of them."""
    return int(warmup) if warmup >= 1 else math.ceil(steps * warmup)


def check_warmup(steps: int, config: TrainConfig) -> None:
    """Refuse a warm-up that is not shorter than a training of so many steps.

    Raises:
        ConfigError: The learning rate would never reach its value.
    """
    warmup = warmup_steps(steps, config.warmup)
    if 0 < warmup >= steps:
        raise ConfigError(
            f"--warmup {config.warmup:g} takes {warmup} step{'s' * (warmup > 1)}, and the training has {steps}: the "
            "learning rate would never reach its value",
            hint="lower --warmup, or raise --epochs or --max-steps",
            unchanged="nothing was changed",
        )


def schedule_of(config: TrainConfig) -> str:
    """What transformers calls the schedule: a constant one has another name where it is warmed up."""
    name = config.lr_scheduler_type
    return f"{name}_with_warmup" if config.warmup and name == "constant" else name
