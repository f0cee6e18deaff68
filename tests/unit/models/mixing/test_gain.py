"""Row gains: ``dW = (diag(g) - 1) W + s B A`` in every kind of mixture, against dense matrices in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.algebra.compress import compress
from lorabank.algebra.factors import FactorShape, LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.states import StateStack
from lorabank.models.gates.attention_token import Selector
from lorabank.models.mixing.mixture import Mixture
from lorabank.models.mixing.per_sample import Routes
from lorabank.models.mixing.resident_stack import ResidentStack
from lorabank.training.layers.layer import fold
from lorabank.training.online_attention import attach_attended_adapter
from tests.unit.training.plain import context_of, plain

SHAPES = {"first": (6, 8), "last": (5, 6)}
WEIGHTS = torch.tensor([0.7, -1.3, 1.0])
ROWS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, -1.0, 2.0], [0.0, 0.0, 0.0]])


class Network(nn.Module):
    """Two linear layers, one of them without a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


@pytest.fixture
def adapters(make_adapter) -> dict[str, LoraFactors]:
    """One with gains on both layers, a plain one of another rank, and one with a gain on the layer that it has."""
    dice = torch.Generator().manual_seed(5)
    gain = {name: 0.5 + torch.rand(d_out, generator=dice) for name, (d_out, _) in SHAPES.items()}
    gain["first"][0], gain["first"][1] = 0.0, -0.8  # a row that is switched off, and one that is turned round
    return {
        "a": replace(make_adapter(SHAPES, 2, 1.0, seed=1), gain=gain),
        "b": make_adapter(SHAPES, 3, 2.0, rslora=True, seed=2),
        "c": replace(make_adapter({"last": (5, 6)}, 1, 0.7, seed=3), gain={"last": 2 * gain["last"]}),
    }


def dense(factors: LoraFactors, name: str, weight: Tensor) -> Tensor:
    """``(diag(g) - 1) W + s B A`` row by row, in float64."""
    delta = torch.zeros(weight.shape, dtype=torch.float64)
    if name in factors.A:
        gain = factors.gain.get(name, torch.ones(len(weight)))
        for i in range(len(weight)):
            low = factors.scaling[name] * sum(
                float(factors.B[name][i, r]) * factors.A[name][r].double() for r in range(len(factors.A[name]))
            )
            delta[i] = (float(gain[i]) - 1) * weight[i].double() + low
    return delta


def summed(adapters: dict[str, LoraFactors], weights: Tensor, x: Tensor) -> Tensor:
    """The network's answers ``[..., 5]`` with the weighted sum of the dense delta weights, in float64."""
    model = Network()
    changed = {}
    for name in SHAPES:
        weight = model.get_submodule(name).weight.detach()
        deltas = [w * dense(one, name, weight) for w, one in zip(weights.tolist(), adapters.values(), strict=True)]
        changed[name] = weight.double() + torch.stack(deltas).sum(0)
    return F.linear(torch.tanh(F.linear(x.double(), changed["first"], model.first.bias.double())), changed["last"])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["merged", "merged in parts", "one adapter of the sum", "folded", "per sample"])
def test_a_constant_state_is_the_dense_sum(adapters, x: Tensor, kind: str) -> None:
    model, stack = Network(), AdapterStack.build(adapters)
    if kind == "folded":
        fold(model, AdapterStack.build({name: one for name, one in adapters.items() if name != "b"}))
        close(model(x), summed(adapters, torch.tensor([1.0, 0.0, 1.0]), x))
        return
    mixture = Mixture(model, stack)
    if kind == "merged":
        mixture.merge(WEIGHTS)
    elif kind == "merged in parts":
        mixture.merge_sum(torch.diag(WEIGHTS))
    elif kind == "one adapter of the sum":
        mixture.merge_adapter(stack.combine(WEIGHTS))
    else:
        mixture.per_sample(WEIGHTS.expand(4, 3))
    close(model(x), summed(adapters, WEIGHTS, x))


@torch.no_grad()
@pytest.mark.parametrize("form", ["masked", "segments", "stacked"])
def test_every_sample_has_its_own_gain(adapters, x: Tensor, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Routes, "costs", lambda self, tokens: {form: 0.0})
    model = Network()
    Mixture(model, AdapterStack.build(adapters)).per_sample(ROWS)
    found = model(x)
    for i, weights in enumerate(ROWS):
        close(found[i], summed(adapters, weights, x[i]))
    assert torch.equal(found[3], Network()(x)[3])  # the base, beside samples that have adapters


