"""The selector against its equations, term by term, and its gradient against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.models.gates.attention import Selector
from lorabank.models.mixing.gated import Gated
from lorabank.models.mixing.mixture import Mixture

SHAPE = {"body.layer": (5, 7)}
RANKS = {"a": (2, 3.0, False), "b": (3, 1.0, True), "c": (1, 0.5, False)}


@pytest.fixture
def adapters(make_adapter) -> dict[str, LoraFactors]:
    return {
        name: make_adapter(SHAPE, r, alpha, rslora=rslora, seed=r, dtype=torch.float64)
        for name, (r, alpha, rslora) in RANKS.items()
    }


@pytest.fixture
def stack(adapters) -> AdapterStack:
    return AdapterStack.build(adapters, dtype=torch.float64)


def random_selector(stack: AdapterStack) -> Selector:
    torch.manual_seed(1)
    selector = Selector(stack).double()
    with torch.no_grad():
        for parameter in selector.parameters():
            parameter.normal_()
    return selector


def test_attention_follows_the_equations(adapters, stack) -> None:
    selector = random_selector(stack)
    x = torch.randn(4, 2, 7, dtype=torch.float64)
    factors = stack.modules["body.layer"]
    found = selector.attention("body.layer", factors, x @ factors.A.T).detach()
    assert found.shape == (4, 2, 4)
    u, c, c_zero = (group["body/layer"].detach() for group in (selector.u, selector.c, selector.c_zero))
    for i in range(4):
        for t in range(2):
            z = [math.tanh(float(c_zero[0]))]
            for k, one in enumerate(adapters.values()):
                h = one.delta("body.layer") @ x[i, t]
                z.append(math.tanh(sum(float(u[k, d]) * float(h[d]) for d in range(5)) + float(c[k])))
            total = sum(math.exp(score) for score in z)
            for k, score in enumerate(z):
                assert float(found[i, t, k]) == pytest.approx(math.exp(score) / total, abs=1e-6)


def test_a_new_selector_treats_all_alike(stack) -> None:
    factors = stack.modules["body.layer"]
    found = Selector(stack).double().attention("body.layer", factors, torch.randn(3, 6, dtype=torch.float64))
    torch.testing.assert_close(found, torch.full((3, 4), 0.25, dtype=torch.float64))


def test_attention_in_bfloat16_is_near_that_in_float64(adapters, stack) -> None:
    selector = random_selector(stack)
    x = torch.randn(6, 7, dtype=torch.float64)
    factors = stack.modules["body.layer"]
    exact = selector.attention("body.layer", factors, x @ factors.A.T)
    low = AdapterStack.build(adapters, dtype=torch.bfloat16).modules["body.layer"]
    rough = selector.attention("body.layer", low, x.bfloat16() @ low.A.T)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.double(), exact, rtol=0, atol=0.1)


def test_gradient_equals_finite_differences(stack) -> None:
    selector = random_selector(stack)
    factors = stack.modules["body.layer"]
    h = torch.randn(3, 6, dtype=torch.float64)
    names = [name for name, _ in selector.named_parameters()]

    def attention(*values: torch.Tensor) -> torch.Tensor:
        held = {f"selector.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(_Asks(selector, factors), held, (h,))

    inputs = tuple(parameter.detach().clone().requires_grad_() for parameter in selector.parameters())
    assert torch.autograd.gradcheck(attention, inputs)


class _Asks(nn.Module):
    def __init__(self, selector: Selector, factors: object) -> None:
        super().__init__()
        self.selector = selector
        self.factors = factors

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.selector.attention("body.layer", self.factors, h)


def test_gradient_reaches_the_selector_alone(stack) -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleDict({"layer": nn.Linear(7, 5).double().requires_grad_(False)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body["layer"](x)

    model, selector = Body(), random_selector(stack)
    Mixture(model, stack).attend(selector, stack)
    model(torch.randn(4, 7, dtype=torch.float64)).square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in selector.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    factors = stack.modules["body.layer"]
    assert factors.A.grad is None
    assert factors.B.grad is None


@torch.no_grad()
def test_entered_it_follows_its_parameters_while_they_learn_and_is_kept_when_they_do_not(adapters, stack) -> None:
    """Both against the sum over adapters with delta weights; x of one and of two dimensions before the last."""
    factors, selector = stack.modules["body.layer"], random_selector(stack)
    deltas = [one.delta("body.layer") for one in adapters.values()]

    def expected(x: torch.Tensor) -> torch.Tensor:
        u, c, c_zero = (group["body/layer"] for group in (selector.u, selector.c, selector.c_zero))
        h = torch.stack([x @ delta.T for delta in deltas], -2)
        z = torch.cat([c_zero.expand(*x.shape[:-1], 1), (h * u).sum(-1) + c], -1).tanh().exp()
        return ((z / z.sum(-1, keepdim=True))[..., 1:, None] * h).sum(-2)

    for shape in ((4, 7), (4, 2, 7)):
        x = torch.randn(shape, dtype=torch.float64)
        nothing = torch.zeros(*shape[:-1], 5, dtype=torch.float64)
        learning = Gated(selector.requires_grad_(True), "body.layer", factors, None, 3)
        torch.testing.assert_close(learning.add(nothing.clone(), x), expected(x))
        for parameter in selector.parameters():
            parameter.normal_()
        torch.testing.assert_close(learning.add(nothing.clone(), x), expected(x))
        kept = Gated(selector.requires_grad_(False), "body.layer", factors, None, 3)
        torch.testing.assert_close(kept.add(nothing.clone(), x), expected(x))


def test_l1_is_the_sum_over_the_dense_parameters(stack) -> None:
    selector = random_selector(stack)
    values = selector.u["body/layer"].detach().flatten().tolist()
    assert float(selector.l1().detach()) == pytest.approx(sum(abs(value) for value in values))


def test_tensors_come_back_as_they_were(stack) -> None:
    selector = random_selector(stack)
    stored = selector.tensors()
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
        "u:body.layer": (3, 5),
        "c:body.layer": (3,),
        "c_zero:body.layer": (1,),
    }
    again = Selector(stack).double().load_tensors(stored)
    for name, tensor in again.tensors().items():
        assert torch.equal(tensor, stored[name])


def test_foreign_tensors_are_refused(stack) -> None:
    stored = random_selector(stack).tensors()
    with pytest.raises(KeyError, match=r"u:other"):
        Selector(stack).load_tensors({**stored, "u:other": torch.zeros(1)})
    del stored["c:body.layer"]
    with pytest.raises(KeyError, match=r"c:body\.layer"):
        Selector(stack).load_tensors(stored)


def test_watching_ends_with_the_block(stack) -> None:
    selector, seen = random_selector(stack), []
    x, factors = torch.ones(2, 7, dtype=torch.float64), stack.modules["body.layer"]
    layer = Gated(selector, "body.layer", factors, None, 3)
    with selector.watched(seen):
        layer.add(torch.zeros(2, 5, dtype=torch.float64), x)
    layer.add(torch.zeros(2, 5, dtype=torch.float64), x)
    assert len(seen) == 1
    assert torch.equal(seen[0], selector.attention("body.layer", factors, x @ factors.A.T))
    assert not seen[0].requires_grad
