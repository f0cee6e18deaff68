r"""How much each entry of a module's weight matters: the diagonal of the Fisher information, y drawn from the model.

    F_ij = 1/N sum_n ( d log p(y_n | x_n) / d W_ij )^2,    y_n ~ p(. | x_n)

The gradient is that of one row: with inputs ``x [T, d_in]`` of a module and the gradient ``g [T, d_out]`` that arrives
at its output, ``d / d W = g^T x``, summed over the tokens and over all calls of a forward pass, and squared after
that. With the data's own label it would be the empirical Fisher (`lorabank.models.facts.fisher`), another quantity;
the square of a batch's gradient would be near zero at an optimum. Of a language model's answer every token is drawn,
each after the tokens of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def weight_fisher(
    model: nn.Module,
    modules: Sequence[str],
    rows: Iterable[Callable[[], tuple[Tensor, Tensor]]],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The diagonal Fisher information of modules ``y = W x``, whose parameters need not require gradients.

    Args:
        model: In the state that is measured, without dropout.
        modules: Their names.
        rows: Each passes one row through the model: logits ``[n, choices]`` and labels ``[n]``, which are not looked
            at but for their number.
        generator: Draws the labels, on the CPU.

    Returns:
        Module name to ``[d_out, d_in]``, float32, on the model's device; modules that no row reached are left out.
    """
    calls: list[tuple[str, Tensor, Tensor]] = []
    hooks = [model.get_submodule(name).register_forward_hook(_watch(name, calls)) for name in modules]
    sums: dict[str, Tensor] = {}
    count = 0
    try:
        for row in rows:
            calls.clear()
            with torch.enable_grad():
                logits, labels = row()
                if not len(labels):
                    continue
                drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).flatten()
                surprise = F.cross_entropy(logits, drawn.to(logits.device), reduction="sum")
                gradients = torch.autograd.grad(surprise, [out for _, _, out in calls], allow_unused=True)
            count += 1
            for name, gradient in _by_module(calls, gradients).items():
                sums[name] = sums[name].add_(gradient.square()) if name in sums else gradient.square()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / count for name, total in sums.items()}


def _watch(
    name: str, calls: list[tuple[str, Tensor, Tensor]]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook that notes a module's input and output; the model continues with a copy, which it may change."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if not out.requires_grad:
            out.requires_grad_()
        calls.append((name, args[0].detach(), out))
        return out.clone()

    return hook


def _by_module(calls: Sequence[tuple[str, Tensor, Tensor]], gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """``g^T x`` of every module, summed over its calls."""
    found: dict[str, Tensor] = {}
    for (name, x, _), g in zip(calls, gradients, strict=True):
        if g is not None:
            own = g.reshape(-1, g.shape[-1]).T.float() @ x.reshape(-1, x.shape[-1]).float()
            found[name] = found[name] + own if name in found else own
    return found
