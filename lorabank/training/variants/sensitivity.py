r"""How much the loss depends on every trained number, smoothed over the steps.

The source is PLATON (ICML 2022, arXiv 2206.12562), and AdaLoRA (arXiv 2303.10512), equations 8 to 10.

    I = |w dL/dw|,    Ī ← β₁ Ī + (1 − β₁) I,    U ← β₂ U + (1 − β₂) |I − Ī|,    score = Ī U
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Sensitivity(nn.Module):
    """The averages of some parameters, which are its buffers.

    Args:
        watched: The parameters; those without a gradient keep their averages.
        beta1: Share of the mean that is kept in a step.
        beta2: The same for its uncertainty.
        weighed: Whether the gradient is multiplied by the parameter; ``|dL/dw|`` alone otherwise.
    """

    def __init__(self, watched: Sequence[nn.Parameter], beta1: float, beta2: float, *, weighed: bool = True) -> None:
        super().__init__()
        self._watched = tuple(watched)
        self._rates = 1 - beta1, 1 - beta2
        self._weighed = weighed
        self._gradients: list[Tensor | None] = []
        for k, parameter in enumerate(watched):
            self.register_buffer(f"mean_{k}", torch.zeros_like(parameter, requires_grad=False))
            self.register_buffer(f"spread_{k}", torch.zeros_like(parameter, requires_grad=False))

    def watch(self) -> None:
        """Look at the gradients, before the optimizer's step; `update` takes them."""
        self._gradients = [parameter.grad for parameter in self._watched]

    @torch.no_grad()
    def update(self) -> None:
        """Take the gradients that were seen, with the parameters as they are now."""
        there = [k for k, gradient in enumerate(self._gradients) if gradient is not None]
        gradients = [gradient for gradient in self._gradients if gradient is not None]
        self._gradients = []
        if not there:
            return
        means, spreads = (list(part) for part in zip(*(self._of(k) for k in there), strict=True))
        watched = [self._watched[k].detach() for k in there]
        found = torch._foreach_abs(torch._foreach_mul(watched, gradients) if self._weighed else gradients)
        torch._foreach_lerp_(means, found, self._rates[0])
        torch._foreach_lerp_(spreads, torch._foreach_abs(torch._foreach_sub(found, means)), self._rates[1])

    def means(self) -> list[Tensor]:
        """``Ī`` of every parameter, in its shape."""
        return [self._of(k)[0] for k in range(len(self._watched))]

    def scores(self) -> list[Tensor]:
        """``Ī U`` of every parameter, in its shape."""
        return [mean * spread for mean, spread in map(self._of, range(len(self._watched)))]

    def _of(self, k: int) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"mean_{k}"), self.get_buffer(f"spread_{k}")
