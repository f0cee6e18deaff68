r"""HydraLoRA (NeurIPS 2024, arXiv 2404.19245): one A, several B, and a router that weighs these for every token.

    y = W x + b + s sum_i w_i B_i A x,    w = softmax(R x)

A, all B and the router R are trained together (equations 3 and 4). The router has no noise, and the loss has no term
that balances it, as in the authors' code. The adapter depends on the input, so it is stored as it is
(`lorabank.models.tuners.hydra`), and its task answers alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from lorabank.core.limits import MAX_RANK
from lorabank.core.settings import setting
from lorabank.models.bases.passed_by import check_called
from lorabank.models.tuners.hydra import HydraLinear, hydra_state, put_hydra_on
from lorabank.training.variants.alone import AloneVariant, Tuned

if TYPE_CHECKING:
    from lorabank.core.errors import ConfigError
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart
    from lorabank.training.variants.base import Step


class TrainedHydra(Tuned):
    """The layers of an adapter, which are trained.

    Args:
        layers: By site.
        heads: Number of matrices B of each.
        context: Has the rank and the scaling.
    """

    def __init__(self, layers: Mapping[str, HydraLinear], heads: int, context: TrainContext) -> None:
        config = context.config
        state = partial(
            hydra_state,
            layers,
            heads=heads,
            r=config.r,
            lora_alpha=config.lora_alpha,
            use_rslora=config.use_rslora,
        )
        super().__init__(state)
        self._layers = layers

    def after_step(self, step: Step) -> None:
        """Refuse layers that the model's code passes by."""
        check_called(self._layers, hint="leave it out of --target-modules")


@dataclass(frozen=True)
class HydraLora(AloneVariant):
    """One A is shared by several matrices B, which a router weighs for every token."""

    paper: ClassVar[str | None] = "HydraLoRA, arXiv 2404.19245"
    name: ClassVar[str] = "hydralora"
    learning_rate: ClassVar[float | None] = 2e-4
    why: ClassVar[str] = "its matrices B are weighed by the input, which no delta weight is"
    no_penalty: ClassVar[str] = "a penalty is about one A and one B of a module, and the variant trains several B"
    whole: ClassVar[str] = "its layers need every pass whole"

    heads: int = setting(3, "Number of matrices B of a module.", ge=1, le=MAX_RANK)

    def parametrize(self, context: TrainContext, start: FactorStart) -> TrainedHydra:
        """A of the start, its B for every head, and a random router."""
        factors, dropout = start.begin(context), context.config.lora_dropout
        layers = put_hydra_on(context.model, context.sites, factors, self.heads, dropout)
        return TrainedHydra(layers, self.heads, context)

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """Only linear layers are adapted, whole or blocks of their rows: the router reads what they read."""
        if site.plain and site.columns is None:
            return None
        why = f"weighs what a linear layer reads, and {site.name} is a {type(site.module).__name__}"
        return self._refused(why, "give --target-modules the names of linear layers")

    @property
    def refused(self) -> tuple[str, ...]:
        """All methods that sum, continue or hold A and B."""
        return (
            f"every strategy but isolated: {self.why}, so the task answers alone",
            f"every penalty: {self.no_penalty}",
            "starts that are taken out of the weight",
            "savings of a part of each step, a shared head, and modules that are not linear layers",
        )

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """A, every B and the router."""
        return r * d_in + self.heads * (r * d_out + d_in)
