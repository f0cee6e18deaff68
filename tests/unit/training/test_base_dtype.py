"""A frozen base in bfloat16 under an adapter in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lorabank.training.layers.layer import LoraLinear
from lorabank.training.trainer import AdapterTrainer

LEARNS = {"epochs": 40, "learning_rate": 1e-2, "batch_size": 8, "lora_alpha": 8.0, "lora_dropout": 0.0}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[AdapterTrainer]:
    """The trainers that were made."""
    made: list[AdapterTrainer] = []
    original = AdapterTrainer.__init__

    def init(self: AdapterTrainer, **kwargs: Any) -> None:
        original(self, **kwargs)
        made.append(self)

    monkeypatch.setattr(AdapterTrainer, "__init__", init)
    return made


@pytest.mark.parametrize("base_dtype", ["auto", "bfloat16", "float32"])
def test_only_the_base_is_in_its_dtype(train, seen, base_dtype: str) -> None:
    trained = train(epochs=1, base_dtype=base_dtype)
    model, optimizer = seen[0].model, seen[0].optimizer.optimizer
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16 if base_dtype == "bfloat16" else torch.float32}
    moved = [p for p in model.parameters() if p.requires_grad]
    kept = [value for entry in optimizer.state.values() for value in entry.values()]
    stored = [*trained.factors.A.values(), *trained.factors.B.values(), *trained.head.values()]
    assert {tensor.dtype for tensor in (*moved, *kept, *stored)} == {torch.float32}


def losses(train, recorder, **config: Any) -> list[float]:
    observer = recorder()
    train(observer, work=str(len(config)) + config["base_dtype"], **config)
    return [values["loss"] for values in observer.values]


@pytest.mark.by_turns
@pytest.mark.parametrize(
    "method",
    [{}, {"variant": "dora"}, {"variant": "relora"}, {"start": "pissa"}],
    ids=["lora", "dora", "relora", "pissa"],
)
def test_the_loss_is_that_of_a_float32_base_but_for_rounding(train, recorder, method: dict[str, str]) -> None:
    """Rounding to eight bits moves the first losses by less than 2^-6 of themselves, and it learns as well."""
    exact, rounded = (
        losses(train, recorder, base_dtype=dtype, **LEARNS, **method) for dtype in ("float32", "bfloat16")
    )
    assert exact != rounded
    assert rounded[:3] == pytest.approx(exact[:3], rel=2**-6)
    assert sum(rounded[-6:]) < 0.4 * sum(rounded[:6])


def test_small_steps_are_not_lost(train, recorder) -> None:
    """A step of 1e-5 is below the resolution of bfloat16 next to a factor of 0.1; float32 factors keep it."""
    trained = train(base_dtype="bfloat16", epochs=1, learning_rate=1e-5, lora_dropout=0.0)
    moved = torch.cat([b.flatten() for b in trained.factors.B.values()])
    assert 0 < float(moved.abs().max()) < 1e-4


@pytest.mark.parametrize("base_dtype", ["bfloat16", "float32"])
def test_query_and_value_share_their_input_in_16_bits(train, seen, base_dtype: str) -> None:
    train(epochs=1, base_dtype=base_dtype)
    layers = [module for module in seen[0].model.modules() if isinstance(module, LoraLinear)]
    assert len(layers) == 4
    assert all((layer.shared is not None) == (base_dtype == "bfloat16") for layer in layers)


def test_the_factors_that_answer_are_those_of_the_last_step(train, seen) -> None:
    train(epochs=1, base_dtype="bfloat16")
    layers = [module for module in seen[0].model.modules() if getattr(module, "shadow", None) is not None]
    assert len(layers) == 4
    for layer in layers:
        for factor, copy in zip((layer.lora_A, layer.lora_B), layer.shadow, strict=True):
            assert isinstance(factor, nn.Parameter)
            assert torch.equal(factor.detach().bfloat16(), copy)
