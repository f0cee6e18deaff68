r"""NF4 with double quantisation (QLoRA, NeurIPS 2023, arXiv 2305.14314, sections 2 and 3, appendix E).

A matrix is cut, row after row, into blocks of ``block_size`` numbers. A block w becomes its largest magnitude and the
numbers of the nearest of 16 levels:

    c = max |w|,    q_i = argmin_j |w_i / c - l_j|,    w_i ~ c l_(q_i)

The levels l are quantiles of a normal distribution scaled to [-1, 1], with 0 among them; two numbers q share a byte.
With ``double_quant`` the magnitudes, less their mean, are themselves kept in 8 bits, in blocks of 256, as the paper
does: 4 + 8 / 64 + 32 / (64 * 256) = 4.127 bits for each weight in place of 4.5. Their levels are those of Dettmers'
8-bit optimizers (ICLR 2022, arXiv 2110.02861, appendix on dynamic trees): 0, 1, and for e = 0..6 the middles of 2^e
equal parts of [0.1, 1], times 10^(e - 6), with both signs.

The codes are those of bitsandbytes, which transformers loads with ``load_in_4bit`` and ``bnb_4bit_quant_type="nf4"``;
of its 8-bit magnitudes one in some hundreds is a level beside the nearest, which is taken here. That package is not
used: on a CPU it gives back wrong weights where a row does not consist of whole blocks (0.50.2). It also differs in
that the weights are quantised from float32 on the CPU, whatever the dtype and device of the computation, so that they
are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lorabank.core.settings import setting
from lorabank.models.bases.quantised.base import Quantiser

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Of NF4, from the paper's appendix E."""

_OUTER = 256
"""Magnitudes that share one constant of the second quantisation."""


@dataclass(frozen=True)
class NF4(Quantiser):
    """4 bits for each weight: the nearest of 16 quantiles of a normal distribution, scaled for each block."""

    paper: ClassVar[str | None] = "QLoRA, arXiv 2305.14314"

    block_size: Literal["32", "64", "128", "256", "512", "1024"] = setting("64", "Weights that share one magnitude.")
    double_quant: bool = setting(True, "Keep the magnitudes in 8 bits too.")

    def quantise(self, weight: Tensor) -> dict[str, Tensor]:
        """Codes, two in a byte, and magnitudes."""
        codes, magnitudes = _nearest(weight.flatten(), torch.tensor(LEVELS), int(self.block_size))
        codes = F.pad(codes, (0, codes.numel() % 2)).view(-1, 2)
        kept = {"codes": (codes[:, 0] << 4) | codes[:, 1], "magnitudes": magnitudes}
        if self.double_quant:
            mean = magnitudes.mean()
            levels = _dynamic_levels()
            kept["magnitudes"], kept["outer"] = _nearest(magnitudes - mean, levels, _OUTER)
            kept |= {"mean": mean.reshape(1), "levels": levels}
        return kept

    def dequantise(self, kept: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """The level of each code times its block's magnitude."""
        codes, magnitudes, count = kept["codes"], kept["magnitudes"], shape[0] * shape[1]
        if self.double_quant:
            levels = kept["levels"].index_select(0, magnitudes.int())
            magnitudes = _scaled(levels, kept["outer"], _OUTER) + kept["mean"]
        level = torch.tensor(LEVELS, device=codes.device)
        pairs = torch.stack([level.repeat_interleave(16), level.repeat(16)], 1)  # of each byte, read as one number
        found = pairs.view(torch.int64).flatten().index_select(0, codes.int()).view(torch.float32)[:count]
        return _scaled(found, magnitudes, int(self.block_size)).view(shape).to(dtype)

    def elsewhere(self, left: Sequence[str] = ()) -> str | None:
        """Of blocks of 64; transformers has no other ones."""
        if self.block_size != "64":
            return None
        return (
            'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
            f"bnb_4bit_use_double_quant={self.double_quant}, llm_int8_skip_modules={list(left)})"
        )


def _nearest(values: Tensor, levels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The numbers of the nearest levels as uint8, and the largest magnitude of each block."""
    blocks = F.pad(values, (0, -values.numel() % block)).view(-1, block)
    magnitudes = blocks.abs().amax(1)
    relative = blocks * (1.0 / magnitudes.clamp_min(1e-38))[:, None]
    codes = torch.bucketize(relative, (levels[1:] + levels[:-1]) / 2)
    return codes.flatten()[: values.numel()].to(torch.uint8), magnitudes


def _scaled(values: Tensor, magnitudes: Tensor, block: int) -> Tensor:
    """Each value times its block's magnitude; the values' memory is used."""
    missing = -values.numel() % block
    whole = F.pad(values, (0, missing)) if missing else values
    return whole.view(-1, block).mul_(magnitudes[:, None]).flatten()[: values.numel()]


def _dynamic_levels() -> Tensor:
    """The 256 levels of magnitudes, rising."""
    levels = [0.0, 1.0]
    for e in range(7):
        edges = torch.linspace(0.1, 1, 2**e + 1)
        middles = 10.0 ** (e - 6) * (edges[1:] + edges[:-1]) / 2
        levels += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(levels))