def attended(adapters: dict[str, LoraFactors], selector: Selector, x: Tensor) -> Tensor:
    """The equations of AM-LoRA token by token, with dense delta weights in float64."""
    model = Network()
    answers = []
    for token in x.reshape(-1, 8).double():
        for name in SHAPES:
            module = model.get_submodule(name)
            weight = module.weight.detach()
            out = F.linear(token, weight.double(), None if module.bias is None else module.bias.detach().double())
            u, c, zero = (group[name].detach().double() for group in (selector.u, selector.c, selector.c_zero))
            h = torch.stack([dense(one, name, weight) @ token for one in adapters.values()])
            scores = torch.tanh(torch.cat([zero, (u * h).sum(1) + c]))
            out = out + (scores.softmax(0)[1:, None] * h).sum(0)
            token = torch.tanh(out) if name == "first" else out
        answers.append(out)
    return torch.stack(answers).view(*x.shape[:-1], 5)


def shaken(selector: Selector) -> Selector:
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in selector.parameters():
            parameter.normal_()
    return selector


@pytest.mark.parametrize("learns", [False, True])
def test_attention_is_the_loop_over_tokens(adapters, x: Tensor, learns: bool) -> None:
    model, stack = Network().requires_grad_(False), AdapterStack.build(adapters)
    members = StateStack.apart(stack)
    selector = shaken(Selector(members)).requires_grad_(learns)
    Mixture(model, stack).attend(selector, members)
    found = model(x)
    close(found.detach(), attended(adapters, selector, x))
    if learns:  # u is reached through the gain too: the gradient equals a difference quotient
        found.square().sum().backward()
        u, step = selector.u["first"], 1e-3
        with torch.no_grad():
            u[0, 2] += step
            above = attended(adapters, selector, x).square().sum()
            u[0, 2] -= 2 * step
            below = attended(adapters, selector, x).square().sum()
        assert float(u.grad[0, 2]) == pytest.approx(float(above - below) / (2 * step), rel=1e-3)


@torch.no_grad()
def test_attention_beside_a_new_adapter_is_the_loop_over_tokens(adapters, x: Tensor) -> None:
    model = Network()
    new = plain(context_of(model, ["first"], r=2, lora_alpha=3.0)).factors()
    layers, selector = attach_attended_adapter(model, new, AdapterStack.build(adapters), dropout=0.0)
    shaken(selector)
    layers["first"].lora_B.normal_()
    new = LoraFactors({"first": layers["first"].lora_A}, {"first": layers["first"].lora_B}, {"first": 1.5})
    close(model(x), attended({**adapters, "new": new}, selector, x))


@torch.no_grad()
def test_one_adapter_is_itself_and_the_base_comes_back(adapters, x: Tensor) -> None:
    base = Network()(x)
    for name, one in adapters.items():
        model = Network()
        mixture = Mixture(model, AdapterStack.build({name: one}))
        mixture.merge(torch.ones(1))
        close(model(x), summed({name: one}, torch.ones(1), x))
        again = AdapterStack.build({name: one}).combine(torch.ones(1))
        for module in one.A:
            torch.testing.assert_close(again.gain.get(module, torch.ones(1)), one.gain.get(module, torch.ones(1)))
        mixture.off()
        assert torch.equal(model(x), base)


@torch.no_grad()
def test_the_order_of_the_members_does_not_matter(adapters, x: Tensor) -> None:
    order = [2, 0, 1]
    turned = {list(adapters)[k]: list(adapters.values())[k] for k in order}
    model = Network()
    mixture = Mixture(model, AdapterStack.build(turned))
    mixture.merge(WEIGHTS[order])
    close(model(x), summed(adapters, WEIGHTS, x))
    mixture.per_sample(ROWS[:, order])
    found = model(x)
    for i, weights in enumerate(ROWS):
        close(found[i], summed(adapters, weights, x[i]))


