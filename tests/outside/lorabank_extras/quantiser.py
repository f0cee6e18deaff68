"""A quantiser: whole multiples of a step for each matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabank.core.settings import setting
from lorabank.models.bases.quantised.base import Quantiser


@dataclass(frozen=True)
class Rounded(Quantiser):
    """Whole multiples of one step."""

    levels: int = setting(127, "Multiples on each side of 0.", ge=1, le=127)

    def quantise(self, weight: Tensor) -> dict[str, Tensor]:
        """The multiples and the step."""
        step = weight.abs().max() / self.levels
        return {"multiples": (weight / step).round().to(torch.int8), "step": step.reshape(1)}

    def dequantise(self, kept: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Multiples times step."""
        return (kept["multiples"] * kept["step"]).to(dtype)
