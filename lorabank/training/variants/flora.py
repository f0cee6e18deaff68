r"""Flora (ICML 2024, arXiv 2402.03293), the momentum alone: it is kept in a random subspace, a new one in each window.

With P of independent normal entries of variance 1 / r (algorithm 2 of the paper), and R = G P^T,

    m <- beta m + (1 - beta) R,        and m <- m P P'^T as P is followed by P'
    v <- b_t v + (1 - b_t) |R|^2 / (d_out d_in),    b_t = 1 - t^-0.8
    U = m P / sqrt(v),    U <- U / max(1, RMS(U)),    W <- W - lr * max(1e-3, RMS(W)) * U

(from the left where d_out < d_in). The authors' update is not of low rank: it adds a part of the whole G to the
momentum, and divides every entry by Adafactor's estimate, whose rows and columns change from step to step. Here all of
the update comes from m, and the estimate is averaged to one number v for each weight, of which ``|R|^2`` gives the
mean square of G on average. Adafactor's decay, its clipping of the update and its scale by the RMS of the weight (of
the untouched base) are kept. So a window is an exact adapter of rank r (`lorabank.training.variants.compressed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from lorabank.core.settings import setting
from lorabank.training.variants.base import Parametrization, Step
from lorabank.training.variants.compressed import Compressed, CompressedVariant

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart

_DECAY = 0.8
_LEAST_SCALE = 1e-3


@dataclass(frozen=True)
class Flora(CompressedVariant):
    """The weight is trained with a momentum that is kept in a random subspace."""

    paper: ClassVar[str | None] = "Flora, arXiv 2402.03293"
    own_rows: ClassVar[str | None] = "the strategy decides what A may be, and the variant draws A anew in each window"

    beta: float = setting(0.9, "Decay of the momentum.", ge=0, lt=1)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """C, and P that is drawn."""
        return _Momentum(context, self)


class _Momentum(Compressed):
    def __init__(self, context: TrainContext, settings: Flora) -> None:
        super().__init__(context, settings.windows)
        self._beta = settings.beta
        self._optimizer: torch.optim.Optimizer | None = None
        weights = [site.weight() for site in context.sites]
        self._entries = [weight.numel() for weight in weights]
        self._sizes = [max(_LEAST_SCALE, float(weight.square().mean().sqrt())) for weight in weights]
        for k, c in enumerate(self.C):
            self.register_buffer(f"m{k}", torch.zeros_like(c))
            self.register_buffer(f"v{k}", c.new_zeros(()))

    def resume(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """Find the window of the step, and keep the optimizer."""
        super().resume(step, optimizer)
        self._optimizer = optimizer

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Take the step of C in the place of the optimizer, which has its learning rate and gets no gradient."""
        if self._optimizer is None:
            return
        groups = self._optimizer.param_groups
        rate = next(group["lr"] for group in groups if any(one is self.C[0] for one in group["params"]))
        kept = 1 - step.number**-_DECAY
        for k, c in enumerate(self.C):
            if c.grad is None:
                continue
            m, v = self.get_buffer(f"m{k}"), self.get_buffer(f"v{k}")
            m.mul_(self._beta).add_(c.grad, alpha=1 - self._beta)
            v.mul_(kept).add_(c.grad.square().sum() / self._entries[k], alpha=1 - kept)
            update = m / v.sqrt().clamp_min(torch.finfo(v.dtype).tiny)
            c.sub_(update / self._size(k, update).clamp_min(1), alpha=rate * self._sizes[k])
            c.grad = None

    def change(self, before: Sequence[Tensor]) -> None:
        """Carry the momentum into the new subspace."""
        for k, (old, new) in enumerate(zip(before, self.bases(), strict=True)):
            m = self.get_buffer(f"m{k}")
            m.copy_(m @ (old @ new.mT) if self.tall(k) else (new.mT @ old) @ m)

    def _size(self, k: int, update: Tensor) -> Tensor:
        """The root mean square of ``update P``, from thin products."""
        P = self.basis(k)
        products = update * (update @ (P @ P.mT)) if self.tall(k) else update * ((P.mT @ P) @ update)
        return (products.sum().clamp_min(0) / self._entries[k]).sqrt()
