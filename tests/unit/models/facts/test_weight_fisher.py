"""The Fisher information in the weights of modules against plain autograd in float64, one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from lorabank.models.facts.weight_fisher import weight_fisher

D, VOCABULARY, LABELS = 6, 11, 3
ROWS = [torch.tensor(ids) for ids in ([1, 4, 2], [3, 3, 9, 10, 5], [7], [8, 1])]


class Tiny(nn.Module):
    """A module beside another one, one that is called twice, and one that a row may not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, D)
        self.q, self.v, self.twice, self.rare = (nn.Linear(D, D) for _ in range(4))
        self.out = nn.Linear(D, LABELS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + (self.q(x) @ x.mT).softmax(-1) @ self.v(x)
        y = self.twice(x)
        y += 1  # in place, as some models do
        x = torch.tanh(self.twice(torch.tanh(y)))
        return self.out(x.sum(0))[None]


@pytest.fixture
def model() -> Tiny:
    torch.manual_seed(0)
    return Tiny().requires_grad_(False)


def passes(model: nn.Module, label: int) -> Iterator[Callable[[], tuple[Tensor, Tensor]]]:
    for ids in ROWS:
        yield lambda ids=ids: (model(ids), torch.tensor([label]))


def test_it_is_the_mean_square_of_each_row_s_gradient_with_drawn_labels(model) -> None:
    names = ["q", "v", "twice", "rare"]
    found = weight_fisher(model, names, passes(model, 0), torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    drawn = [int(torch.multinomial(model(ids).softmax(-1), 1, generator=generator)) for ids in ROWS]
    assert len(set(drawn)) > 1

    double = model.double().requires_grad_(True)
    weights = [double.get_submodule(name).weight for name in names[:3]]
    expected = [torch.zeros(D, D, dtype=torch.float64) for _ in weights]
    for ids, label in zip(ROWS, drawn, strict=True):
        surprise = -double(ids).log_softmax(-1)[0, label]
        for total, gradient in zip(expected, torch.autograd.grad(surprise, weights), strict=True):
            total += gradient.square() / len(ROWS)
    assert found.keys() == {"q", "v", "twice"}
    for name, total in zip(names, expected, strict=False):
        torch.testing.assert_close(found[name].double(), total, rtol=1e-4, atol=1e-6 * float(total.max()))


def test_the_labels_of_the_data_say_nothing(model) -> None:
    one, other = (weight_fisher(model, ["q"], passes(model, k), torch.Generator().manual_seed(5)) for k in (0, 2))
    assert torch.equal(one["q"], other["q"])


def test_a_row_that_predicts_nothing_does_not_count(model) -> None:
    nothing = torch.zeros(0, LABELS), torch.zeros(0, dtype=torch.long)
    rows = [lambda: nothing, *passes(model, 0)]
    expected = weight_fisher(model, ["q"], passes(model, 0), torch.Generator().manual_seed(5))
    assert torch.equal(weight_fisher(model, ["q"], rows, torch.Generator().manual_seed(5))["q"], expected["q"])


def test_the_model_is_left_as_it_was(model) -> None:
    weight_fisher(model, ["q", "twice"], passes(model, 0), torch.Generator())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
