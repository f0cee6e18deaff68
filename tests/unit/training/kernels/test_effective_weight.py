"""The adapter inside the weight, against the layer written out for autograd and against training without it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.algebra.stack import AdapterStack
from lorabank.training import run
from lorabank.training.kernels.effective_weight import effective_linear
from lorabank.training.layers.layer import EffectiveWeights, LoraLinear, pays
from tests.unit.training.plain import plain_layer

SCALE = 1.7


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(40,), (9, 40), (3, 5, 40)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_autograd(shape: tuple[int, ...], bias: bool) -> None:
    weight, b = normal(24, 40, seed=1), normal(24, seed=2) if bias else None
    results = []
    for form in ("effective", "written out"):
        x, A, B = (t.requires_grad_() for t in (normal(*shape, seed=3), normal(4, 40, seed=4), normal(24, 4, seed=5)))
        if form == "effective":
            out = effective_linear(x, (weight + SCALE * B @ A).detach(), b, A, B, SCALE)
        else:
            out = F.linear(x, weight, b) + SCALE * F.linear(F.linear(x, A), B)
        (out * normal(*out.shape, seed=6)).sum().backward()
        results.append((out.detach(), x.grad, A.grad, B.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_only_gradients_that_are_asked_for_are_made() -> None:
    x, A, B = normal(9, 40, seed=3), normal(4, 40, seed=4), normal(24, 4, seed=5).requires_grad_()
    effective_linear(x, normal(24, 40, seed=1), None, A, B, SCALE).sum().backward()
    assert x.grad is None
    assert A.grad is None
    assert B.grad is not None


def layer(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> LoraLinear:
    torch.manual_seed(0)
    made = plain_layer(nn.Linear(40, 24, dtype=dtype), 4, SCALE, dropout)
    nn.init.normal_(made.lora_B)
    return made


def test_it_pays_for_many_tokens_without_dropout_in_float32() -> None:
    assert pays(layer(), tokens=16)  # 16 * (40 + 24) > 40 * 24
    assert not pays(layer(), tokens=15)
    assert not pays(layer(dropout=0.1), tokens=1000)
    assert not pays(layer(dtype=torch.bfloat16), tokens=1000)


def test_a_layer_answers_the_same_and_follows_its_factors() -> None:
    plain, folded = layer(), layer()
    refresh = EffectiveWeights([folded], tokens=100)
    x = torch.randn(7, 40, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        torch.testing.assert_close(folded(x), plain(x), rtol=1e-5, atol=1e-5)
        for one in (plain, folded):
            one.lora_A.data.mul_(-2)
            one.lora_B.data.add_(0.5)
        refresh()
    assert "effective" not in folded.state_dict()


SETTINGS = {"lora_dropout": 0.0, "epochs": 3, "save_steps": 2, "learning_rate": 1e-2}


@pytest.mark.parametrize("strategy", ["olora", "olora-projected"])
def test_a_training_ends_where_it_ends_without_it(
    train, factors_of, make_adapter, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """Also where every step is followed by a projection, after which the weights must be made again."""
    attention = [f"bert.encoder.layer.{i}.attention.self.{part}" for i in range(2) for part in ("query", "value")]
    earlier = AdapterStack.build({"a": make_adapter(dict.fromkeys(attention, (32, 32)), 12, 1.0, seed=1)})
    past = {"earlier": earlier, "context": ("a",)}
    made: list[int] = []

    class Counted(EffectiveWeights):
        def __call__(self) -> None:
            super().__call__()
            made.append(len(self.layers))

    monkeypatch.setattr(run, "EffectiveWeights", Counted)
    with_it = factors_of(train(work="with", strategy=strategy, **past, **SETTINGS))
    assert made[0] > 0
    assert len(made) == 1 + 1 + 18, "when it is made, when training begins, after each step"
    monkeypatch.setattr("lorabank.training.layers.layer.pays", lambda layer, tokens: False)
    without = factors_of(train(work="without", strategy=strategy, **past, **SETTINGS))
    assert with_it.keys() == without.keys()
    for name, found in with_it.items():
        torch.testing.assert_close(found, without[name], rtol=1e-3, atol=1e-4)


def test_a_resumed_run_gives_the_same_bytes(train, factors_of, recorder) -> None:
    whole = factors_of(train(work="whole", **SETTINGS))
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=9), work="cut", **SETTINGS)
    resumed = factors_of(train(work="cut", resume=True, **SETTINGS))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
