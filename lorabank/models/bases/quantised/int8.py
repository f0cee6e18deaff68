r"""8 bits for each weight, with one magnitude for each row (LLM.int8(), NeurIPS 2022, arXiv 2208.07339, section 2.1).

    c_o = max_i |W_oi|,    q_oi = round(127 W_oi / c_o),    W_oi ~ c_o q_oi / 127

These are the weights of the paper. Its inputs are quantised too, and its columns of outliers multiplied apart; here
inputs stay as they are, so that the layer is one matrix, and every adapter has one meaning on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorabank.models.bases.quantised.base import Quantiser

_MOST = 127


@dataclass(frozen=True)
class Int8(Quantiser):
    """8 bits for each weight: whole numbers, scaled for each row."""

    paper: ClassVar[str | None] = "LLM.int8(), arXiv 2208.07339"

    def quantise(self, weight: Tensor) -> dict[str, Tensor]:
        """Codes and the step of each row."""
        steps = weight.abs().amax(1) / _MOST
        codes = (weight / steps.where(steps > 0, torch.ones_like(steps))[:, None]).round().to(torch.int8)
        return {"codes": codes, "steps": steps}

    def dequantise(self, kept: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Each code times its row's step."""
        return (kept["codes"] * kept["steps"][:, None]).to(dtype)

    def elsewhere(self, left: Sequence[str] = ()) -> str | None:
        """With the inputs quantised too."""
        return f"BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules={list(left)})"
