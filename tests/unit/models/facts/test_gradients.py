"""The gradient in a weight without asking it for one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.models.facts.gradients import weight_gradients


class Net(nn.Module):
    """A layer that is asked twice, one that changes its input in place, and one that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice, self.idle, self.drop = (
            nn.Linear(5, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.Dropout(0.5),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h += 1
        return self.twice(F.relu(self.twice(self.drop(h))))


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["x"]).square().mean()


def test_gradients_are_those_of_autograd() -> None:
    model = Net().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    batches = [{"x": torch.randn(n, 3, 5, generator=generator)} for n in (4, 2)]
    found = weight_gradients(model, ["first", "twice", "idle"], batches, loss)
    assert found.keys() == {"first", "twice"}
    assert model.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    plain = Net().eval()
    (loss(plain, batches[0]) / 2 + loss(plain, batches[1]) / 2).backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, plain.get_submodule(name).weight.grad)
