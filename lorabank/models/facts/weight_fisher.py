r"""How much each entry of a module's weight matters: the diagonal of the Fisher information, y drawn from the model.

    F_ij = 1/N sum_n ( d log p(y_n | x_n) / d W_ij )^2,    y_n ~ p(. | x_n)

The gradient is that of one row (`lorabank.models.facts.gradients`), and squared after that. With the data's own label
it would be the empirical Fisher (`lorabank.models.facts.fisher`), another quantity; the square of a batch's gradient
would be near zero at an optimum. Of a language model's answer every token is drawn, each after the tokens of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.models.facts.gradients import by_module, watched_outputs


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
    sums: dict[str, Tensor] = {}
    count = 0
    with watched_outputs(model, modules) as calls:
        for row in rows:
            calls.clear()
            with torch.enable_grad():
                logits, labels = row()
                if not len(labels):
                    continue
                drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).flatten()
                surprise = F.cross_entropy(logits, drawn.to(logits.device), reduction="sum")
                found = by_module(calls, surprise)
            count += 1
            for name, gradient in found.items():
                sums[name] = sums[name].add_(gradient.square()) if name in sums else gradient.square()
    return {name: total / count for name, total in sums.items()}
