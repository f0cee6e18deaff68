"""What a start is: the values with which the factors of an adapter begin to be trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from lorabank.algebra.factors import LoraFactors
from lorabank.core.config import TrainConfig
from lorabank.core.shelves import STRATEGIES, VARIANTS

if TYPE_CHECKING:
    from torch import Tensor

    from lorabank.core.errors import ConfigError
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext


@dataclass(frozen=True)
class FactorStart(ABC):
    """A start with its settings, which are the fields of the dataclass.

    It reads the untouched base alone, so that the starts of two tasks do not depend on which came first.

    Attributes:
        paper: Where it was published.
        shifts: Whether ``s B A`` is not 0 at the start. It is then taken out of the weight in memory, so that training
            begins at the base's answers, and the stored adapter holds both (`Parametrization.fold`).
    """

    paper: ClassVar[str | None] = None
    shifts: ClassVar[bool] = False

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """Why a site has the wrong shape for this start, known before anything is loaded; None where it has not.

        Args:
            site: Of the base; its weight may be on the meta device.
            r: Rank of the new adapter.
            number: How many adapters the bank was given before.
        """
        return None

    @abstractmethod
    def factors(self, site: Site, context: TrainContext) -> tuple[Tensor, Tensor]:
        """A ``[r, d_in]`` and B ``[d_out, r]`` of a site, float32 on its weight's device.

        Random numbers come from torch's generator of that device, site by site in the model's order.
        """

    @property
    def refused(self) -> tuple[str, ...]:
        """The strategies, with the default variant, and the variants, with their usual strategy, that refuse it."""
        variant, others = VARIANTS.load(TrainConfig.variant)(), {name: one() for name, one in VARIANTS.items()}
        found = {f"strategy {name}": variant.refuses(one, self) for name, one in STRATEGIES.items()}
        found |= {f"variant {name}": one.refuses(one.usual, self) for name, one in others.items()}
        return tuple(f"{what}: {reason}" for what, reason in found.items() if reason)

    @torch.no_grad()
    def begin(self, context: TrainContext) -> LoraFactors:
        """A and B of every site as training begins: those of the adapter that is continued, or this start's."""
        A, B = {}, {}
        for site in context.sites:
            if context.initial is None:
                A[site.name], B[site.name] = self.factors(site, context)
            else:  # with another scaling B takes up the difference
                kept = context.initial.scaling[site.name] / context.scaling
                A[site.name] = context.initial.A[site.name].to(site.device).clone()
                B[site.name] = (context.initial.B[site.name] * kept).to(site.device)
        return LoraFactors(A, B, dict.fromkeys(context.targets, context.scaling))
