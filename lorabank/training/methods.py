"""The methods that the settings of a training choose, each with its own settings."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from lorabank.core.commands import Command
from lorabank.core.config import LEARNING_RATE, TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.machine import distributed as processes
from lorabank.core.methods import with_settings
from lorabank.core.shelves import EVERY_VARIANT, OPTIMIZERS, PENALTIES, ROWS, SAVINGS, STARTS, STRATEGIES, TRAINING
from lorabank.training.trackers import check_tracker

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorabank.models.bases.targets import Targets
    from lorabank.training.optimizers.base import Optimizer
    from lorabank.training.penalties.base import Penalty
    from lorabank.training.savings.base import Saving
    from lorabank.training.starts.base import FactorStart
    from lorabank.training.strategies.base import Strategy
    from lorabank.training.variants.base import Variant

_PROPOSED = 3
NONE = "none"
"""The penalty of a user who wants none."""


class TrainMethods(NamedTuple):
    """What a training is made of, each with its settings; the penalty's name is None where there is none."""

    strategy: Strategy
    variant: Variant
    start: FactorStart
    optimizer: Optimizer
    penalty_name: str | None
    penalty: Penalty | None = None
    savings: tuple[Saving, ...] = ()

    @property
    def shifts(self) -> bool:
        """Whether an initial product is taken out of the weight in memory, so that the adapter has twice the rank."""
        return self.start.shifts or self.variant.shifts


def chosen_methods(config: TrainConfig) -> TrainMethods:
    """The strategy, variant, start, optimizer and savings, and the penalty of the settings or the strategy's own.

    Raises:
        ConfigError: A name is on no shelf, ``--set`` does not fit the methods (names all that is wrong), the variant
            cannot be trained with the strategy and the start, with a saving or with other settings, or two savings, or
            a saving and packed rows, do not go together.
    """
    chosen = [(STRATEGIES, config.strategy), (EVERY_VARIANT.of(config.variant), config.variant)]
    chosen += [(STARTS, config.start), (OPTIMIZERS, config.optimizer)]
    savings = tuple(dict.fromkeys(config.savings))
    chosen += [(SAVINGS, saving) for saving in savings]
    named = _penalty_name(STRATEGIES.load(config.strategy), config)
    if named:
        chosen.append((PENALTIES, named))
    strategy, variant, start, optimizer, *rest = with_settings(chosen, config.set, among=TRAINING, besides=ROWS)
    penalty = rest[-1] if named else None
    found = TrainMethods(strategy, variant, start, optimizer, named, penalty, tuple(rest[: len(savings)]))
    if found.variant.moments and not optimizer.moments:
        raise ConfigError(
            f"variant {config.variant!r} resets the moments that AdamW keeps of each number, and optimizer "
            f"{config.optimizer!r} does not keep them",
            hint=f"use --optimizer {TrainConfig.optimizer}, which is the default, or another --variant",
            unchanged="nothing was changed",
        )
    if reason := found.variant.refuses(replace(found.strategy, penalty=named), found.start):
        raise ConfigError(
            f"strategy {config.strategy!r}, variant {config.variant!r} and start {config.start!r} do not go together: "
            f"{reason}",
            hint=_taking(found.variant, found.start, config)
            or "change one of the three; methods lists what each variant and start is refused with",
            commands=[Command("methods", config.variant), Command("methods", config.start)],
            unchanged="nothing was changed",
        )
    if unfit := found.variant.unfit(config):
        raise unfit
    if len(attending := [name for name, own in zip(savings, found.savings, strict=True) if own.attends]) > 1:
        raise ConfigError(
            f"savings {' and '.join(map(repr, attending))} do not go together: each replaces the attention",
            hint="choose one of them",
            unchanged="nothing was changed",
        )
    if config.packing and savings:
        raise ConfigError(
            "--packing keeps the loss of each row as it is, and a saving may change which tokens of a sequence see "
            "each other",
            hint="leave --packing or --saving out",
            unchanged="nothing was changed",
        )
    for saving, own in zip(savings, found.savings, strict=True):
        if reason := found.variant.refuses_saving(partial=own.partial):
            raise ConfigError(
                f"variant {config.variant!r} and saving {saving!r} do not go together: {reason}",
                hint=f"leave out --saving {saving}, or choose another --variant",
                commands=[Command("methods", config.variant), Command("methods", saving)],
                unchanged="nothing was changed",
            )
    return found


