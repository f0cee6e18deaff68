"""The diagonal Fisher against torch.autograd, one example at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.models.facts.fisher import (
    Importance,
    accumulated,
    diagonal_fisher,
    fisher_from_bytes,
    fisher_to_bytes,
)
from lorabank.training.layers.layer import LoraLinear
from tests.unit.training.plain import plain_layers

D, VOCABULARY, LABELS = 6, 11, 3


class Tiny(nn.Module):
    """Attention over tokens, a layer that is used twice, and optionally one whose input has no rows."""

    def __init__(self, shared_positions: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, D)
        self.q, self.v, self.twice = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.positions = nn.Linear(D, D)
        self.out = nn.Linear(D, LABELS)
        self.drop = nn.Dropout(0.5)
        self.shared_positions = shared_positions

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.drop(self.embed(ids))
        if self.shared_positions:
            x = x + self.positions(self.embed.weight[: ids.shape[1]])
        scores = self.q(x) @ x.mT + (mask[:, None, :] - 1) * 1e4
        x = x + scores.softmax(-1) @ self.v(x)
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return self.out((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


@pytest.fixture
def make() -> Callable[..., tuple[Tiny, dict[str, LoraLinear]]]:
    def build(shared_positions: bool = False) -> tuple[Tiny, dict[str, LoraLinear]]:
        torch.manual_seed(0)
        model = Tiny(shared_positions).requires_grad_(False)
        names = ["q", "v", "twice", *(["positions"] if shared_positions else [])]
        layers = plain_layers(model, names, r=2, lora_alpha=3.0, dropout=0.3)
        for layer in layers.values():
            nn.init.normal_(layer.lora_B, std=0.5)
        return model, layers

    return build


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for rows, longest in ((3, 5), (4, 2)):
        mask = torch.ones(rows, longest)
        mask[0, 1:] = 0
        ids = torch.randint(VOCABULARY, (rows, longest), generator=generator)
        made.append({"ids": ids, "mask": mask, "labels": torch.randint(LABELS, (rows,), generator=generator)})
    return made


def summed(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["ids"], batch["mask"]), batch["labels"], reduction="sum")


def one_by_one(model: nn.Module, layers: dict[str, LoraLinear]) -> Importance:
    A = {name: torch.zeros_like(layer.lora_A) for name, layer in layers.items()}
    B = {name: torch.zeros_like(layer.lora_B) for name, layer in layers.items()}
    model.eval()
    count = 0
    for batch in batches():
        for i in range(len(batch["labels"])):
            loss = summed(model, {name: value[i : i + 1] for name, value in batch.items()})
            for name, layer in layers.items():
                of_A, of_B = torch.autograd.grad(loss, [layer.lora_A, layer.lora_B], retain_graph=True)
                A[name] += of_A**2
                B[name] += of_B**2
            count += 1
    return Importance({k: v / count for k, v in A.items()}, {k: v / count for k, v in B.items()})


@pytest.mark.parametrize("shared_positions", [False, True])
def test_it_is_the_mean_of_squared_gradients_per_example(make, shared_positions: bool) -> None:
    model, layers = make(shared_positions)
    expected = one_by_one(model, layers)
    model.train()
    found = diagonal_fisher(model, layers, batches(), summed)
    assert model.training
    assert found.A.keys() == found.B.keys() == layers.keys()
    for name in layers:
        assert float(expected.A[name].detach().max()) > 1e-6
        torch.testing.assert_close(found.A[name], expected.A[name].detach(), rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(found.B[name], expected.B[name].detach(), rtol=1e-4, atol=1e-9)
        assert not found.A[name].requires_grad


def test_it_is_not_the_square_of_the_batch_gradient(make) -> None:
    """Two examples with opposite gradients: their sum is zero, their importance is not."""
    _, layers = make()
    model = nn.Sequential(layers["q"])
    x = torch.randn(1, D, generator=torch.Generator().manual_seed(2)).repeat(2, 1)
    found = diagonal_fisher(model, {"q": layers["q"]}, [{"x": x}], lambda m, b: (m(b["x"])[0] - m(b["x"])[1]).sum())
    assert float(found.A["q"].max()) > 1e-3


def test_gradients_and_hooks_are_left_as_they_were(make) -> None:
    model, layers = make()
    layers["q"].lora_A.grad = torch.ones_like(layers["q"].lora_A)
    diagonal_fisher(model, layers, batches(), summed)
    assert bool((layers["q"].lora_A.grad == 1).all())
    assert layers["v"].lora_A.grad is None
    assert all(not layer._forward_hooks for layer in layers.values())


def test_importances_of_a_chain_add_up_with_decay() -> None:
    first = Importance({"q": torch.tensor([[1.0, 2.0]])}, {"q": torch.tensor([[4.0]])})
    second = Importance(
        {"q": torch.tensor([[10.0, 20.0]]), "v": torch.tensor([[7.0]])},
        {"q": torch.tensor([[40.0]]), "v": torch.tensor([[8.0]])},
    )
    both = accumulated(first, second, gamma=0.5)
    assert both.A["q"].tolist() == [[10.5, 21.0]]
    assert both.B["q"].tolist() == [[42.0]]
    assert (both.A["v"].tolist(), both.B["v"].tolist()) == ([[7.0]], [[8.0]])
    assert accumulated(None, first) is first


def test_bytes_come_back_as_they_were(make) -> None:
    model, layers = make()
    found = diagonal_fisher(model, layers, batches(), summed)
    again = fisher_from_bytes(fisher_to_bytes(found))
    for name in layers:
        assert torch.equal(again.A[name], found.A[name])
        assert torch.equal(again.B[name], found.B[name])
    assert fisher_to_bytes(again) == fisher_to_bytes(found)
