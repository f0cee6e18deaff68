r"""VB-LoRA (NeurIPS 2024, arXiv 2405.15179): rows of A and columns of B are put together from one bank of vectors.

Every row of A and column of B is cut into parts of length v. Each part is a mixture of the k vectors of the bank
``[h, v]`` with the highest logits:

    part = sum_{i in top-k(l)} softmax(l_top-k)_i bank_i,    dW = B A

The bank is shared by all modules and both factors, begins uniform within 0.02, and the logits ``[parts, h]`` are drawn
from N(0, 0.1^2). There is no scaling. Neither factor can begin at 0, so B A is not 0 at the start: PEFT begins
away from the base by it, here it is taken out of the weight in memory as PiSSA's start is, and the stored adapter has
rank 2r. The logits learn faster than the bank by ``ratio`` (1e-3 and 1e-2 in the paper's experiments).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting
from lorabank.training.variants.base import Parametrization, Shift, Variant

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart

_LONGEST = 256
"""The longest vectors that are chosen where no length is given: the paper's and PEFT's length."""


@dataclass(frozen=True)
class VBLora(Variant):
    """Parts of A and B are sparse mixtures of the vectors of one bank that all modules share."""

    paper: ClassVar[str | None] = "VB-LoRA, arXiv 2405.15179"
    draws: ClassVar[bool] = True
    shifts: ClassVar[bool] = True

    num_vectors: int = setting(256, "Number of vectors in the bank.", ge=2, le=65536)
    vector_length: int | None = setting(
        None, "Length of a vector, by which all sizes are divisible; default: the largest one up to 256.", ge=1
    )
    topk: int = setting(2, "Number of vectors that a part mixes.", ge=1)
    bound: float = setting(0.02, "The bank begins uniformly within this bound.", gt=0)
    deviation: float = setting(0.1, "Standard deviation of the logits at the start.", gt=0)
    ratio: float = setting(10.0, "Ratio of the logits' learning rate to the bank's (--learning-rate).", ge=1)

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """The length does not divide the sizes, or a part should mix more vectors than there are."""
        if self.topk > self.num_vectors:
            return ConfigError(
                f"a part cannot mix {self.topk} of {self.num_vectors} vectors",
                hint="lower --set topk",
                unchanged="nothing was changed",
            )
        length = self.vector_length or 1
        if site.d_in % length or site.d_out % length:
            return ConfigError(
                f"{site.name} has {site.d_in} inputs and {site.d_out} outputs, not multiples of {length}",
                hint="leave --set vector_length out, or give a divisor of both",
                unchanged="nothing was changed",
            )
        return None

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """The bank and the logits, both drawn.

        Raises:
            ConfigError: See `refusal`.
        """
        self.check_sites(context)
        return VectorBank(context.sites, context.config.r, self)

    def rank(self, r: int) -> int:
        """Of what is trained, and of what is taken out."""
        return 2 * r

    def trained(self, sites: Sequence[Site], r: int) -> int:
        """The bank, and a logit for each vector of it in each part."""
        length = self.length(sites)
        parts = sum(r * (site.d_out + site.d_in) // length for site in sites)
        return self.num_vectors * (length + parts)

    def length(self, sites: Sequence[Site]) -> int:
        """Of the vectors: what was given, or the largest common divisor of all sizes up to 256."""
        if self.vector_length is not None:
            return self.vector_length
        common = math.gcd(*(size for site in sites for size in (site.d_in, site.d_out)))
        return max(length for length in range(1, min(common, _LONGEST) + 1) if common % length == 0)


class VectorBank(Parametrization):
    """The bank, and which of its vectors each part mixes.

    Args:
        sites: What is adapted, on one device.
        r: Rank.
        settings: The variant.

    Attributes:
        bank: ``[h, v]``.
        logits_A: ``[r, d_in / v, h]`` of each site.
        logits_B: ``[d_out / v, r, h]`` of each site.
    """

    def __init__(self, sites: Sequence[Site], r: int, settings: VBLora) -> None:
        super().__init__()
        length, device = settings.length(sites), sites[0].device
        h, self._topk, self._ratio = settings.num_vectors, settings.topk, settings.ratio
        self._scaling = {site.name: 1.0 for site in sites}
        bank = torch.empty(h, length, device=device)
        self.bank = nn.Parameter(bank.uniform_(-settings.bound, settings.bound))
        self.logits_A, self.logits_B = nn.ParameterList(), nn.ParameterList()
        for site in sites:
            for logits, shape in (
                (self.logits_A, (r, site.d_in // length, h)),
                (self.logits_B, (site.d_out // length, r, h)),
            ):
                logits.append(torch.randn(shape, device=device) * settings.deviation)
        with torch.no_grad():
            self.taken = Shift(self.factors())

    def factors(self) -> LoraFactors:
        """The parts side by side."""
        A, B = {}, {}
        for site, of_A, of_B in zip(self._scaling, self.logits_A, self.logits_B, strict=True):
            A[site] = self._mixed(of_A).flatten(1)
            B[site] = self._mixed(of_B).transpose(1, 2).flatten(0, 1)
        return LoraFactors(A, B, self._scaling)

    def shift(self) -> LoraFactors:
        """What the factors were at the start."""
        return self.taken.factors()

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The logits apart; the bank is trained like all others."""
        logits = [*self.logits_A.parameters(), *self.logits_B.parameters()]
        return [{"params": logits, "lr": self._ratio * learning_rate}]

    def _mixed(self, logits: Tensor) -> Tensor:
        """``[..., h]`` to ``[..., v]``."""
        chosen, which = logits.topk(self._topk, dim=-1)
        return (chosen.softmax(-1)[..., None] * self.bank[which]).sum(-2)
