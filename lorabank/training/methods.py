"""The methods that the settings of a training choose, each with its own settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabank.core.config import TrainConfig
from lorabank.core.methods import with_settings
from lorabank.core.shelves import PENALTIES, ROWS, STRATEGIES, TRAINING

if TYPE_CHECKING:
    from lorabank.training.penalties.base import Penalty
    from lorabank.training.strategies.base import Strategy

NONE = "none"
"""The penalty of a user who wants none."""


def chosen_methods(config: TrainConfig) -> tuple[Strategy, str | None, Penalty | None]:
    """The strategy, and the penalty (that of the settings, or the strategy's own) with its name.

    Raises:
        ConfigError: A name is on no shelf, or ``--set`` does not fit the methods; names all that is wrong.
    """
    name = config.penalty or STRATEGIES.load(config.strategy).penalty
    if not name or name == NONE:
        (strategy,) = with_settings([(STRATEGIES, config.strategy)], config.set, among=TRAINING, besides=ROWS)
        return strategy, None, None
    chosen = [(STRATEGIES, config.strategy), (PENALTIES, name)]
    strategy, penalty = with_settings(chosen, config.set, among=TRAINING, besides=ROWS)
    return strategy, name, penalty


def chosen_strategy(config: TrainConfig) -> Strategy:
    """The strategy with its settings; errors as of `chosen_methods`."""
    return chosen_methods(config)[0]
