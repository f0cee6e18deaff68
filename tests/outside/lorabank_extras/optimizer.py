"""An optimizer: gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorabank.core.settings import setting
from lorabank.training.optimizers.base import Optimizer


@dataclass(frozen=True)
class Descent(Optimizer):
    """Gradient descent with momentum."""

    momentum: float = setting(0.9, "Decay of the sum of the gradients.", ge=0, lt=1)

    def build(self, groups: Sequence[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
        """Torch's."""
        return torch.optim.SGD(groups, lr=learning_rate, momentum=self.momentum)
