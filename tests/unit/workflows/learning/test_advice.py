"""Before a training: too few steps, and a script that the tokenizer spells in bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabank import api
from lorabank.core.config import InitConfig, TrainConfig
from lorabank.core.observer import SilentObserver
from lorabank.training.planning import FEW_STEPS, few_steps, planned_steps
from lorabank.workflows.learning.advice import poor_fit


def test_sixty_rows_and_the_defaults() -> None:
    assert few_steps(48, TrainConfig()) == (
        "12 optimizer steps are few, and a task is seldom learnt in fewer than 50: "
        "--epochs 17 gives 51 steps, --batch-size 3 gives 64"
    )
    assert few_steps(200, TrainConfig()) is None
    assert few_steps(2, TrainConfig(batch_size=1)) == (
        "8 optimizer steps are few, and a task is seldom learnt in fewer than 50: --epochs 25 gives 50 steps"
    )


def test_one_step_is_one() -> None:
    told = few_steps(2, TrainConfig(epochs=1))
    assert told is not None
    assert told.startswith("1 optimizer step is very little, ")


@given(
    st.integers(1, 400),
    st.integers(1, 40),
    st.integers(1, 3),
    st.floats(0.1, 20, allow_nan=False),
)
def test_what_is_proposed_gives_what_is_said(rows: int, batch: int, accumulated: int, epochs: float) -> None:
    config = TrainConfig(epochs=epochs, batch_size=batch, gradient_accumulation_steps=accumulated)
    told = few_steps(rows, config)
    assert (told is None) == (planned_steps(rows, config) >= FEW_STEPS)
    if told is None:
        return
    (more, steps) = re.search(r"--epochs (\d+) gives (\d+) steps", told).groups()  # type: ignore[union-attr]
    assert planned_steps(rows, replace(config, epochs=float(more))) == int(steps) >= FEW_STEPS
    assert planned_steps(rows, replace(config, epochs=float(more) - 1)) < FEW_STEPS
    smaller = re.search(r"--batch-size (\d+) gives (\d+)", told)
    if smaller:
        assert 0 < int(smaller[1]) < batch
        assert planned_steps(rows, replace(config, batch_size=int(smaller[1]))) == int(smaller[2]) >= FEW_STEPS


@pytest.mark.parametrize(("per_token", "told"), [(4.0, False), (1.0, False), (0.67, False), (0.5, True), (0.4, True)])
def test_more_than_one_and_a_half_tokens_a_character(per_token: float, told: bool) -> None:
    assert (poor_fit(per_token) is not None) == told


class Told(SilentObserver):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, message: str) -> None:
        self.notices.append(message)


@pytest.mark.parametrize(("text", "tokens"), [("sun", 1.0), ("痛风治疗", 3.0), ("жар", 2.0)])
def test_a_tokenizer_of_bytes(make_language_model: Any, tmp_path: Path, text: str, tokens: float) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": text * n, "completion": text}) + "\n" for n in range(1, 9)))
    config = TrainConfig(data=str(data), epochs=1, r=2, device="cpu", set=("max_new_tokens=2",), keep_samples=2)
    init = InitConfig(base=str(make_language_model()))
    plan = api.plan_task(tmp_path / "bank", "t", config, init)
    assert plan.tokens["characters_per_token"] == pytest.approx(1 / tokens)
    assert plan.prompts == "put into the base's chat template"
    costs = f"a character of these rows costs {tokens:.1f} tokens, since"
    assert (plan.poor_fit or "").startswith(costs) == (tokens > 1.5)
    told = Told()
    api.add_task(tmp_path / "bank", "t", config, init=init, observer=told)
    assert any(line == plan.few_steps for line in told.notices)
    assert any(line.startswith(costs) for line in told.notices) == (tokens > 1.5)
