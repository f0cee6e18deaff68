"""O-LoRA by projection: the new A stays in the orthogonal complement of what earlier adapters read.

With Q an orthonormal basis of the rows of all earlier A of a module, and A whatever the variant makes it,

    A_new = A - (A Q^T) Q

so ``A_prev A_new^T = 0`` up to rounding after every step, and no penalty is needed: gradients pass the projection,
which is projected gradient descent on the constraint that O-LoRA (arXiv 2310.14152) asks for by a penalty. Unlike the
penalty it has an end: once the earlier rows span all inputs of a module, no direction is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.subspaces import row_space
from lorabank.core.errors import ConfigError
from lorabank.training.context import TrainContext
from lorabank.training.layers.attaching import Attached
from lorabank.training.strategies.base import Strategy
from lorabank.training.variants.base import Parametrization
from lorabank.training.variants.wrapper import Wrapper


@dataclass(frozen=True)
class _ProjectedStrategy(Strategy):
    def attach(self, context: TrainContext, parametrization: Parametrization) -> Attached:
        """The new adapter, in what the earlier ones left.

        Raises:
            ConfigError: If they left nothing of a module.
        """
        bases = _bases(context)
        return super().attach(context, Projected(parametrization, bases) if bases else parametrization)


class Projected(Wrapper):
    """A parametrization without what lies in a basis.

    Args:
        inner: Any parametrization.
        bases: Orthonormal rows ``[Q, d_in]`` by site; a site may be missing.
    """

    def __init__(self, inner: Parametrization, bases: Mapping[str, Tensor]) -> None:
        super().__init__(inner)
        self._bases = {site: bases[site].to(A) for site, A in inner.factors().A.items() if site in bases}

    def factors(self) -> LoraFactors:
        """The wrapped factors, their A projected."""
        return self._projected(self.inner.factors())

    def moved(self) -> Sequence[LoraFactors]:
        """What the wrapped one moved, A projected as it was in the layers."""
        return [self._projected(factors) for factors in self.inner.moved()]

    def _projected(self, factors: LoraFactors) -> LoraFactors:
        A = {site: factors.A[site] - (factors.A[site] @ basis.mT) @ basis for site, basis in self._bases.items()}
        return replace(factors, A={**factors.A, **A})


def _bases(context: TrainContext) -> dict[str, Tensor]:
    earlier = context.earlier_by_site
    if earlier is None:
        return {}
    bases = {name: row_space(earlier.modules[name].A) for name in context.targets if name in earlier.modules}
    full = [name for name, basis in bases.items() if basis.shape[0] >= basis.shape[1]]
    if full:
        raise ConfigError(
            f"no direction is left for a new adapter: the {len(earlier.names)} earlier ones span all "
            f"{bases[full[0]].shape[1]} inputs of {full[0]}",
            hint="use --strategy olora, whose penalty needs no room, or a bank with a smaller --r",
            unchanged="nothing was changed",
        )
    return bases


PROJECTED = _ProjectedStrategy(
    "olora-projected",
    "active",
    confined=True,
    about="A new adapter that is projected, after every step, onto what no earlier adapter reads.",
    paper="the constraint of O-LoRA, arXiv 2310.14152",
)
