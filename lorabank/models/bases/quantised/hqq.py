r"""HQQ, half-quadratic quantisation (Badri and Shaji, 2023): groups of weights with a step and a zero point.

A matrix is cut, row after row, into groups of ``group_size`` numbers. A group w is kept as whole numbers q of ``bits``
bits:

    q = clamp(round(w / s + z), 0, 2^bits - 1),    w ~ s (q - z)

Step and zero point begin as those of the range of w; z then minimises the sum of ``|w - s (q - z)|^p``, p = 0.7, in
turn with the error e, as the paper's half-quadratic splitting does with beta = 10 and kappa = 1.01, 20 times at most:

    e = sign(d) relu(|d| - |d|^(p - 1) / beta),  d = w - s (q - z);    z = mean(q - (w - e) / s);    beta = kappa beta

A change D of the weight that is constant within each group goes into the zero points, with the same codes and steps.
QA-LoRA merges an adapter so (arXiv 2309.14717, section 3.3):

    w + D = s (q - z),    z := z - D / s

It needs no data and no package. It differs in three things: the zero point with the smallest mean error is kept, not
the last one; it begins exact, where the authors' code rounds it for 4 bits; and s is kept in 16 bits, relative to the
largest of the matrix, before z and q are computed with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lorabank.core.errors import IncompatibleError
from lorabank.core.settings import setting
from lorabank.models.bases.quantised.base import Quantiser

_POWER, _BETA, _KAPPA, _TURNS = 0.7, 10.0, 1.01, 20
_BYTE = 8
_SIZES = (256, 128, 64, 32)


@dataclass(frozen=True)
class HQQ(Quantiser):
    """Whole numbers of 8, 4 or 2 bits, with a step and a fitted zero point for each group of weights."""

    paper: ClassVar[str | None] = "HQQ, Mobius Labs 2023"

    bits: Literal["8", "4", "2"] = setting("4", "Bits of each weight.")
    group_size: Literal["32", "64", "128", "256"] = setting("64", "Weights that share a step and a zero point.")

    def quantise(self, weight: Tensor) -> dict[str, Tensor]:
        """Codes, packed; steps and zero points."""
        groups = self._groups(weight)
        low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        steps = (high - low) / self._most
        largest = steps.max().clamp_min(torch.finfo(torch.float32).tiny) if steps.any() else torch.ones(())
        steps = torch.where(high > low, steps, largest)
        steps = (steps / largest).clamp_min(torch.finfo(torch.float16).tiny).half()
        zeros = self._fitted(groups, steps.float() * largest, -low / (steps.float() * largest))
        codes = self._codes(groups, steps.float() * largest, zeros).to(torch.uint8)
        return {
            "codes": self._packed(codes.flatten()),
            "steps": steps.flatten(),
            "zeros": zeros.flatten(),
            "largest": largest.reshape(1),
        }

    def dequantise(self, kept: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """``s (q - z)`` of every code."""
        codes = self._unpacked(kept["codes"]).view(len(kept["steps"]), -1)  # `shifted` makes smaller ones
        matrix = (codes.float() - kept["zeros"][:, None]) * (kept["steps"].float()[:, None] * kept["largest"])
        return matrix.flatten()[: shape[0] * shape[1]].view(shape).to(dtype)

    def shifted(self, kept: Mapping[str, Tensor], delta: Tensor, group: int) -> dict[str, Tensor]:
        """Other zero points; groups of which D has several values are cut into as many, with the same step."""
        if not delta.any():  # of biases alone, say
            return dict(kept)
        own, (d_out, count) = int(self.group_size), delta.shape
        d_in = count * group
        if d_in % own or (own % group and group % own):
            raise IncompatibleError(
                f"an adapter that is constant in groups of {group} of {d_in} inputs does not fit zero points of "
                f"groups of {own}: one size must be a multiple of the other, and the number of inputs of both",
                hint=f"{self._fitting(d_in)}export without --merged",
                unchanged="nothing was written",
            )
        smaller = min(own, group)
        times = own // smaller
        steps, zeros = (kept[name].view(d_out, -1).repeat_interleave(times, 1) for name in ("steps", "zeros"))
        wide = delta.repeat_interleave(group // smaller, 1).double() / (steps.double() * kept["largest"].double())
        return dict(kept) | {"steps": steps.flatten(), "zeros": (zeros.double() - wide).float().flatten()}

    def by_hand(self) -> str:
        """As `dequantise`."""
        shifts = f"torch.arange({_BYTE - int(self.bits)}, -1, -{self.bits})"
        return (
            f"codes = (kept['codes'][:, None].int() >> {shifts} & {self._most}).view(len(kept['steps']), -1)\n"
            "numbers = (codes - kept['zeros'][:, None]) * (kept['steps'].float() * kept['largest'])[:, None]\n"
        )

    def _fitting(self, d_in: int) -> str:
        """What makes adapters that fit this number of inputs; nothing where no size of a group divides it."""
        own = int(self.group_size)
        size = own if d_in % own == 0 else next((one for one in _SIZES if d_in % one == 0), None)
        if size is None:
            return ""
        where = "" if size == own else f" in a bank of init --quantise hqq:bits={self.bits},group_size={size}"
        return f"train with --variant qa-lora --set group={size}{where}, or "

    @property
    def _most(self) -> int:
        return (1 << int(self.bits)) - 1

    def _groups(self, weight: Tensor) -> Tensor:
        """``[n, group_size]``; the last group is filled with the last weight."""
        flat = weight.flatten()
        missing = -len(flat) % int(self.group_size)
        return torch.cat([flat, flat[-1:].expand(missing)]).view(-1, int(self.group_size))

    def _codes(self, groups: Tensor, steps: Tensor, zeros: Tensor) -> Tensor:
        return (groups / steps + zeros).round().clamp(0, self._most)

    def _fitted(self, groups: Tensor, steps: Tensor, zeros: Tensor) -> Tensor:
        """The zero points of the smallest mean error."""
        best, kept, beta = float("inf"), zeros, _BETA
        for _ in range(_TURNS):
            codes = self._codes(groups, steps, zeros)
            left = groups - (codes - zeros) * steps
            error = float(left.abs().mean())
            if error >= best:
                break
            best, kept = error, zeros
            size = left.abs()
            shrunk = left.sign() * F.relu(size - size.clamp_min(1e-12).pow(_POWER - 1) / beta)
            zeros = (codes - (groups - shrunk) / steps).mean(1, keepdim=True)
            beta *= _KAPPA
        return kept

    def _packed(self, codes: Tensor) -> Tensor:
        """As many codes in a byte as have room, the first in its highest bits."""
        each = _BYTE // int(self.bits)
        shifts = torch.arange(each - 1, -1, -1, dtype=torch.uint8) * int(self.bits)
        return (codes.view(-1, each) << shifts).sum(1, dtype=torch.uint8)

    def _unpacked(self, packed: Tensor) -> Tensor:
        each = _BYTE // int(self.bits)
        shifts = torch.arange(each - 1, -1, -1, dtype=torch.uint8, device=packed.device) * int(self.bits)
        return ((packed[:, None] >> shifts) & self._most).flatten()
