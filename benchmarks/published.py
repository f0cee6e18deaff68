"""O-LoRA's layer and penalty as they were published, re-created from its description: what ours is measured against.

Earlier adapters are concatenated and active in every forward pass, and the penalty matches parameters by name in a
loop over all pairs, at every batch. Its logging is left out, which favours it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import ALPHA, DROPOUT, RANK
from lorabank.algebra.stack import AdapterStack, StackedFactors


def published_penalty(model: nn.Module) -> Tensor:
    """Every pair of parameters is looked at, pairs of one module are multiplied."""
    orthogonal = torch.zeros(())
    for name, earlier in model.named_parameters():
        if "lora_A" in name:
            for other, new in model.named_parameters():
                if "loranew_A" in other and name.split("lora_A")[0] == other.split("loranew_A")[0]:
                    orthogonal = orthogonal + torch.abs(torch.mm(earlier, new.T)).sum()
                    break
    return orthogonal


def attach_published(model: nn.Module, modules: Sequence[str], earlier: AdapterStack) -> None:
    """Put the earlier adapters and a new one on a model whose own parameters are frozen."""
    model.requires_grad_(False)
    for name in modules:
        parent, _, child = name.rpartition(".")
        layer = _PublishedLinear(model.get_submodule(name), earlier.modules[name])
        setattr(model.get_submodule(parent), child, layer)


class _PublishedLinear(nn.Module):
    """``W x + s B_prev A_prev d(x) + s B_new A_new d(x)``, d one dropout for both."""

    def __init__(self, base: nn.Module, earlier: StackedFactors) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(earlier.A.clone(), requires_grad=False)
        self.lora_B = nn.Parameter(earlier.B.contiguous(), requires_grad=False)
        self.loranew_A = nn.Parameter(torch.randn(RANK, earlier.A.shape[1]) / earlier.A.shape[1] ** 0.5)
        self.loranew_B = nn.Parameter(torch.zeros(earlier.B.shape[0], RANK))

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, DROPOUT, self.training)
        past = F.linear(F.linear(dropped, self.lora_A), self.lora_B)
        new = F.linear(F.linear(dropped, self.loranew_A), self.loranew_B)
        out: Tensor = self.base(x) + ALPHA / RANK * (past + new)
        return out
