"""Every gate of the shelf, on real banks of a classifier, a causal language model and an encoder-decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig
from lorabank.core.shelves import GATES
from tests.contract.conftest import KINDS, Lab


@pytest.fixture(scope="session", params=KINDS)
def lab(request: pytest.FixtureRequest, make_lab: Callable[[str], Lab]) -> Lab:
    return make_lab(request.param)


def compose(bank: Path, gate: str, **config: object):
    settings = {"mode": "gated", "gate": gate, "name": gate, "stages": "last", "device": "cpu", "batch_size": 8}
    return api.compose(bank, ComposeConfig(**(settings | config)))


@pytest.mark.by_turns
@pytest.mark.parametrize("gate", sorted(GATES))
def test_it_is_fitted_stored_and_answers(copy, gate: str) -> None:
    """Twice alike; and nothing else in the bank changes."""
    bank = copy("olora", 2)
    before = Bank.open(bank).snapshot().adapters
    for name in ("first", "second"):
        compose(bank, gate, name=name)
    after = Bank.open(bank).snapshot()
    assert after.adapters == before
    assert after.composition("first").objects == after.composition("second").objects
    parameters = after.composition("first").parameters
    assert parameters["over"] == "states"
    assert sum(parameters["sparsity"]["attention"].values()) == pytest.approx(1, abs=1e-5)
    reports = api.evaluate(bank, EvalConfig(compositions=("first", "second"), device="cpu"))
    assert reports[0].values == reports[1].values
    assert api.evaluate(bank, EvalConfig(compositions=("first",), device="cpu"))[0].values == reports[0].values
