"""What the work alone comes to: the multiplications of an adapted forward pass, and the least a training step does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import RANK

Rows = dict[str, Tensor]


def least_forward(model: nn.Module, modules: Sequence[str], rows: Rows, adapters: int) -> float:
    """Multiplications of a forward pass with ``adapters`` adapters that every token passes, against those without.

    Each adds ``r (d_in + d_out)`` for every token to the ``d_in d_out`` of its module.
    """
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(**rows)
    tokens = rows["input_ids"].numel()
    added = sum(RANK * sum(model.get_submodule(name).weight.shape) for name in modules)
    return 1 + 2 * adapters * tokens * added / counter.get_total_flops()


def least_step(
    model: nn.Module, modules: Sequence[str], loss: Callable[[nn.Module, Rows], Tensor], rows: Rows
) -> Callable[[], None]:
    """The frozen model's forward pass and its gradients down to the lowest adapted module, without any adapter."""
    model.requires_grad_(False)
    for name in modules:
        model.get_submodule(name).register_forward_hook(_needs_gradient)

    def step() -> None:
        model.train()
        loss(model, rows).backward()

    return step


def _needs_gradient(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output if output.requires_grad else output.requires_grad_()