def _penalty_name(strategy: Strategy, config: TrainConfig) -> str | None:
    """The penalty of the settings, or the strategy's own; None for no penalty."""
    name = config.penalty or strategy.penalty
    return name if name and name != NONE else None


def _taking(variant: Variant, start: FactorStart, config: TrainConfig) -> str:
    """The strategies that take a variant with a start, under their own penalty where none was asked for."""
    names = []
    for name in STRATEGIES:
        own = STRATEGIES.load(name)
        if not variant.refuses(replace(own, penalty=_penalty_name(own, config)), start):
            names.append(name)
    return f"use --strategy {' or '.join(names[:_PROPOSED])}" if names else ""


def found_targets(model: PreTrainedModel, config: TrainConfig, head_modules: tuple[str, ...]) -> Targets:
    """The matrices, or the biases where the variant trains those, that ``--target-modules`` means.

    Raises:
        ConfigError, IncompatibleError: As of `find_targets`, or of `find_biases`.
    """
    from lorabank.models.bases.targets import find_targets
    from lorabank.training.variants.bias_targets import find_biases

    find = find_biases if EVERY_VARIANT.load(config.variant).biases else find_targets
    return find(model, config.target_modules, head_modules, config.first_layer)


def check_here(config: TrainConfig) -> None:
    """Refuse what could not be trained in this environment, on this device, by these processes.

    Raises:
        ConfigError, MissingExtraError: As `check_tracker` and `check_optimizer`, or where a process would have no row
            of a batch.
    """
    check_tracker(config.report_to)
    check_optimizer(config)
    if config.batch_size < processes.count():
        raise ConfigError(
            f"--batch-size {config.batch_size} leaves some of {processes.count()} processes without rows",
            unchanged="nothing was changed",
        )


def check_packing(strategy: Strategy, config: TrainConfig, earlier: int) -> None:
    """Refuse packed rows where the strategy computes the loss of single ones: after the first task.

    Args:
        strategy: The strategy.
        config: The settings.
        earlier: How many tasks come before.

    Raises:
        ConfigError: The rows would be packed.
    """
    if config.packing and strategy.single_rows and earlier:
        raise ConfigError(
            f"strategy {strategy.name!r} computes the loss of single rows after the first task, and --packing joins "
            "rows",
            hint="leave --packing out, or use another --strategy",
            unchanged="nothing was changed",
        )


def check_optimizer(config: TrainConfig) -> None:
    """Refuse methods that could not train here, before anything is trained.

    Raises:
        ConfigError, MissingExtraError: As `chosen_methods`, or as the optimizer refuses the device.
    """
    from lorabank.models.bases.loading import resolve_device

    device = resolve_device(processes.device_name(config.device)).type
    if refusal := chosen_methods(config).optimizer.refusal(device):
        raise refusal


def chosen_strategy(config: TrainConfig) -> Strategy:
    """The strategy with its settings; errors as of `chosen_methods`."""
    return chosen_methods(config).strategy


def learning_rate(config: TrainConfig) -> float:
    """The learning rate of the settings; where they give none the variant's own, or the one of most variants."""
    if config.learning_rate is not None:
        return config.learning_rate
    own: float | None = EVERY_VARIANT.load(config.variant).learning_rate
    return LEARNING_RATE if own is None else own


def filled_in(config: TrainConfig) -> TrainConfig:
    """The settings with the learning rate that they are trained with."""
    return replace(config, learning_rate=learning_rate(config))
