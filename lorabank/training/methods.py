"""The methods that the settings of a training choose, each with its own settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lorabank.core.commands import Command
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.methods import with_settings
from lorabank.core.shelves import PENALTIES, ROWS, STARTS, STRATEGIES, TRAINING, VARIANTS

if TYPE_CHECKING:
    from lorabank.training.penalties.base import Penalty
    from lorabank.training.starts.base import FactorStart
    from lorabank.training.strategies.base import Strategy
    from lorabank.training.variants.base import Variant

NONE = "none"
"""The penalty of a user who wants none."""


class TrainMethods(NamedTuple):
    """What a training is made of, each with its settings; the penalty's name is None where there is none."""

    strategy: Strategy
    variant: Variant
    start: FactorStart
    penalty_name: str | None
    penalty: Penalty | None = None


def chosen_methods(config: TrainConfig) -> TrainMethods:
    """The strategy, variant and start, and the penalty of the settings or the strategy's own.

    Raises:
        ConfigError: A name is on no shelf, ``--set`` does not fit the methods (names all that is wrong), or the
            variant cannot be trained with the strategy and the start.
    """
    chosen = [(STRATEGIES, config.strategy), (VARIANTS, config.variant), (STARTS, config.start)]
    name = config.penalty or STRATEGIES.load(config.strategy).penalty
    named = name if name and name != NONE else None
    if named:
        chosen.append((PENALTIES, named))
    strategy, variant, start, *penalty = with_settings(chosen, config.set, among=TRAINING, besides=ROWS)
    found = TrainMethods(strategy, variant, start, named, *penalty)
    if reason := found.variant.refuses(found.strategy, found.start):
        raise ConfigError(
            f"strategy {config.strategy!r}, variant {config.variant!r} and start {config.start!r} do not go together: "
            f"{reason}",
            hint="change one of the three; methods lists what each variant and start is refused with",
            commands=[Command("methods", config.variant), Command("methods", config.start)],
            unchanged="nothing was changed",
        )
    return found


def chosen_strategy(config: TrainConfig) -> Strategy:
    """The strategy with its settings; errors as of `chosen_methods`."""
    return chosen_methods(config).strategy
