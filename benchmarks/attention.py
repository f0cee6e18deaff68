"""A learned selector over 15 adapters (AM-LoRA) against the bare base, and against a loop over the adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.floors import least_forward
from benchmarks.harness import Result, compare, from_comparison
from benchmarks.models import batch, every_linear, minilm, query_and_value, random_stack
from lorabank.algebra.stack import StackedFactors
from lorabank.algebra.states import StateStack
from lorabank.models.gates.attention_token import Selector
from lorabank.models.mixing.mixture import Mixture

ADAPTERS = 15
ROUNDS = 8
BARS = {"query and value": 1.2, "all linear layers": 1.65}
LOOP_BAR = 0.25


def measure() -> list[Result]:
    """32 texts of 64 tokens of MiniLM."""
    found = []
    with torch.inference_mode():
        for where, choose in (("query and value", query_and_value), ("all linear layers", every_linear)):
            against = compare(_forms(choose), baseline="base", rounds=ROUNDS, warmup=1)
            what = f"attention over {ADAPTERS} adapters, {where}"
            result = from_comparison("attention", f"{what}, against the bare base", against["ours"], BARS[where])
            found.append(replace(result, floor=_floor(choose)))
            ratio = against["ours"].ratio / against["loop"].ratio
            if choose is every_linear:
                found.append(Result("attention", f"{what}, against a loop over adapters", ratio, LOOP_BAR, "x", {}))
    return found


def _floor(choose: Callable[[nn.Module], list[str]]) -> float:
    model = minilm().eval()
    return least_forward(model, choose(model), _rows(), ADAPTERS)


def _rows() -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch(32, 64).items() if name != "labels"}


def _forms(choose: Callable[[nn.Module], list[str]]) -> dict[str, Callable[[], object]]:
    """The model bare, under our attention and under the loop."""
    rows = _rows()
    base, ours, loop = minilm().eval(), minilm().eval(), minilm().eval()
    stack = random_stack(ours, choose(ours), ADAPTERS)
    selector = Selector(StateStack.apart(stack)).requires_grad_(False)
    for parameter in selector.parameters():
        parameter.normal_()
    Mixture(ours, stack).attend(selector, StateStack.apart(stack))
    for name, factors in stack.modules.items():
        parent, _, child = name.rpartition(".")
        setattr(loop.get_submodule(parent), child, _Loop(name, loop.get_submodule(name), factors, selector))
    return {"base": lambda: base(**rows), "ours": lambda: ours(**rows), "loop": lambda: loop(**rows)}


class _Loop(nn.Module):
    """The equations as they stand: one adapter after the other, its whole output scored."""

    def __init__(self, name: str, base: nn.Module, factors: StackedFactors, selector: Selector) -> None:
        super().__init__()
        key = name.replace(".", "/")
        self.base = base
        self.u, self.c, self.c_zero = selector.u[key], selector.c[key], selector.c_zero[key]
        parts = [factors.select([k]) for k in range(ADAPTERS)]
        self.adapters = [(part.A, part.B.contiguous(), float(part.scale[0])) for part in parts]

    def forward(self, x: Tensor) -> Tensor:
        h = [s * F.linear(F.linear(x, A), B) for A, B, s in self.adapters]
        scores = [torch.tanh(self.c_zero).expand(*x.shape[:-1], 1)]
        scores += [torch.tanh(h_k @ u + c).unsqueeze(-1) for h_k, u, c in zip(h, self.u, self.c, strict=True)]
        attention = torch.cat(scores, -1).softmax(-1)
        out: Tensor = self.base(x)
        for k, h_k in enumerate(h):
            out = out + attention[..., k + 1, None] * h_k
        return out
