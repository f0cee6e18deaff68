r"""Variants that train the weight itself by gradients in a space of few dimensions, another one in every window.

With G the gradient of ``W [d_out, d_in]`` and a matrix P that is fixed for a window,

    W = W_k + C P,    P [r, d_in],     dL/dC = G P^T        where d_out >= d_in
    W = W_k + P C,    P [d_out, r],    dL/dC = P^T G        elsewhere

where C is zero as a window begins, and moved into the weight with P as it ends. So the projected gradient is that of a
factor beside a frozen one, and the layers need not make G: a step costs less than LoRA's. The stored adapter is the
concatenation of all windows, exact because P is constant in each, of rank ``windows * r``.

What the projected gradient does to C is the variant's. s is 1: there is no other scaling than the learning rate. No
inputs are dropped, since C P stands for the weight, and weight decay, which would shrink all of W, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting
from lorabank.training.variants.base import Parametrization, Step, Variant
from lorabank.training.variants.windows import Moved, drawn_seed, over, rank_refusal

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext


@dataclass(frozen=True)
class CompressedVariant(Variant):
    """What these variants have in common."""

    moves: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    learning_rate: ClassVar[float | None] = 1e-2

    windows: int = setting(4, "How many subspaces in turn; the adapter's rank is this many times --r.", ge=1)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """The longer side of the weight."""
        return r * max(d_out, d_in)

    def rank(self, r: int) -> int:
        """That of all windows together."""
        return self.windows * r

    def unfit(self, config: TrainConfig) -> ConfigError | None:
        """There is weight decay, or the adapter's rank is above the limit."""
        if not config.weight_decay:
            return rank_refusal(self.windows, config.r, f"{config.variant}.windows")
        return ConfigError(
            f"weight decay shrinks the whole weight with variant {config.variant!r}: that is not of low rank",
            hint="--weight-decay 0",
            unchanged="nothing was changed",
        )


class Compressed(Parametrization):
    """C, and P that the variant chooses in each window.

    Args:
        context: What is adapted, and by which rank: the dimensions of a window.
        windows: How many there are.

    Attributes:
        sites: Their names.
        r: The dimensions.
        C: By site, in order: ``[d_out, r]``, or ``[r, d_in]`` where the weight is wider than high.
        past: What was moved.
    """

    def __init__(self, context: TrainContext, windows: int) -> None:
        super().__init__()
        self.r = r = context.config.r
        self._windows = windows
        self._seed = drawn_seed()
        self._tall = {site.name: site.d_out >= site.d_in for site in context.sites}
        self.sites = tuple(self._tall)
        C, P = [], []
        for site in context.sites:
            left, right = (torch.zeros(*shape, device=site.device) for shape in ((site.d_out, r), (r, site.d_in)))
            C.append(left if self._tall[site.name] else right)
            P.append(right if self._tall[site.name] else left)
        self.C = nn.ParameterList(C)
        for k, basis in enumerate(P):
            self.register_buffer(f"P{k}", basis)
        self.draw(0)
        self.past = Moved(self.factors(), windows - 1)

    @property
    def drops_inputs(self) -> bool:
        """What is trained is the weight."""
        return False

    def factors(self) -> LoraFactors:
        """C beside P."""
        A, B = {}, {}
        for k, (site, tall) in enumerate(self._tall.items()):
            A[site], B[site] = (self.basis(k), self.C[k]) if tall else (self.C[k], self.basis(k))
        return LoraFactors(A, B, dict.fromkeys(self._tall, 1.0))

    def moved(self) -> list[LoraFactors]:
        """C and P of the windows that are over."""
        return self.past.factors()

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """C apart, which no weight decay shrinks."""
        return [{"params": list(self.C), "lr": learning_rate, "weight_decay": 0.0}]

    def resume(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """Find the window of the step."""
        self.past.done = over(step.number - 1, step.total, self._windows)

    def after_step(self, step: Step) -> None:
        """Move C P into the weight where a window ends."""
        if over(step.number, step.total, self._windows) == self.past.done:
            return
        self.past.keep(self.factors())
        before = [basis.clone() for basis in self.bases()]
        self.draw(self.past.done)
        with torch.no_grad():
            for c in self.C:
                c.zero_()
        self.change(before)

    @torch.no_grad()
    def draw(self, window: int) -> None:
        """Draw P of a window: independent normal entries of variance 1 / r, so that P^T P is the identity on average.

        Draws come from a generator of their own: they are the same in each of several processes.
        """
        generator = torch.Generator().manual_seed(self._seed + window)
        for basis in self.bases():
            basis.copy_(torch.randn(basis.shape, generator=generator) / self.r**0.5)

    def change(self, before: Sequence[Tensor]) -> None:
        """Called when P is another one than before; by default nothing."""

    def bases(self) -> Iterator[Tensor]:
        """P of every site, in order."""
        return (self.basis(k) for k in range(len(self._tall)))

    def basis(self, k: int) -> Tensor:
        """P of the k-th site."""
        return self.get_buffer(f"P{k}")

    def tall(self, k: int) -> bool:
        """Whether the weight of the k-th site is at least as high as wide, so that P stands on the right."""
        return self._tall[self.sites[k]]
