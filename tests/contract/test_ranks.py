"""Adapters whose modules have different ranks: stored, exported, summed, routed and weighed like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, PredictConfig
from lorabank.core.errors import ConfigError, DivergedError
from lorabank.core.shelves import STRATEGIES
from tests.contract.conftest import Lab
from tests.contract.test_variants import answers, plain, probabilities, reason

PRUNED = {"variant": "adalora", "r": 4, "learning_rate": 3e-2, "epochs": 4, "set": ("adalora.start_ratio=2",)}


def stored(bank: Path, digest: str) -> dict[str, int]:
    """Rank by module, as the folder says."""
    config = json.loads((bank / "adapters" / digest / "adapter_config.json").read_text(encoding="utf-8"))
    scaling = {module: config["alpha_pattern"][module] / rank for module, rank in config["rank_pattern"].items()}
    assert set(scaling.values()) <= {config["lora_alpha"] / config["r"]}
    return {module: config["rank_pattern"].get(module, config["r"]) for module in config["target_modules"]}


def test_ranks_that_differ_are_composed_by_every_mode(lab: Lab, copy, texts: list[str], tmp_path: Path) -> None:
    bank = copy("olora", 1)
    (one,) = (adapter.digest for adapter in Bank.open(bank).snapshot().adapters.values())
    two = lab.add(bank, "two", **PRUNED).adapter.digest
    ranks = stored(bank, two)
    assert sum(ranks.values()) == 16
    told = api.show(bank, "two")["adapter"]["metrics"]["rank_by_module"]
    assert {module: rank for module, rank in told.items() if rank} == ranks
    assert len(set(ranks.values())) > 1
    assert Bank.open(bank).verify(full=True) == []
    own = {
        "one": probabilities(plain(lab, bank, {one: 1.0}, one), texts),
        "two": probabilities(plain(lab, bank, {one: 1.0, two: 1.0}, two), texts),
    }
    for task, expected in own.items():
        assert answers(bank, texts, task=task, state="learnt") == pytest.approx(expected, abs=2e-5)
    api.compose(bank, ComposeConfig(mode="routed", device="cpu"))
    api.compose(bank, ComposeConfig(mode="merged", merger="svd", name="cut", device="cpu", set=("max_rank=32",)))
    api.compose(bank, ComposeConfig(mode="gated", name="weighed", device="cpu", set=("epochs=1",)))
    routed = api.predict(bank, texts, PredictConfig(composition="routed", device="cpu"))
    assert {each.task for each in routed} <= own.keys()
    for number, each in enumerate(routed):
        assert each.probability == pytest.approx(own[each.task][number], abs=2e-5)
    whole = plain(lab, bank, {one: 1.0, two: 1.0}, two)
    api.export(bank, "two", tmp_path / "two")
    assert answers(bank, texts, task="two", state="learnt") == pytest.approx(probabilities(whole, texts), abs=2e-5)
    assert len(answers(bank, texts, composition="weighed", task="two")) == len(texts)
    assert len(answers(bank, texts, composition="cut", task="two")) == len(texts)


def test_an_adapter_of_which_nothing_is_left_is_refused(lab: Lab, copy) -> None:
    bank = copy("olora", 1)
    with pytest.raises(DivergedError, match=r"variant 'sora' pruned every component") as caught:
        lab.add(bank, "two", variant="sora", set=("sora.threshold=100",))
    assert "not added to the bank" in caught.value.unchanged
    assert len(Bank.open(bank).snapshot().adapters) == 1


def test_ranks_that_differ_are_not_continued(lab: Lab, copy) -> None:
    bank = copy("olora", 0)
    lab.add(bank, "one", **PRUNED)
    with pytest.raises(ConfigError, match=r"whose modules have ranks from \d to \d|adapts other modules"):
        lab.add(bank, "two", strategy="seqlora", r=4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["adalora", "dylora", "lora-drop", "autolora", "alora"])
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_that_takes_a_variant_trains_with_it(
    lab: Lab, copy, texts: list[str], strategy, variant
) -> None:
    """Two tasks in a row; the second one's own state is the sum that its record tells."""
    if reason(strategy=strategy, variant=variant):
        pytest.skip("they do not go together")
    bank = copy("olora", 0)
    for task in ("one", "two"):
        adapter = lab.add(bank, task, strategy=strategy, variant=variant, r=3, learning_rate=2e-2).adapter
    assert Bank.open(bank).verify(full=True) == []
    assert adapter.config["variant"] == variant
    if strategy == "amlora":
        return
    shares = dict.fromkeys((*adapter.context, adapter.digest), 1.0)
    expected = probabilities(plain(lab, bank, shares, adapter.digest), texts)
    assert answers(bank, texts, task="two", state="learnt") == pytest.approx(expected, abs=2e-5)
