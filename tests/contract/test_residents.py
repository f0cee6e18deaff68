"""A bank whose adapters do not all fit into memory answers as one whose adapters do, and reads what it needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig, PredictConfig
from lorabank.core.errors import ConfigError, DamagedError

ONE_ADAPTER = "5KiB"  # query and value of two layers, rank 2 in 32 dimensions: 4 KiB


@pytest.fixture
def bank(copy) -> Path:
    """Three adapters that stand alone, with a router and two compositions that need all of them."""
    bank: Path = copy("isolated", 3)
    for name, mode, more in (("routed", "prototype", {"router": "gaussian"}), ("sum", "manual", {})):
        api.compose(
            bank, ComposeConfig(mode=mode, name=name, set=("kmeans.clusters_per_task=2",), device="cpu", **more)
        )
    api.compose(bank, ComposeConfig(mode="attention", name="attended", set=("epochs=1",), device="cpu"))
    return bank


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests of the adapters that are read, in order."""
    digests: list[str] = []
    verified = Bank.verified_adapter
    monkeypatch.setattr(Bank, "verified_adapter", lambda self, d: (digests.append(d), verified(self, d))[1])
    return digests


def predict(bank: Path, texts: list[str], composition: str, **more: Any) -> Any:
    task = None if composition == "routed" else "one"
    config = PredictConfig(composition=composition, task=task, device="cpu", batch_size=5, **more)
    return api.predict(bank, texts, config)


def flip(file: Path) -> None:
    """A bit of the last tensor: of the head."""
    file.chmod(0o600)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    """No header that can be read."""
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:40])


def garble(file: Path) -> None:
    """A config without its alpha."""
    config = file.with_name("adapter_config.json")
    config.chmod(0o600)
    config.write_bytes(config.read_bytes().replace(b"lora_alpha", b"lora_blpha"))


DAMAGES = [flip, cut, Path.unlink, garble]


def weights(bank: Path, task: str) -> Path:
    """The file with a task's factors and head."""
    return bank / "adapters" / Bank.open(bank).snapshot().adapter_of(task).digest / "adapter_model.safetensors"


@pytest.mark.parametrize("composition", ["routed", "sum"])
def test_predictions_are_the_same(bank, texts, composition) -> None:
    many = texts * 3
    expected = predict(bank, many, composition)
    found = predict(bank, many, composition, max_resident=ONE_ADAPTER)
    assert len({one.task for one in expected}) > (1 if composition == "routed" else 0)
    for ours, whole in zip(found, expected, strict=True):
        assert (ours.text, ours.label, ours.task, ours.adapters) == (
            whole.text, whole.label, whole.task, whole.adapters
        )  # fmt: skip
        assert ours.probability == pytest.approx(whole.probability, abs=1e-5)


def test_a_routed_text_reads_the_adapters_that_answer_it(bank, texts, read) -> None:
    (one,) = predict(bank, texts[:1], "routed")
    assert read == [Bank.open(bank).snapshot().adapter_of(one.task).digest]


def test_each_adapter_is_read_once_however_the_texts_are_mixed(bank, texts, read) -> None:
    found = predict(bank, texts * 4, "routed", max_resident=ONE_ADAPTER)
    assert len(read) == len({one.task for one in found}) > 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_no_matter_to_texts_that_others_answer(bank, texts, damage) -> None:
    answers = predict(bank, texts, "routed")
    spoilt = answers[0].task
    kept = [one.text for one in answers if one.task != spoilt]
    damage(weights(bank, spoilt))
    assert [one.task for one in predict(bank, kept, "routed")] == [one.task for one in answers if one.task != spoilt]
    with pytest.raises(DamagedError):
        predict(bank, [answers[0].text], "routed")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_head_never_answers_though_its_adapter_is_not_asked(copy, texts, damage) -> None:
    """One adapter that goes on: the newest one answers for the first task, with the first task's head."""
    bank: Path = copy("seqlora", 2)
    damage(weights(bank, "one"))
    with pytest.raises(DamagedError, match="adapter_"):
        api.predict(bank, texts, PredictConfig(task="one", device="cpu"))
    with pytest.raises(DamagedError, match="adapter_"):
        api.evaluate(bank, EvalConfig(forgetting_matrix=True, batch_size=3, device="cpu"))
    assert api.predict(bank, texts, PredictConfig(task="two", device="cpu"))


def test_the_matrix_is_the_same(bank, tmp_path) -> None:
    api.compose(bank, ComposeConfig(mode="manual", name="other", set=("weights=one=1,two=0.5,three=1",), device="cpu"))
    whole = Path(shutil.copytree(bank, tmp_path / "whole"))
    settings: dict[str, Any] = {"compositions": ("routed", "other"), "forgetting_matrix": True, "batch_size": 5}
    found = api.evaluate(bank, EvalConfig(max_resident=ONE_ADAPTER, device="cpu", **settings))
    expected = api.evaluate(whole, EvalConfig(device="cpu", **settings))
    assert [report.values for report in found] == [report.values for report in expected]
    assert all(report.computed == one.computed > 0 for report, one in zip(found, expected, strict=True))


def test_what_must_lie_in_memory_together_is_refused_with_the_size_it_needs(bank, texts) -> None:
    with pytest.raises(ConfigError, match="3 adapters that answer together need") as caught:
        predict(bank, texts, "attended", max_resident=ONE_ADAPTER)
    assert caught.value.hint is not None
    assert predict(bank, texts, "attended", max_resident=caught.value.hint.split()[1])
    with pytest.raises(ConfigError, match="an adapter needs"):
        predict(bank, texts, "routed", max_resident="1KB")
    with pytest.raises(ConfigError, match="is not a size"):
        predict(bank, texts, "routed", max_resident="much")
