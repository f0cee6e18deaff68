r"""MELoRA (ACL 2024, arXiv 2402.17263): several small LoRAs side by side, each on a slice of inputs and outputs.

    dW = diag_i(s_i B_i A_i),    A_i [r_i, d_in / n],    B_i [d_out / n, r_i],    s_i = lora_alpha / r_i

so that n minis of rank r_i have the rank ``r = sum r_i`` with 1 / n of LoRA's parameters at that rank. ``--r`` is the
whole rank, which is divided as evenly as it goes. Each mini begins as LoRA does. The factors of the layer are A =
diag(A_i) and B = diag(s_i / s B_i), with s of the whole rank. The released code merges as plain LoRA does, which gives
another matrix than its forward pass; the fold here is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors, lora_scaling
from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting
from lorabank.training.variants.base import Parametrization, Variant

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class MELora(Variant):
    """Small LoRAs side by side, each on a slice of the inputs and outputs."""

    paper: ClassVar[str | None] = "MELoRA, arXiv 2402.17263"
    draws: ClassVar[bool] = True

    minis: int = setting(2, "Number n of small LoRAs, a divisor of the inputs and outputs of every module.", ge=1)

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """There are fewer ranks than minis, or the sizes cannot be divided."""
        if r < self.minis:
            return ConfigError(
                f"a rank of {r} cannot be divided among {self.minis} small LoRAs",
                hint=f"raise --r to {self.minis}, or lower --set minis",
                unchanged="nothing was changed",
            )
        if site.d_in % self.minis or site.d_out % self.minis:
            return ConfigError(
                f"{site.name} has {site.d_in} inputs and {site.d_out} outputs, not multiples of {self.minis}",
                hint="give --set minis a divisor of both, or leave it out of --target-modules",
                unchanged="nothing was changed",
            )
        return None

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """Every A_i drawn, every B_i 0.

        Raises:
            ConfigError: See `refusal`.
        """
        self.check_sites(context)
        config = context.config
        ranks = self.ranks(config.r)
        own = [lora_scaling(rank, config.lora_alpha, use_rslora=config.use_rslora) for rank in ranks]
        return _SideBySide(context.sites, ranks, [each / context.scaling for each in own], context.scaling)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """Those of all small LoRAs: 1 / n of LoRA's."""
        return r * (d_out + d_in) // self.minis

    def ranks(self, r: int) -> list[int]:
        """The rank of each mini; the first ones have what is over."""
        return [r // self.minis + (number < r % self.minis) for number in range(self.minis)]


class _SideBySide(Parametrization):
    def __init__(self, sites: Sequence[Site], ranks: Sequence[int], shares: Sequence[float], scaling: float) -> None:
        super().__init__()
        self._scaling, self._shares = {site.name: scaling for site in sites}, shares
        self.A, self.B = nn.ModuleList(), nn.ModuleList()
        for site in sites:
            d_in, d_out, device = site.d_in // len(ranks), site.d_out // len(ranks), site.device
            self.A.append(nn.ParameterList(_rows(rank, d_in, device) for rank in ranks))
            self.B.append(nn.ParameterList(torch.zeros(d_out, rank, device=device) for rank in ranks))

    def factors(self) -> LoraFactors:
        """Block-diagonal A, and block-diagonal B with the share of each scaling."""
        A, B = {}, {}
        for site, rows, columns in zip(self._scaling, self.A, self.B, strict=True):
            A[site] = torch.block_diag(*rows.parameters())
            B[site] = torch.block_diag(
                *(share * b for share, b in zip(self._shares, columns.parameters(), strict=True))
            )
        return LoraFactors(A, B, self._scaling)


def _rows(r: int, d_in: int, device: torch.device) -> Tensor:
    return nn.init.kaiming_uniform_(torch.empty(r, d_in, device=device), a=math.sqrt(5))
