"""The trainable layer is PEFT's, and folding the past in changes no answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorabank.algebra.stack import AdapterStack
from lorabank.training.layers.layer import fold
from lorabank.training.layers.shadows import Shadows
from tests.unit.training.plain import plain_layer, plain_layers

SHAPES = {"0": (6, 8), "2": (5, 6)}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5, bias=False))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rslora", [False, True])
def test_layer_and_gradients_are_those_of_peft(x, rslora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=3, lora_alpha=5, target_modules=["0", "2"], lora_dropout=0.0, use_rslora=rslora)
    reference = get_peft_model(network(), config)
    model = network()
    layers = plain_layers(model, ["0", "2"], r=3, lora_alpha=5, use_rslora=rslora)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, layer in layers.items():
            theirs = reference.get_submodule(f"base_model.model.{name}")
            theirs.lora_A["default"].weight.copy_(layer.lora_A)
            layer.lora_B.normal_()
            theirs.lora_B["default"].weight.copy_(layer.lora_B)
    found, expected = model(x), reference(x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    found.square().sum().backward()
    expected.square().sum().backward()
    for name, layer in layers.items():
        theirs = reference.get_submodule(f"base_model.model.{name}")
        torch.testing.assert_close(layer.lora_A.grad, theirs.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.lora_B.grad, theirs.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-5)
        assert layer.base.weight.grad is None


def test_initialisation_is_that_of_peft() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    layer = plain_layer(nn.Linear(64, 48), 8, 1.0)
    base = nn.Sequential(nn.Linear(64, 48))
    torch.manual_seed(5)
    nn.Linear(64, 48)  # the same draws before
    theirs = get_peft_model(base, LoraConfig(r=8, target_modules=["0"])).get_submodule("base_model.model.0")
    assert not layer.lora_B.any()
    assert not theirs.lora_B["default"].weight.any()
    # uniform on +-1/sqrt(d_in), PEFT's too
    for a in (layer.lora_A, theirs.lora_A["default"].weight):
        assert a.shape == (8, 64)
        assert 0.9 / 8 < float(a.detach().abs().max()) <= 1 / 8
        assert float(a.detach().std()) == pytest.approx(1 / 8 / 3**0.5, rel=0.1)


def test_a_new_adapter_changes_nothing_yet(x) -> None:
    model = network()
    expected = model(x)
    plain_layers(model, ["0", "2"], r=3, lora_alpha=5, dropout=0.5)
    assert torch.equal(model(x), expected)


def test_dropout_falls_on_the_adapter_alone_and_only_in_training() -> None:
    layer = plain_layer(nn.Linear(500, 2), 1, 1.0, 0.25)
    with torch.no_grad():
        layer.lora_A.fill_(1.0)
        layer.lora_B.fill_(1.0)
        layer.base.weight.zero_()
        layer.base.bias.fill_(7.0)
    x = torch.ones(200, 500)
    torch.testing.assert_close(layer.eval()(x), torch.full((200, 2), 507.0))
    torch.manual_seed(0)
    dropped = layer.train()(x).detach() - 7.0
    kept = dropped * 0.75  # a whole number of inputs stays, each scaled by 1 / (1 - p)
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-3)
    assert float(kept.mean()) == pytest.approx(375, rel=0.02)
    layer.lora_B.data.zero_()
    assert torch.equal(layer(x), torch.full((200, 2), 7.0))  # nothing of the base is dropped


@torch.no_grad()
def test_folded_past_and_new_adapter_are_the_unfolded_sum(make_adapter, x) -> None:
    past = {
        "a": make_adapter(SHAPES, 2, 1.0, seed=1),
        "b": make_adapter({"2": SHAPES["2"]}, 3, 2.0, rslora=True, seed=2),
    }
    new = make_adapter(SHAPES, 4, 3.0, seed=3)
    model = network()
    fold(model, AdapterStack.build(past))
    plain_layers(model, ["0", "2"], r=4, lora_alpha=3.0, initial=new)
    plain = network()
    expected = x
    for name, module in plain.named_children():
        y = module(expected)
        for factors in (*past.values(), new):
            if name in factors.A:
                y = y + factors.scaling[name] * (expected @ factors.A[name].T) @ factors.B[name].T
        expected = y
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_going_on_with_another_scaling_keeps_the_function(make_adapter, x) -> None:
    old = make_adapter(SHAPES, 2, 8.0, rslora=True, seed=1)
    model = network()
    layers = plain_layers(model, ["0", "2"], r=2, lora_alpha=1.0, initial=old)
    for name, layer in layers.items():
        torch.testing.assert_close(layer.scaling * layer.lora_B @ layer.lora_A, old.delta(name))
        assert layer.scaling == 0.5


def test_the_layer_in_a_bfloat16_model_keeps_its_factors_in_float32(x) -> None:
    layer = plain_layer(nn.Linear(8, 6).bfloat16(), 2, 1.0)
    with torch.no_grad():
        layer.lora_B.normal_()
    assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
    shadows = Shadows([layer], torch.bfloat16)
    with torch.no_grad():
        layer.lora_A += 1
    shadows()
    out = layer(x.bfloat16()).detach()
    assert out.dtype == torch.bfloat16
    W, b = layer.base.weight.double(), layer.base.bias.double()
    expected = x.bfloat16().double() @ (W + layer.lora_B.double() @ layer.lora_A.double()).mT.detach() + b
    assert float((out.double() - expected).norm() / expected.norm()) < 2**-7


@torch.no_grad()
def test_a_past_and_a_shift_are_rounded_once_into_a_bfloat16_weight(make_adapter) -> None:
    stacks = [AdapterStack.build({str(k): make_adapter(SHAPES, 2, 3.0, seed=k)}) for k in range(3)]
    model = network().bfloat16()
    fold(model, *stacks)
    for name, module in network().named_children():
        if name in SHAPES:
            exact = module.weight.bfloat16().double()
            for stack in stacks:
                factors = stack.modules[name]
                exact = exact + (factors.B.double() * factors.scale.double()) @ factors.A.double()
            assert torch.equal(model.get_submodule(name).weight, exact.float().bfloat16())
