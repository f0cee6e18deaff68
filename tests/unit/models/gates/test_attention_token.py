"""The selector against its equations, term by term, and its gradient against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.states import StateStack
from lorabank.models.gates.attention_token import Selector
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
def members(adapters) -> StateStack:
    return StateStack.apart(AdapterStack.build(adapters, dtype=torch.float64))


def random_selector(members: StateStack) -> Selector:
    torch.manual_seed(1)
    selector = Selector(members).double()
    with torch.no_grad():
        for parameter in selector.parameters():
            parameter.normal_()
    return selector


def test_attention_follows_the_equations(adapters, members) -> None:
    selector = random_selector(members)
    x = torch.randn(4, 2, 7, dtype=torch.float64)
    factors = members.factors("body.layer")
    found = selector.attention("body.layer", members, x @ factors.A.T).detach()
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


def test_a_state_has_as_much_of_an_adapter_as_its_row_says(adapters) -> None:
    """``z_k = tanh(u_k . sum_j M_kj s_j B_j A_j x + c_k)`` for a matrix of other numbers than 0 and 1."""
    matrix = torch.tensor([[0.5, 0.0, -2.0], [1.0, 3.0, 0.0]])
    members = StateStack(AdapterStack.build(adapters, dtype=torch.float64), matrix)
    selector, x = random_selector(members), torch.randn(4, 7, dtype=torch.float64)
    found = selector.attention("body.layer", members, x @ members.factors("body.layer").A.T)
    deltas = torch.stack([one.delta("body.layer") for one in adapters.values()]).double()
    h = torch.einsum("kj,joi,ni->nko", matrix.double(), deltas, x)
    u, c, c_zero = (group["body/layer"] for group in (selector.u, selector.c, selector.c_zero))
    z = torch.cat([c_zero.expand(4, 1), (h * u).sum(-1) + c], 1)
    torch.testing.assert_close(found, torch.tanh(z).softmax(-1))


def test_a_new_selector_treats_all_alike(members) -> None:
    found = Selector(members).double().attention("body.layer", members, torch.randn(3, 6, dtype=torch.float64))
    torch.testing.assert_close(found, torch.full((3, 4), 0.25, dtype=torch.float64))


def test_attention_in_bfloat16_is_near_that_in_float64(adapters, members) -> None:
    selector = random_selector(members)
    x = torch.randn(6, 7, dtype=torch.float64)
    factors = members.factors("body.layer")
    exact = selector.attention("body.layer", members, x @ factors.A.T)
    low = StateStack.apart(AdapterStack.build(adapters, dtype=torch.bfloat16))
    rough = selector.attention("body.layer", low, x.bfloat16() @ low.factors("body.layer").A.T)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.double(), exact, rtol=0, atol=0.1)


def test_gradient_equals_finite_differences(members) -> None:
    selector = random_selector(members)
    h = torch.randn(3, 6, dtype=torch.float64)
    names = [name for name, _ in selector.named_parameters()]

    def attention(*values: torch.Tensor) -> torch.Tensor:
        held = {f"selector.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(_Asks(selector, members), held, (h,))

    inputs = tuple(parameter.detach().clone().requires_grad_() for parameter in selector.parameters())
    assert torch.autograd.gradcheck(attention, inputs)


class _Asks(nn.Module):
    def __init__(self, selector: Selector, members: StateStack) -> None:
        super().__init__()
        self.selector = selector
        self.members = members

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.selector.attention("body.layer", self.members, h)


def test_gradient_reaches_the_selector_alone(members) -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleDict({"layer": nn.Linear(7, 5).double().requires_grad_(False)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body["layer"](x)

    model, selector = Body(), random_selector(members)
    Mixture(model, members.stack).attend(selector, members)
    model(torch.randn(4, 7, dtype=torch.float64)).square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in selector.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    factors = members.factors("body.layer")
    assert factors.A.grad is None
    assert factors.B.grad is None


@torch.no_grad()
def test_entered_it_follows_its_parameters_while_they_learn_and_is_kept_when_they_do_not(adapters, members) -> None:
    """Both against the sum over adapters with delta weights; x of one and of two dimensions before the last."""
    selector = random_selector(members)
    deltas = [one.delta("body.layer") for one in adapters.values()]

    def expected(x: torch.Tensor) -> torch.Tensor:
        u, c, c_zero = (group["body/layer"] for group in (selector.u, selector.c, selector.c_zero))
        h = torch.stack([x @ delta.T for delta in deltas], -2)
        z = torch.cat([c_zero.expand(*x.shape[:-1], 1), (h * u).sum(-1) + c], -1).tanh().exp()
        return ((z / z.sum(-1, keepdim=True))[..., 1:, None] * h).sum(-2)

    for shape in ((4, 7), (4, 2, 7)):
        x = torch.randn(shape, dtype=torch.float64)
        nothing = torch.zeros(*shape[:-1], 5, dtype=torch.float64)
        learning = Gated(selector.requires_grad_(True), "body.layer", members)
        torch.testing.assert_close(learning.add(nothing.clone(), x), expected(x))
        for parameter in selector.parameters():
            parameter.normal_()
        torch.testing.assert_close(learning.add(nothing.clone(), x), expected(x))
        kept = Gated(selector.requires_grad_(False), "body.layer", members)
        torch.testing.assert_close(kept.add(nothing.clone(), x), expected(x))


def test_l1_is_the_sum_over_the_dense_parameters(members) -> None:
    selector = random_selector(members)
    values = selector.u["body/layer"].detach().flatten().tolist()
    assert float(selector.l1().detach()) == pytest.approx(sum(abs(value) for value in values))


def test_tensors_come_back_as_they_were(members) -> None:
    selector = random_selector(members)
    stored = selector.tensors()
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
        "u:body.layer": (3, 5),
        "c:body.layer": (3,),
        "c_zero:body.layer": (1,),
    }
    again = Selector(members).double().load_tensors(stored)
    for name, tensor in again.tensors().items():
        assert torch.equal(tensor, stored[name])


def test_foreign_tensors_are_refused(members) -> None:
    stored = random_selector(members).tensors()
    with pytest.raises(KeyError, match=r"u:other"):
        Selector(members).load_tensors({**stored, "u:other": torch.zeros(1)})
    del stored["c:body.layer"]
    with pytest.raises(KeyError, match=r"c:body\.layer"):
        Selector(members).load_tensors(stored)


def test_watching_ends_with_the_block(members) -> None:
    selector, seen = random_selector(members), []
    x, factors = torch.ones(2, 7, dtype=torch.float64), members.factors("body.layer")
    layer = Gated(selector, "body.layer", members)
    with selector.watched(seen):
        layer.add(torch.zeros(2, 5, dtype=torch.float64), x)
    layer.add(torch.zeros(2, 5, dtype=torch.float64), x)
    assert len(seen) == 1
    assert torch.equal(seen[0], selector.attention("body.layer", members, x @ factors.A.T))
    assert not seen[0].requires_grad
