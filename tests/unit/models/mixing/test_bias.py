"""Biases in every kind of mixture, beside factors and gains on the weights, against dense sums in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.algebra.biases import with_biases
from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import IncompatibleError
from lorabank.models.bases.sites import site_of
from lorabank.models.mixing.mixture import Mixture
from lorabank.training.layers.layer import attach_factors, fold

SHAPES = {"first": (6, 8), "last": (5, 6)}
BIASES = {"first.bias": 6, "norm.bias": 6}
WEIGHTS = torch.tensor([0.7, -1.3, 1.0])
ROWS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, -1.0, 2.0], [0.0, 0.0, 0.0]])
X = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(7))


class Network(nn.Module):
    """Two linear layers, one of them without a bias, around a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(torch.tanh(self.first(x))))


@pytest.fixture(params=[False, True], ids=["weights first", "biases first"])
def adapters(request: pytest.FixtureRequest, make_adapter) -> dict[str, LoraFactors]:
    """Biases alone, biases beside factors with a row gain, and factors alone."""
    dice = torch.Generator().manual_seed(5)

    def vectors(*names: str) -> dict[str, Tensor]:
        return {name: torch.randn(BIASES[name], generator=dice) for name in names}

    both = replace(make_adapter(SHAPES, 2, 1.0, seed=1), gain={"first": 0.5 + torch.rand(6, generator=dice)})
    found = {
        "a": with_biases(LoraFactors({}, {}, {}), vectors(*BIASES)),
        "b": with_biases(both, vectors("first.bias")),
        "c": make_adapter(SHAPES, 3, 2.0, seed=2),
    }
    order = ("a", "b", "c") if request.param else ("c", "b", "a")
    return {name: found[name] for name in order}


def expected(adapters: dict[str, LoraFactors], weights: Tensor, x: Tensor) -> Tensor:
    """Weights and biases summed entry by entry."""
    model = copy.deepcopy(Network()).double()
    plain = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for w, one in zip(weights.tolist(), adapters.values(), strict=True):
            for name, A in one.A.items():
                change = one.scaling[name] * one.B[name].double() @ A.double()
                if name in one.gain:
                    change = change + (one.gain[name].double() - 1)[:, None] * plain[f"{name}.weight"]
                if name.endswith(".bias"):
                    model.get_parameter(name).add_(w * change[:, 0])
                else:
                    model.get_parameter(f"{name}.weight").add_(w * change)
        return model(x.double())


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=2e-5)


def mixed(adapters: dict[str, LoraFactors]) -> tuple[Network, Mixture]:
    model = Network()
    return model, Mixture(model, AdapterStack.build(adapters))


def test_merged_biases_and_weights_and_the_way_back(adapters) -> None:
    model, mixture = mixed(adapters)
    with torch.no_grad():
        mixture.merge(WEIGHTS)
        close(model(X), expected(adapters, WEIGHTS, X))
        mixture.off()
        assert torch.equal(model(X), Network()(X))
        mixture.merge(WEIGHTS)
        mixture.detach()
        assert torch.equal(model(X), Network()(X))
    assert {type(module) for module in model.modules()} == {Network, nn.Linear, nn.LayerNorm}


def test_every_row_of_a_batch_has_its_own(adapters) -> None:
    model, mixture = mixed(adapters)
    with torch.no_grad():
        mixture.per_sample(ROWS)
        found = model(X)
        for row, own, x in zip(ROWS, found, X, strict=True):
            close(own, expected(adapters, row, x))


def test_a_combined_adapter_is_the_sum(adapters) -> None:
    joined = AdapterStack.build(adapters).combine(WEIGHTS)
    model, mixture = mixed({"sum": joined})
    with torch.no_grad():
        mixture.merge(torch.ones(1))
        close(model(X), expected(adapters, WEIGHTS, X))


def test_a_past_in_the_biases_of_a_model_that_is_trained(adapters) -> None:
    model = Network()
    fold(model, AdapterStack.build(adapters))
    with torch.no_grad():
        close(model(X), expected(adapters, torch.ones(3), X))


def test_gradients_of_trained_biases_are_those_of_parameters() -> None:
    model, plain = Network(), Network()
    B = {name: nn.Parameter(torch.zeros(d, 1)) for name, d in BIASES.items()}
    factors = LoraFactors({name: torch.ones(1, 1) for name in B}, dict(B), dict.fromkeys(B, 1.0))
    attach_factors(model, factors, dropout=0.0)
    assert torch.equal(model(X), plain(X))
    for one in (model, plain):
        F.cross_entropy(one(X).flatten(0, 1), torch.arange(12) % 5).backward()
    for name, own in B.items():
        torch.testing.assert_close(own.grad[:, 0], plain.get_parameter(name).grad, atol=1e-6, rtol=1e-5)


def test_a_module_without_a_bias_has_no_such_site() -> None:
    assert site_of(Network(), "norm.bias").d_out == 6
    for name in ("last.bias", "nothing.bias", "norm"):
        with pytest.raises(IncompatibleError, match=f"no module '{name}' that an adapter can change"):
            site_of(Network(), name)
