r"""HydraLoRA (NeurIPS 2024, arXiv 2404.19245): one A, several B, and a router that weighs these for every token.

    y = W x + b + s sum_i w_i B_i A x,    w = softmax(R x)

A, all B and the router R are trained together (equations 3 and 4). The router has no noise, and the loss has no term
that balances it, as in the authors' code. The adapter depends on the input, so it is stored as it is
(`lorabank.models.tuners.hydra`), and its task answers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lorabank.core.limits import MAX_RANK
from lorabank.core.settings import setting
from lorabank.models.bases.passed_by import check_called
from lorabank.models.bases.sites import WrappedLinear, bias_of, weight_of
from lorabank.models.tuners.hydra import HydraFactors, hydra_state
from lorabank.training.kernels.hydra import hydra_linear
from lorabank.training.variants.alone import AloneVariant, Tuned

if TYPE_CHECKING:
    from lorabank.algebra.factors import LoraFactors
    from lorabank.core.errors import ConfigError
    from lorabank.models.bases.sites import Site
    from lorabank.models.tuners.state import TunerState
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart
    from lorabank.training.variants.base import Step


class HydraLinear(WrappedLinear):
    """A frozen linear module with a trainable HydraLoRA adapter.

    Args:
        base: The linear layer, quantised layer or Conv1D; frozen here.
        factors: Of the site; copied, in float32.
        dropout: Probability with which an input of A is dropped while training.
    """

    def __init__(self, base: nn.Module, factors: HydraFactors, dropout: float) -> None:
        super().__init__(base.requires_grad_(False))
        self.hydra_A, self.hydra_B = nn.Parameter(factors.A.clone()), nn.Parameter(factors.B.clone())
        self.hydra_router = nn.Parameter(factors.router.clone())
        self.scaling, self.dropout = factors.scaling, dropout

    @property
    def factors(self) -> HydraFactors:
        """The parameters."""
        return HydraFactors(self.hydra_A, self.hydra_B, self.hydra_router, self.scaling)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d_in]`` to ``[..., d_out]``."""
        self._mark_called()
        W, b, p = weight_of(self.base), bias_of(self.base), self.dropout if self.training else 0.0
        return hydra_linear(x, W, b, self.hydra_A, self.hydra_B, self.hydra_router, self.scaling, p)


@torch.no_grad()
def put_hydra_on(
    model: nn.Module, sites: Sequence[Site], start: LoraFactors, heads: int, dropout: float
) -> dict[str, HydraLinear]:
    """Put trainable layers on a model, in place.

    Every ``B_i`` begins as B of the start, so that their weighted sum is B whatever the router says. The router begins
    uniform in ``+-1 / sqrt(d_in)``, as `torch.nn.Linear` does and the authors' code too.

    Args:
        model: The untouched base.
        sites: What to adapt: linear layers, or blocks of rows of them.
        start: A and B by site, with the scaling.
        heads: N.
        dropout: On the input of A.

    Returns:
        The layers by the sites' names.
    """
    layers = {}
    for site in sites:
        A, B = start.A[site.name].float(), start.B[site.name].float()
        router = A.new_empty(heads, site.d_in).uniform_(-(site.d_in**-0.5), site.d_in**-0.5)
        factors = HydraFactors(A, B.repeat(1, heads), router, start.scaling[site.name])
        layers[site.name] = site.wrap(model, partial(HydraLinear, factors=factors, dropout=dropout))
    return layers


class TrainedHydra(Tuned):
    """The layers of an adapter, which are trained.

    Args:
        layers: By site.
        heads: Number of matrices B of each.
        context: Has the rank and the scaling.
    """

    def __init__(self, layers: Mapping[str, HydraLinear], heads: int, context: TrainContext) -> None:
        config = context.config

        def state() -> TunerState:
            factors = {name: layer.factors for name, layer in layers.items()}
            r, alpha = config.r, config.lora_alpha
            return hydra_state(factors, heads=heads, r=r, lora_alpha=alpha, use_rslora=config.use_rslora)

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
        why = f"weighs what a linear layer reads, and {site.name} is of the class {type(site.module).__name__}"
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
