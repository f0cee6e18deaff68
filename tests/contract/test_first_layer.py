"""Adapters in the upper layers only: what is recorded, what is refused, and scores that stay the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lorabank import api
from lorabank.core.config import EvalConfig, InitConfig
from lorabank.core.errors import ConfigError
from lorabank.models.mixing import runtime

TASKS = ("one", "two")


@pytest.fixture
def bank(lab, copy) -> Path:
    path = copy("olora", 0)
    for task in TASKS:
        lab.add(path, task, first_layer=1)
    return path


def test_the_upper_layer_is_adapted_and_scores_are_those_of_full_passes(
    bank: Path, adapters, tmp_path: Path, monkeypatch
) -> None:
    for adapter in adapters(bank):
        assert adapter.config["first_layer"] == 1
        assert {name.split("layer.")[1][0] for name in adapter.target_modules} == {"1"}
    whole = Path(shutil.copytree(bank, tmp_path / "whole"))
    asked = EvalConfig(forgetting_matrix=True, forward_transfer=True, device="cpu")
    made = []
    prefix = runtime.FrozenPrefix
    monkeypatch.setattr(runtime, "FrozenPrefix", lambda *args: made.append(prefix(*args)))
    (reused,) = api.evaluate(bank, asked)
    monkeypatch.setattr(runtime, "FrozenPrefix", lambda *_: None)
    (full,) = api.evaluate(whole, asked)
    assert len(made) == 1
    assert reused == full
    assert reused.computed == 4  # of six cells: add-task scored two


def test_a_plan_refuses_a_layer_that_is_not_there(lab, copy) -> None:
    settings = lab.settings("one", first_layer=2)
    with pytest.raises(ConfigError, match=r"first_layer 2 leaves no module .* the model has 2 layers") as caught:
        api.plan_task(copy("olora", 0), "one", settings, InitConfig(base=str(lab.base)))
    assert caught.value.hint == "--first-layer 1"
