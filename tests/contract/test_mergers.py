"""What every merger of the shelf promises, on real banks of a classifier and of a language model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig, PredictConfig
from lorabank.core.errors import IncompatibleError
from lorabank.core.shelves import MERGERS
from tests.contract.conftest import Lab

ITSELF = {
    "task-arithmetic": ("scale=1",), "ties": ("density=1",), "dare": ("drop=0",), "dare-ties": ("drop=0",),
    "magnitude-prune": ("density=1",), "knots": ("density=1",), "byom": ("rank=2",),
    "weight-search": ("low=1", "high=1.0000001", "points=2"),
}  # fmt: skip
"""Settings with which a merger gives one adapter back."""

NEVER_ITSELF = {"compeft"}
SHARED_A = {"l-lora"}


@pytest.fixture(scope="session", params=["bert", "llama"])
def lab(request: pytest.FixtureRequest, make_lab: Callable[[str], Lab]) -> Lab:
    return make_lab(request.param)


@pytest.fixture(params=sorted(MERGERS))
def merger(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def merge(bank: Path, merger: str, name: str = "merge", **config: object) -> dict[str, float]:
    settings = {"mode": "merged", "merger": merger, "name": name, "device": "cpu", "scores": False} | config
    return api.compose(bank, ComposeConfig(**settings)).report["distance"]


def answered(bank: Path, texts: list[str], composition: str) -> list[float]:
    found = api.predict(bank, texts, PredictConfig(composition=composition, task="one", device="cpu"))
    return [one.probability for one in found]


@pytest.mark.by_turns
def test_one_adapter_is_itself(copy, adapters, by_hand, texts, merger: str) -> None:
    bank = copy("isolated", 1)
    distance = merge(bank, merger, set=ITSELF.get(merger, ()))
    if merger in NEVER_ITSELF:
        assert min(distance.values()) > 0.1
        return
    assert max(distance.values()) < 1e-6
    (only,) = adapters(bank)
    expected = by_hand(bank, [only.digest], only.digest, texts).max(-1).values.tolist()
    assert answered(bank, texts, "merge") == pytest.approx(expected, abs=1e-5)


@pytest.mark.by_turns
def test_it_is_made_measured_and_exported(copy, adapters, by_hand, texts, merger: str, tmp_path: Path) -> None:
    bank = copy("isolated", 2)
    if merger in SHARED_A:
        with pytest.raises(IncompatibleError, match="tasks 'one' and 'two' have different ones on"):
            merge(bank, merger)
        assert Bank.open(bank).snapshot().compositions == ()
        return
    merge(bank, merger)
    said = answered(bank, texts, "merge")
    assert merge(bank, merger, "again") == Bank.open(bank).snapshot().composition("merge").parameters["distance"]
    assert answered(bank, texts, "again") == said
    config = EvalConfig(compositions=("merge",), forgetting_matrix=True, device="cpu")
    (report,) = api.evaluate(bank, config)
    assert None not in report.values[-1]
    (again,) = api.evaluate(bank, config)
    assert (again.computed, again.values) == (0, report.values)

    merge(bank, merger, "cut", set=("max_rank=3",))
    api.export(bank, "cut", tmp_path / "cut")
    (bank / "adapters" / "cut").symlink_to(tmp_path / "cut")
    (first, _) = adapters(bank)
    expected = by_hand(bank, ["cut"], first.digest, texts).max(-1).values.tolist()
    assert answered(bank, texts, "cut") == pytest.approx(expected, abs=1e-5)
