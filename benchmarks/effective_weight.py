r"""Is the training step's form the right one? Against the effective weight, which is rebuilt once a step.

With ``W_eff = W + s B A`` kept beside W, forward and backward need two large and four thin products where
`lorabank.training.lora_function` needs two and six:

    forward     y = x W_eff^T + b
    backward    dL/dx = g W_eff;  u = s g B;  dL/dA = u^T x;  dL/dB = s g^T (x A^T)

It costs another copy of every adapted weight and the rebuilding, and takes no dropout on the adapter's input. lorabank
has the one form for all cases; the bar says how much slower it may be where the other one could be used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import ALPHA, RANK, batch, every_linear, minilm, smollm2
from lorabank.training.layer import attach_adapter

BAR = 1.02
SCALE = ALPHA / RANK


def measure() -> list[Result]:
    """All linear layers, no dropout; the optimizer's step included."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 49152, (4, 128), generator=generator)
    cases: list[tuple[str, Callable[[], nn.Module], dict[str, Tensor], int]] = [
        ("MiniLM, 1,024 tokens", minilm, batch(16, 64), 12),
        ("MiniLM, 4,096 tokens", minilm, batch(32, 128), 6),
        ("SmolLM2's shape, 512 tokens", smollm2, {"input_ids": ids, "labels": ids}, 5),
    ]
    results = []
    for what, make, rows, rounds in cases:
        forms = {"ours": _step(_ours(make()), rows), "effective": _step(_Effective.put_on(make()), rows)}
        seen = compare(forms, baseline="effective", rounds=rounds)["ours"]
        what = f"training step without dropout, {what}, against effective weights"
        results.append(from_comparison("effective_weight", what, seen, BAR))
    return results


def _ours(model: nn.Module) -> nn.Module:
    model.requires_grad_(False)
    attach_adapter(model, every_linear(model), r=RANK, lora_alpha=ALPHA, use_rslora=False, dropout=0.0)
    return model


def _step(model: nn.Module, rows: dict[str, Tensor]) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    layers = [module for module in model.modules() if isinstance(module, _Effective)]

    def step() -> None:
        for layer in layers:
            layer.rebuild()
        model(**rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class _Effective(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.empty(RANK, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, RANK))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)
        self.effective = base.weight.detach().clone()

    @classmethod
    def put_on(cls, model: nn.Module) -> nn.Module:
        model.requires_grad_(False)
        for name in every_linear(model):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, cls(model.get_submodule(name)))
        return model

    @torch.no_grad()
    def rebuild(self) -> None:
        torch.addmm(self.base.weight, self.lora_B, self.lora_A, alpha=SCALE, out=self.effective)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Function.apply(x, self.effective, self.base.bias, self.lora_A, self.lora_B)
        return out


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(rows, weight, A, B)
        return F.linear(rows, weight, bias).reshape(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, A, B = ctx.saved_tensors
        g = gradients[0].reshape(-1, gradients[0].shape[-1])
        u = (g @ B).mul_(SCALE)
        h = (rows @ A.mT).mul_(SCALE)
        grad_x = (g @ weight).reshape(*gradients[0].shape[:-1], -1) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, u.mT @ rows, g.mT @ h
