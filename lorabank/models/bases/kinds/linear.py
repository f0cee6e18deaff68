"""`torch.nn.Linear`, and its subclasses that compute the same."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorabank.models.bases.kinds.base import SiteKind


class Linear(SiteKind):
    """A linear layer keeps ``[d_out, d_in]``."""

    def fits(self, kind: type[nn.Module]) -> bool:
        """Every subclass of it."""
        return issubclass(kind, nn.Linear)

    def sizes(self, module: nn.Module) -> tuple[int, int]:
        """Its features."""
        assert isinstance(module, nn.Linear)
        return module.out_features, module.in_features

    def computes(self, module: nn.Module) -> bool:
        """A subclass with a forward pass of its own may (Falcon's) or not (Llama 4's router): it is tried."""
        assert isinstance(module, nn.Linear)
        own = type(module).forward is not nn.Linear.forward or "forward" in vars(module)
        return not own or _computes_a_product(module)


@torch.no_grad()
def _computes_a_product(module: nn.Linear) -> bool:
    """On random weights and inputs."""
    dice = torch.Generator().manual_seed(0)
    trial = copy.copy(module)  # with weights of its own: the module's may lie nowhere, or on a GPU
    trial._parameters = {
        name: None if value is None else nn.Parameter(torch.randn(value.shape, generator=dice))
        for name, value in module._parameters.items()
    }
    x = torch.randn(2, 3, module.in_features, generator=dice)
    expected = functional.linear(x, trial.weight, trial.bias)
    try:
        found = trial(x)
    except Exception:  # whatever it asks for, it is not a linear layer's input
        return False
    same = isinstance(found, Tensor) and found.shape == expected.shape
    return same and torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
