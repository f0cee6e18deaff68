"""AM-LoRA online: forward pass and gradients against the equations term by term, and against the finished mixture."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.states import StateStack
from lorabank.models.gates.attention_token import Selector
from lorabank.models.mixing.mixture import Mixture
from lorabank.training.layers.layer import LoraLinear
from lorabank.training.online_attention import (
    SELECTOR,
    AttendedLoraLinear,
    SelectorL1,
    attach_attended_adapter,
    warm_start,
)
from tests.unit.training.plain import context_of, plain

SHAPES = {"0": (6, 8), "2": (5, 6), "4": (3, 5)}
TARGETS = ("0", "2")
"""Of the three modules the first adapter has 0 and 4, the second all, and the new one 0 and 2."""


class Network(nn.Module):
    """Modules with tanh between them."""

    def __init__(self, **modules: nn.Linear) -> None:
        super().__init__()
        self._order = list(modules)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for name in self._order:
            x = self.get_submodule(name)(x)
            x = x if name == self._order[-1] else torch.tanh(x)
        return x


def network() -> Network:
    torch.manual_seed(0)
    modules = {name: nn.Linear(d_in, d_out, bias=name != "2") for name, (d_out, d_in) in SHAPES.items()}
    return Network(**modules).requires_grad_(False)


@pytest.fixture
def earlier(make_adapter) -> dict[str, LoraFactors]:
    some = {name: SHAPES[name] for name in ("0", "4")}
    return {
        "a": make_adapter(some, 2, 1.0, seed=1),
        "b": make_adapter(SHAPES, 3, 2.0, rslora=True, seed=2),
    }


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(1))


def attach(model: nn.Module, earlier: dict[str, LoraFactors], **settings) -> tuple[dict[str, LoraLinear], Selector]:
    new = plain(context_of(model, TARGETS, r=2, lora_alpha=3.0)).factors()
    return attach_attended_adapter(model, new, AdapterStack.build(earlier), **({"dropout": 0.0} | settings))


def randomise(layers: dict[str, LoraLinear], selector: Selector) -> None:
    torch.manual_seed(7)
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_B.normal_()
        for parameter in selector.parameters():
            parameter.normal_()


def by_the_equations(
    plain: Network, x: Tensor, earlier: dict[str, LoraFactors], new: LoraFactors, stored: dict[str, Tensor]
) -> Tensor:
    """Each delta weight formed, each score a dot product over d_out."""
    for name, module in plain.named_children():
        y = module(x)
        h = [x @ one.delta(name).T if name in one.A else torch.zeros_like(y) for one in (*earlier.values(), new)]
        u, c = stored[f"u:{name}"], stored[f"c:{name}"]
        z = [stored[f"c_zero:{name}"].expand(*y.shape[:-1])]
        z += [(h[k] * u[k]).sum(-1) + c[k] for k in range(3)]
        weights = [torch.exp(torch.tanh(score)) for score in z]
        for k in range(3):
            y = y + (weights[k + 1] / sum(weights))[..., None] * h[k]
        x = torch.tanh(y)
    return y


def test_output_and_gradients_are_those_of_the_equations(earlier, x) -> None:
    model = network()
    layers, selector = attach(model, earlier)
    randomise(layers, selector)
    found = model(x)
    found.square().sum().backward()

    new = LoraFactors(
        {name: layer.lora_A.detach().double().requires_grad_() for name, layer in layers.items()},
        {name: layer.lora_B.detach().double().requires_grad_() for name, layer in layers.items()},
        dict.fromkeys(layers, 1.5),
    )
    stored = {name: tensor.double().requires_grad_() for name, tensor in selector.tensors().items()}
    past = {
        name: LoraFactors(
            {m: A.double() for m, A in one.A.items()}, {m: B.double() for m, B in one.B.items()}, one.scaling
        )
        for name, one in earlier.items()
    }
    expected = by_the_equations(network().double(), x.double(), past, new, stored)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    expected.square().sum().backward()
    for name, layer in layers.items():
        torch.testing.assert_close(layer.lora_A.grad.double(), new.A[name].grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(layer.lora_B.grad.double(), new.B[name].grad, rtol=1e-3, atol=1e-3)
    for kind, group in (("u", selector.u), ("c", selector.c), ("c_zero", selector.c_zero)):
        for name, parameter in group.items():
            assert bool(parameter.grad.any())
            torch.testing.assert_close(parameter.grad.double(), stored[f"{kind}:{name}"].grad, rtol=1e-3, atol=1e-3)


def test_only_the_new_factors_and_the_selector_train(earlier, x) -> None:
    model = network()
    stack = AdapterStack.build(earlier)
    before = {name: (factors.A.clone(), factors.B.clone()) for name, factors in stack.modules.items()}
    new = plain(context_of(model, TARGETS, r=2, lora_alpha=3.0)).factors()
    layers, selector = attach_attended_adapter(model, new, stack, dropout=0.0)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    wanted = [*selector.parameters(), *(p for layer in layers.values() for p in (layer.lora_A, layer.lora_B))]
    assert trained == {id(parameter) for parameter in wanted}
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in names if name.startswith(f"{SELECTOR}.")} == {
        f"{SELECTOR}.{kind}.{module}" for kind in ("u", "c", "c_zero") for module in SHAPES
    }
    optimizer = torch.optim.Adam(wanted, lr=0.05)
    target = torch.ones(4, 2, 3)
    losses = []
    for _ in range(60):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    for name, factors in stack.modules.items():
        assert torch.equal(factors.A, before[name][0])
        assert torch.equal(factors.B, before[name][1])
    fresh = network()
    for name in SHAPES:
        assert torch.equal(model.get_submodule(name).base.weight, fresh.get_submodule(name).weight)


@torch.no_grad()
def test_what_was_trained_is_what_the_mixture_answers(earlier, x) -> None:
    model = network()
    layers, selector = attach(model, earlier, dropout=0.5)
    randomise(layers, selector)
    new = LoraFactors(
        {name: layer.lora_A.detach() for name, layer in layers.items()},
        {name: layer.lora_B.detach() for name, layer in layers.items()},
        {name: layer.scaling for name, layer in layers.items()},
    )
    stack = AdapterStack.build({**earlier, "new": new})
    finished = network()
    mixture = Mixture(finished, stack)
    members = StateStack.apart(stack)
    mixture.attend(Selector(members).load_tensors(selector.tensors()), members)
    torch.testing.assert_close(model.eval()(x), finished(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_new_selector_gives_every_slot_the_same(earlier, x) -> None:
    """B is zero: each module adds the plain sum of the earlier adapters, a quarter of each."""
    model = network()
    attach(model, earlier)
    expected = x
    for name, module in network().named_children():
        y = module(expected)
        for one in earlier.values():
            if name in one.A:
                y = y + 0.25 * expected @ one.delta(name).T
        expected = y if name == "4" else torch.tanh(y)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_dropout_falls_on_the_new_adapter_alone(earlier) -> None:
    some = {"2": LoraFactors({"2": torch.ones(1, 6)}, {"2": torch.ones(5, 1)}, {"2": 1.0})}
    model = Network(**{"2": nn.Linear(6, 5)})
    new = plain(context_of(model, ["2"], r=1, lora_alpha=1.0)).factors()
    layers, _ = attach_attended_adapter(model, new, AdapterStack.build(some), dropout=0.5)
    x = torch.ones(50, 6)
    model.train()
    answers = model(x)  # B is zero, so the new adapter adds nothing
    torch.testing.assert_close(answers, answers[:1].expand_as(answers))
    with torch.no_grad():
        layers["2"].lora_A.fill_(1.0)
        layers["2"].lora_B.fill_(1.0)
    spread = (model(x) - model(x)).abs().max()
    assert float(spread.detach()) > 0.1
    model.eval()
    assert torch.equal(model(x), model(x))


def test_a_convolution_drops_inputs_of_the_new_adapter_alone() -> None:
    def ones(B: float) -> LoraFactors:
        return LoraFactors({"2": torch.ones(1, 6)}, {"2": torch.full((5, 1), B)}, {"2": 1.0})

    spreads = []
    for B in (0.0, 1.0):
        model = nn.Module()
        model.add_module("2", nn.Conv1d(3, 5, 2))
        layers, _ = attach_attended_adapter(model, ones(B), AdapterStack.build({"a": ones(1.0)}), dropout=0.5)
        answers = layers["2"].train()(torch.ones(50, 3, 4))
        spreads.append(float(answers.std(0).max().detach()))
        assert float(layers["2"].eval()(torch.ones(50, 3, 4)).std(0).max().detach()) < 1e-6
    assert spreads[0] < 1e-6
    assert spreads[1] > 0.1


def test_the_l1_penalty_is_on_the_dense_parameters(earlier) -> None:
    layers, selector = attach(network(), earlier)
    randomise(layers, selector)
    penalty = SelectorL1(selector)
    value = penalty([])
    total = sum(abs(entry) for u in selector.u.values() for entry in u.detach().flatten().tolist())
    assert float(value.detach()) == pytest.approx(total, rel=1e-5)
    value.backward()
    for name in SHAPES:
        assert torch.equal(selector.u[name].grad, selector.u[name].detach().sign())
        assert selector.c[name].grad is None
    assert layers["0"].lora_A.grad is None


def test_a_warm_start_takes_over_what_the_earlier_selector_knew(earlier, make_adapter) -> None:
    """The earlier selector knew b and an adapter that is gone since, on modules 0 and 2."""
    known = {name: SHAPES[name] for name in ("0", "2")}
    old_stack = AdapterStack.build({"gone": make_adapter(known, 1, 1.0), "b": make_adapter(known, 1, 1.0)})
    old = Selector(StateStack.apart(old_stack))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.normal_()
    _, selector = attach(network(), earlier, warm=old.tensors(), warm_names=("gone", "b"))
    for name in known:
        assert torch.equal(selector.u[name][1], old.u[name][1])
        assert torch.equal(selector.c[name][1], old.c[name][1])
        assert torch.equal(selector.c_zero[name], old.c_zero[name])
        assert not selector.u[name][[0, 2]].any()
        assert not selector.c[name][[0, 2]].any()
    assert not selector.u["4"].any()
    assert all(parameter.requires_grad for parameter in selector.parameters())


def test_a_warm_start_goes_through_names_not_places(earlier) -> None:
    selector = Selector(StateStack.apart(AdapterStack.build(earlier)))
    stored = selector.tensors()
    stored["u:0"] = torch.arange(12.0).view(2, 6)
    stored["c:0"] = torch.tensor([5.0, 6.0])
    warm_start(selector, ("a", "b"), stored, ("b", "a"))
    assert selector.u["0"].tolist() == [list(range(6, 12)), list(range(6))]
    assert selector.c["0"].tolist() == [6.0, 5.0]


def test_a_warm_start_of_some_adapters_puts_each_in_its_own_place(earlier) -> None:
    selector = Selector(StateStack.apart(AdapterStack.build(earlier)))
    stored = Selector(StateStack.apart(AdapterStack.build({"b": earlier["b"]}))).tensors()
    stored["c:0"] = torch.tensor([4.0])
    warm_start(selector, ("a", "b"), stored, ("b",))
    assert selector.c["0"].tolist() == [0.0, 4.0]


def test_a_bfloat16_model_scores_in_float32(earlier, x) -> None:
    model = network()
    layers, selector = attach(model, earlier)
    randomise(layers, selector)
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x)
    rough.float().square().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in selector.parameters())
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1 * float(exact.detach().abs().max()))


def test_one_adapted_module_without_earlier_adapters(make_adapter) -> None:
    """Scores of adapters that are not there are ``tanh(c_k)``, as in the finished mixture."""
    only = {"a": make_adapter({"4": SHAPES["4"]}, 2, 1.0)}
    model = network()
    layers, selector = attach(model, only)
    assert isinstance(model.get_submodule("0"), AttendedLoraLinear)
    with torch.no_grad():
        layers["0"].lora_B.normal_()
        selector.c["0"].copy_(torch.tensor([0.3, -0.2]))
    x = torch.randn(3, 8)
    h = 1.5 * x @ layers["0"].lora_A.T @ layers["0"].lora_B.T
    z = [0.0, math.tanh(0.3), math.tanh(-0.2)]
    share = math.exp(z[2]) / sum(math.exp(score) for score in z)
    expected = F.linear(x, model.get_submodule("0").base.weight, model.get_submodule("0").base.bias) + share * h
    torch.testing.assert_close(model.get_submodule("0")(x), expected, rtol=1e-5, atol=1e-5)