def test_what_has_no_gain_has_no_tensor_for_it(adapters, make_adapter) -> None:
    plain = AdapterStack.build({"b": adapters["b"]})
    assert all(factors.gain is None for factors in plain.modules.values())
    assert all(factors.gain is None for factors in AdapterStack.build(adapters).select(["b"]).modules.values())
    assert not plain.combine(torch.ones(1)).gain
    only_last = AdapterStack.build({name: adapters[name] for name in "bc"})
    assert {name: factors.gain is None for name, factors in only_last.modules.items()} == {
        "first": True,
        "last": False,
    }


def test_gains_that_cancel_leave_a_plain_adapter(adapters) -> None:
    turned = {"a": adapters["a"], "a again": adapters["a"]}
    assert not AdapterStack.build(turned).combine(torch.tensor([1.0, -1.0])).gain


@torch.no_grad()
@pytest.mark.parametrize("slots", [3, 1])
def test_adapters_that_take_turns_bring_their_gains(adapters, x: Tensor, slots: int) -> None:
    shapes = {
        name: {
            module: FactorShape(*a.shape, len(one.B[module]), one.scaling[module], module in one.gain)
            for module, a in one.A.items()
        }
        for name, one in adapters.items()
    }
    most = 4 * (3 * (8 + 6) + 3 * (6 + 5)) + 4 * (6 + 5)  # the widest rank of each layer and a gain on both
    stack = ResidentStack.reserve(
        shapes, adapters.__getitem__, device="cpu", dtype=torch.float32, max_bytes=None if slots == 3 else slots * most
    )
    assert len(stack.slots.names) == slots
    model = Network()
    mixture = Mixture(model, stack.slots)
    for name in "abccbac":  # "c" has nothing on the first layer: the gain of "a", before it, must not stay there
        alone = torch.tensor([float(name == one) for one in adapters])
        mixture.merge_sum(stack.parts(alone))
        close(model(x), summed({name: adapters[name]}, torch.ones(1), x))
    mixture.merge_sum(stack.parts(WEIGHTS))
    close(model(x), summed(adapters, WEIGHTS, x))


def test_an_adapter_takes_the_place_of_another_with_its_gain(adapters, make_adapter) -> None:
    place = AdapterStack.build({"a": adapters["a"]}).modules["first"]
    plain = make_adapter({"first": SHAPES["first"]}, 2, 1.0, seed=7)
    place.put(0, plain.A["first"], plain.B["first"])
    weight = torch.zeros(SHAPES["first"])
    close(place.delta(torch.ones(1), weight), dense(plain, "first", weight))
    assert bool((place.gain == 1).all())


def test_compression_keeps_the_gain_and_cuts_the_rest(adapters) -> None:
    joined = AdapterStack.build(adapters).combine(WEIGHTS)
    cut = compress(joined, 2)
    for name in SHAPES:
        weight = Network().get_submodule(name).weight.detach()
        low = dense(replace(joined, gain={}), name, weight)
        u, s, vh = torch.linalg.svd(low)
        expected = dense(joined, name, weight) - low + (u[:, :2] * s[:2]) @ vh[:2]
        close(cut.factors.delta(name, weight), expected)
        assert cut.relative_error[name] == pytest.approx(float(s[2:].norm() / s.norm()), abs=1e-6)


def test_a_gain_is_never_read_without_the_weight_that_it_is_for(adapters) -> None:
    with pytest.raises(ValueError, match="beside the base's weight"):
        adapters["a"].delta("first")
    with pytest.raises(ValueError, match="beside the base's weight"):
        AdapterStack.build(adapters).modules["first"].delta(WEIGHTS)
    without = AdapterStack.build(adapters).modules["first"].delta(torch.tensor([0.0, 1.0, 0.0]))  # "a" does not count
    close(without, dense(adapters["b"], "first", torch.zeros(SHAPES["first"])))


@torch.no_grad()
def test_bfloat16_keeps_small_gains(make_adapter, x: Tensor) -> None:
    """A gain of 1.001 is 1 in bfloat16; what is added to the rows is not."""
    one = replace(make_adapter({"last": (5, 6)}, 1, 1e-9), gain={"last": torch.full((5,), 1.001)})
    stack = AdapterStack.build({"a": one}, dtype=torch.bfloat16)
    weight = copy.deepcopy(Network().last.weight.detach())
    close(stack.modules["last"].delta(torch.ones(1), weight), 0.001 * weight.double())
