r"""The gradient of the loss in the weights of some modules, whose parameters need not require gradients.

With inputs ``x [T, d_in]`` of a module ``y = W x`` and the gradient ``g [T, d_out]`` that arrives at its output,

    dL/dW = g^T x

summed over the tokens and over all calls of a forward pass. Of other kinds of modules W is their matrix
(`lorabank.models.bases.sites`), and x what stands for its rows of input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lorabank.models.bases.kinds.bias import layer_at
from lorabank.models.bases.sites import answer_rows, kind_of, rows_of, wrapped_by


class Call(NamedTuple):
    """One pass of a module: what stands for its rows of input, and its output."""

    name: str
    module: nn.Module
    rows: Tensor
    out: Tensor


def weight_gradients(
    model: nn.Module,
    modules: Sequence[str],
    batches: Iterable[dict[str, Tensor]],
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor],
) -> dict[str, Tensor]:
    """The mean of the batches' gradients, without dropout; nothing of the model is changed.

    Args:
        model: In the state in which the gradient is taken.
        modules: Full names of modules that are sites.
        batches: Model inputs.
        loss: Mean loss of a batch.

    Returns:
        Module name to ``[d_out, d_in]``, float32, on the model's device; modules that no text reached are left out.
    """
    sums: dict[str, Tensor] = {}
    count, training = 0, model.training
    model.eval()
    try:
        with watched_outputs(model, modules) as calls:
            for batch in batches:
                calls.clear()
                with torch.enable_grad():
                    value = loss(model, batch)
                    found = by_module(calls, value)
                count += 1
                for name, gradient in found.items():
                    sums[name] = sums[name].add_(gradient) if name in sums else gradient
    finally:
        model.train(training)
    return {name: total / count for name, total in sums.items()}


@contextmanager
def watched_outputs(model: nn.Module, modules: Sequence[str]) -> Iterator[list[Call]]:
    """For the length of a block: the calls of some modules, whose outputs have gradients."""
    calls: list[Call] = []
    hooks = [layer_at(model, name).register_forward_hook(_watch(name, calls)) for name in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def by_module(calls: Sequence[Call], value: Tensor) -> dict[str, Tensor]:
    """``g^T x`` of every module that a value depends on, float32, summed over its calls."""
    found: dict[str, Tensor] = {}
    if not calls:
        return found
    gradients = torch.autograd.grad(value, [call.out for call in calls], allow_unused=True)
    for (name, module, x, _), g in zip(calls, gradients, strict=True):
        if g is not None:
            g, x = answer_rows(module, g), x.reshape(-1, x.shape[-1])
            g, kind = g.reshape(-1, g.shape[-1]).float(), kind_of(module)
            if kind is None or kind.plain:
                own = g.T @ x.float()
            else:
                own = kind.outer(wrapped_by(module), g, x if kind.indexed else x.float())
            found[name] = found[name] + own if name in found else own
    return found


def _watch(name: str, calls: list[Call]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook that notes a module's input and output; the model continues with a copy, which it may change."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if not out.requires_grad:
            out.requires_grad_()
        calls.append(Call(name, module, rows_of(module, args[0].detach()), out))
        return out.clone()

    return hook
