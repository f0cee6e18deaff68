"""`Mixture` against loops over adapters, samples and tokens; switched off it is the base, bit for bit."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.states import StateStack
from lorabank.models.bases.sites import site_of
from lorabank.models.gates.attention_token import Selector
from lorabank.models.mixing.mixture import MixedLoraLinear, Mixture

SHAPES = {"0": (6, 8), "2": (5, 6)}
WEIGHTS = torch.tensor([[1.0, 0.0, -0.5], [0.0, 0.0, 0.0], [0.3, 2.0, 0.0], [0.0, 0.0, 1.0]])


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5, bias=False)).to(dtype)


@pytest.fixture
def adapters(make_adapter) -> dict[str, LoraFactors]:
    """The second adapter leaves module ``2`` alone."""
    return {
        "a": make_adapter(SHAPES, 2, 1.0, seed=1),
        "b": make_adapter({"0": SHAPES["0"]}, 3, 2.0, rslora=True, seed=2),
        "c": make_adapter(SHAPES, 1, 0.7, seed=3),
    }


def branches(adapters: dict[str, LoraFactors], module: str, x: Tensor) -> list[Tensor]:
    """``s_k B_k A_k x`` of one vector for each adapter, zero where it has no such module."""
    zero = torch.zeros(SHAPES[module][0])
    return [
        factors.scaling[module] * (factors.B[module] @ (factors.A[module] @ x)) if module in factors.A else zero
        for factors in adapters.values()
    ]


def naive(model: nn.Sequential, adapters: dict[str, LoraFactors], x: Tensor, weights: Tensor) -> Tensor:
    """One token ``[8]`` through the network with constant weights."""
    for name, module in model.named_children():
        y = module(x)
        if name in SHAPES:
            for w, branch in zip(weights.tolist(), branches(adapters, name, x), strict=True):
                y = y + w * branch
        x = y
    return x


def naive_batch(model: nn.Sequential, adapters: dict[str, LoraFactors], x: Tensor, weights: Tensor) -> Tensor:
    answers = [naive(model, adapters, token, w) for sample, w in zip(x, weights, strict=True) for token in sample]
    return torch.stack(answers).view(*x.shape[:-1], -1)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def test_merged_is_the_weighted_sum(adapters, x: Tensor) -> None:
    model = network()
    mixture = Mixture(model, AdapterStack.build(adapters))
    for weights in WEIGHTS:
        mixture.merge(weights)
        expected = naive_batch(network(), adapters, x, weights.expand(4, 3))
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_merge_follows_a_change_of_the_weights_in_place(adapters, x: Tensor) -> None:
    model, weights = network(), torch.tensor([1.0, 0.0, 0.0])
    mixture = Mixture(model, AdapterStack.build(adapters))
    mixture.merge(weights)
    weights[1] = 1.0
    mixture.merge(weights)
    expected = naive_batch(network(), adapters, x, weights.expand(4, 3))
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_per_sample_is_the_loop_over_samples(adapters, x: Tensor) -> None:
    model = network()
    Mixture(model, AdapterStack.build(adapters)).per_sample(WEIGHTS)
    torch.testing.assert_close(model(x), naive_batch(network(), adapters, x, WEIGHTS), rtol=1e-5, atol=1e-6)
    # one vector per sample, as behind a pooler
    torch.testing.assert_close(
        model(x[:, 0]), naive_batch(network(), adapters, x[:, :1], WEIGHTS)[:, 0], rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
def test_a_mixed_batch_is_the_samples_one_by_one(adapters, x: Tensor) -> None:
    model = network()
    mixture = Mixture(model, AdapterStack.build(adapters))
    mixture.per_sample(WEIGHTS)
    together = model(x)
    for i in range(len(x)):
        mixture.per_sample(WEIGHTS[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], model(x[i : i + 1]), rtol=1e-6, atol=1e-6)
        mixture.merge(WEIGHTS[i])
        torch.testing.assert_close(together[i : i + 1], model(x[i : i + 1]), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_rows_that_no_sample_needs_are_left_out(adapters) -> None:
    layer = MixedLoraLinear(site_of(network(), "0"), AdapterStack.build(adapters).modules["0"])
    layer.per_sample(torch.tensor([[0.0, 1.0, 0.0], [0.0, -2.0, 0.0]]))
    assert layer.form.used.tolist() == [2, 3, 4]  # a has rows 0-1, b 2-4, c 5


@torch.no_grad()
def test_a_sample_without_adapters_is_the_base_in_a_mixed_batch(adapters, x: Tensor) -> None:
    model = network()
    Mixture(model, AdapterStack.build(adapters)).per_sample(WEIGHTS)
    assert torch.equal(model(x)[1], network()(x)[1])


@torch.no_grad()
def test_attention_is_the_loop_over_tokens(adapters, x: Tensor) -> None:
    model, stack = network(), AdapterStack.build(adapters)
    torch.manual_seed(4)
    selector = Selector(StateStack.apart(stack))
    for parameter in selector.parameters():
        parameter.normal_()
    Mixture(model, stack).attend(selector, StateStack.apart(stack))
    plain, expected = network(), torch.zeros(4, 3, 5)
    for n in range(4):
        for t in range(3):
            token = x[n, t]
            for name, module in plain.named_children():
                y = module(token)
                if name in SHAPES:
                    h = branches(adapters, name, token)
                    scores = [torch.tanh(selector.c_zero[name][0])]
                    scores += [torch.tanh(selector.u[name][k] @ h[k] + selector.c[name][k]) for k in range(3)]
                    a = [score.exp() / sum(other.exp() for other in scores) for score in scores]
                    y = y + sum(a[k + 1] * h[k] for k in range(3))
                token = y
            expected[n, t] = token
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_attention_over_some_members_ignores_the_others(adapters, x: Tensor) -> None:
    some = {name: adapters[name] for name in ("a", "c")}
    whole, part = AdapterStack.build(adapters), AdapterStack.build(some)
    torch.manual_seed(4)
    selector = Selector(StateStack.apart(part))
    for parameter in selector.parameters():
        parameter.normal_()
    model, other = network(), network()
    Mixture(model, whole).attend(selector, StateStack.apart(whole.select(["a", "c"])))
    Mixture(other, part).attend(selector, StateStack.apart(part))
    assert torch.equal(model(x), other(x))


@torch.no_grad()
def test_one_adapter_that_is_not_in_the_stack(adapters, make_adapter, x: Tensor) -> None:
    alone = make_adapter({"2": SHAPES["2"]}, 4, 3.0, seed=8)
    model = network()
    mixture = Mixture(model, AdapterStack.build(adapters))
    mixture.merge(WEIGHTS[0])
    mixture.merge_adapter(alone)
    torch.testing.assert_close(
        model(x), naive_batch(network(), {"x": alone}, x, torch.ones(4, 1)), rtol=1e-5, atol=1e-6
    )
    mixture.merge(WEIGHTS[0])  # asked for again, it comes back
    torch.testing.assert_close(
        model(x), naive_batch(network(), adapters, x, WEIGHTS[0].expand(4, 3)), rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_off_is_the_base_bit_for_bit_after_a_hundred_merges(adapters, x: Tensor, dtype: torch.dtype) -> None:
    model, x = network(dtype), x.to(dtype)
    expected = network(dtype)(x)
    stack = AdapterStack.build(adapters, dtype=dtype)
    mixture, selector = Mixture(model, stack), Selector(StateStack.apart(stack))
    assert torch.equal(model(x), expected)
    for i in range(100):
        mixture.merge(torch.tensor([1.0 + i, -0.5, 1e-3 * i]))
        assert not torch.equal(model(x), expected)
        mixture.off()
        assert torch.equal(model(x), expected)
    mixture.per_sample(WEIGHTS)
    mixture.attend(selector, StateStack.apart(stack))
    mixture.merge_adapter(adapters["a"])
    mixture.merge(torch.zeros(3))
    assert torch.equal(model(x), expected)
    for parameter, original in zip(model.parameters(), network(dtype).parameters(), strict=True):
        assert torch.equal(parameter, original)


@torch.no_grad()
def test_a_merge_in_bfloat16_is_rounded_once(adapters) -> None:
    """The delta is added in float32; adding it to rounded weights one adapter at a time would drift."""
    stack = AdapterStack.build(adapters)
    layer = MixedLoraLinear(site_of(network(torch.bfloat16), "0"), stack.modules["0"])
    weights = torch.tensor([1e-2, 1e-2, 1e-2])
    layer.merge(weights)
    exact = layer.base.weight.double()
    for factors in adapters.values():
        exact = exact + 1e-2 * factors.scaling["0"] * (factors.B["0"].double() @ factors.A["0"].double())
    # half a unit in the last place of bfloat16's 8 bits
    assert bool(((layer.form.matrix.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-7).all())


@torch.no_grad()
@pytest.mark.parametrize("state", ["merged", "per sample", "off"])
def test_bare_shows_the_base_and_brings_the_state_back(adapters, x: Tensor, state: str) -> None:
    model = network()
    mixture = Mixture(model, AdapterStack.build(adapters))
    if state == "merged":
        mixture.merge(WEIGHTS[0])
    elif state == "per sample":
        mixture.per_sample(WEIGHTS)
    before = model(x)
    with mixture.bare():
        assert torch.equal(model(x), network()(x))
    assert torch.equal(model(x), before)
    with contextlib.suppress(ValueError), mixture.bare():
        raise ValueError
    assert torch.equal(model(x), before)


@torch.no_grad()
def test_detached_the_model_has_its_own_modules_again(adapters) -> None:
    model = network()
    own = list(model.children())
    mixture = Mixture(model, AdapterStack.build(adapters))
    assert model[0] is not own[0]
    mixture.merge(WEIGHTS[0])
    mixture.detach()
    assert [a is b for a, b in zip(model.children(), own, strict=True)] == [True] * 3
