"""A forward pass under attention over all adapters, against a loop over them, and against the base.

The loop is the formula as it reads: every adapter's output in full, a score for each, their weighted sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.device import adapters, clock, prompts, random_model, sizes, twin
from benchmarks.harness import Result, compare, from_comparison
from lorabank.algebra.stack import AdapterStack, StackedFactors
from lorabank.algebra.states import StateStack
from lorabank.models.gates.attention_token import Selector
from lorabank.models.mixing.mixture import Mixture

BAR = 0.10
ROWS = 8


@torch.inference_mode()
def measure(device: str, shape: str, folder: Path) -> list[Result]:
    """Each number of adapters above one; both forms have the same selector."""
    work, model = sizes(shape), random_model(shape, device)
    inputs = prompts(model, ROWS, work.row)
    results = []
    for count in work.adapters:
        stack = adapters(model, count)
        selector = _selector(stack)
        attended, loop = twin(model), twin(model)
        Mixture(attended, stack).attend(selector, StateStack.apart(stack))
        _put_loop(loop, stack, selector)
        forms = {"loop": _call(loop, inputs), "attended": _call(attended, inputs), "base": _call(model, inputs)}
        seen = compare(forms, baseline="loop", rounds=work.rounds, warmup=1, clock=clock(device))
        what = f"attention over {count} adapters, {shape}, all linear layers, against a loop over them"
        result = from_comparison("gpu_attention", what, seen["attended"], BAR)
        results.append(replace(result, floor=seen["base"].ratio))
    return results


def _selector(stack: AdapterStack) -> Selector:
    generator = torch.Generator().manual_seed(3)
    selector = Selector(StateStack.apart(stack)).requires_grad_(False)
    for parameter in selector.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return selector


def _call(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Callable[[], Any]:
    decoder = {"decoder_input_ids": inputs["input_ids"][:, :1]} if model.config.is_encoder_decoder else {}
    return lambda: model(**inputs, **decoder, use_cache=False).logits


def _put_loop(model: PreTrainedModel, stack: AdapterStack, selector: Selector) -> None:
    for name, factors in stack.modules.items():
        parent, _, child = name.rpartition(".")
        module = _Loop(model.get_submodule(name), factors, selector, name.replace(".", "/"))
        setattr(model.get_submodule(parent), child, module)


class _Loop(nn.Module):
    """``y = W x + sum_k a_k s_k B_k A_k x``, adapter by adapter."""

    def __init__(self, base: nn.Module, factors: StackedFactors, selector: Selector, key: str) -> None:
        super().__init__()
        self.base = base
        dtype = factors.A.dtype
        self._u, self._c, self._zero = (part[key].to(dtype) for part in (selector.u, selector.c, selector.c_zero))
        self._adapters = []
        for k in range(len(self._c)):
            own = factors.owner == k
            self._adapters.append((factors.A[own], factors.B[:, own], float(factors.scale[own][0])))

    @property
    def weight(self) -> Tensor:
        """The base module's weight, which T5 asks for."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        outputs = [scale * F.linear(F.linear(x, A), B) for A, B, scale in self._adapters]
        scores = [output @ u + c for output, u, c in zip(outputs, self._u, self._c, strict=True)]
        zero = self._zero.expand_as(scores[0])
        attention = torch.stack([zero, *scores], -1).tanh().softmax(-1)
        y = self.base(x)
        for k, output in enumerate(outputs, 1):
            y = y + attention[..., k : k + 1] * output
        return y
