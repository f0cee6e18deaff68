r"""GaLore (ICML 2024, arXiv 2403.03507): Adam on gradients that are projected onto their leading singular vectors.

As a window begins, with G the gradient of the weight in its first step (section 3 of the paper, algorithm 2),

    P = the r leading right singular vectors of G    (left ones where d_out < d_in)
    R = G P^T,    W <- W - lr * scale * Adam(R) P

Within a window P is constant and Adam acts on R alone, so the weight moves by C P with C trained by Adam
(`lorabank.training.variants.compressed`), and each window is an exact adapter of rank r. G itself is made in the first
step of a window only. As in the authors' code, Adam's moments go on when P changes.

The paper changes P every 200 steps; here the number of windows is set, so that the stored rank is known. Weight decay
is refused, and what the authors train beside the projected matrices (norms, embeddings) is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting
from lorabank.models.bases.sites import is_plain
from lorabank.training.variants.base import Parametrization, Step
from lorabank.training.variants.compressed import Compressed, CompressedVariant
from lorabank.training.variants.dense_gradients import DenseGradients
from lorabank.training.variants.windows import begun

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class GaLore(CompressedVariant):
    """The weight is trained by Adam in the leading singular directions of its gradient."""

    paper: ClassVar[str | None] = "GaLore, arXiv 2403.03507"
    watches: ClassVar[bool] = True
    own_rows: ClassVar[str | None] = "the strategy decides what A may be, and the variant takes A from the gradient"

    scale: float = setting(0.25, "What Adam's step is multiplied by (alpha).", gt=0)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """C, and P that is found in the first step of each window."""
        return _Projected(context, self)

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """The module is not a linear layer."""
        if is_plain(site.module):
            return None
        return ConfigError(
            f"variant 'galore' computes the gradient of a whole weight, and {site.name} is not a linear layer",
            hint="leave it out of --target-modules, or choose another --variant",
            unchanged="nothing was changed",
        )


class _Projected(Compressed):
    def __init__(self, context: TrainContext, settings: GaLore) -> None:
        super().__init__(context, settings.windows)
        self._scale = settings.scale
        self._dense: DenseGradients | None = None

    def begin(self, layers: Mapping[str, nn.Module]) -> None:
        """Watch the layers."""
        self._dense = DenseGradients(layers)

    def resume(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """Make the whole gradient in this step if a window begins with it."""
        super().resume(step, optimizer)
        if self._dense is not None:
            self._dense.open = step.number - 1 == begun(self.past.done, step.total, self._windows)

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """C's learning rate is scaled."""
        return super().groups(self._scale * learning_rate)

    @torch.no_grad()
    def after_loss(self, step: Step) -> None:
        """In the first step of a window: P from the whole gradient, and C's gradient by this P."""
        if self._dense is None or not self._dense.open:
            return
        gradients = self._dense.taken()
        for k, site in enumerate(self.sites):
            if site not in gradients:
                continue
            G, P, gradient = gradients[site], self.basis(k), self.C[k].grad
            U, _, V = torch.linalg.svd(G, full_matrices=False)
            leading = V[: self.r] if self.tall(k) else U.mT[: self.r]
            P.zero_()  # a weight may have fewer singular vectors than r
            (P if self.tall(k) else P.mT)[: len(leading)] = leading
            if gradient is not None:
                gradient.copy_(G @ P.mT if self.tall(k) else P.mT @ G)

    def change(self, before: Sequence[Tensor]) -> None:
        """The whole gradient is made in the next step."""
        if self._dense is not None:
            self._dense.open = True
