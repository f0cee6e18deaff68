"""A training that moved nothing is refused, whatever the strategy, and nothing of it is stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorabank.bank.bank import Bank
from lorabank.core.errors import DivergedError
from lorabank.core.shelves import STRATEGIES


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.by_turns
@pytest.mark.parametrize("rate", [1e-300, 1e-20])
def test_a_rate_that_changes_no_weight_is_named(lab, copy, strategy: str, rate: float) -> None:
    """The step is 0 in float32, or small enough to be rounded off beside every weight."""
    bank: Path = copy(strategy, 1)
    before = Bank.open(bank).snapshot()
    with pytest.raises(
        DivergedError, match=rf"changed nothing: after \d+ steps with the learning rate {rate:g} "
    ) as caught:
        lab.add(bank, "two", strategy=strategy, learning_rate=rate, epochs=0.5, save_steps=1)
    assert caught.value.exit_code == 11
    assert caught.value.unchanged == "the adapter was not added to the bank"
    assert Bank.open(bank).snapshot() == before
    assert Bank.open(bank).operations() == []
    assert not any((bank / "work").iterdir())


def test_the_smallest_training_is_one_step_and_counts(lab, copy) -> None:
    assert lab.add(copy("olora", 0), "one", epochs=1e-300).adapter.steps == 1


def test_gradients_that_are_clipped_to_nothing_move_nothing(lab, copy) -> None:
    with pytest.raises(DivergedError, match=r"changed nothing: after 6 steps with the learning rate 0.01"):
        lab.add(copy("olora", 0), "one", max_grad_norm=1e-60)
