"""What is stored of an adapter that has no factors A and B which could be summed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class TunerState:
    """An adapter of a tuner.

    Attributes:
        config: The fields of its config as JSON values; ``peft_type`` names the tuner. Those of a tuner of PEFT are
            the fields of PEFT's config, whose ``target_modules`` has full names.
        tensors: Key to tensor on the CPU, floats in float32; of a tuner of PEFT its state dict.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def r(self) -> int:
        """Its rank; 1 where the tuner has none."""
        return max(1, int(self.config.get("r") or 1))

    @property
    def lora_alpha(self) -> float:
        """The numerator of its scaling; the rank where the tuner has none of this name."""
        return float(self.config.get("lora_alpha") or self.r)
