"""A saving: some rows of each batch are left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lorabank.core.settings import setting
from lorabank.training.savings.base import Saving

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.layers.attaching import Attached


@dataclass(frozen=True)
class Thinned(Saving):
    """Only the first rows of each batch are passed."""

    kept: float = setting(0.5, "Share of a batch's rows that is passed.", gt=0, le=1)

    def attach(self, context: TrainContext, attached: Attached) -> Attached:
        """The loss of fewer rows."""
        whole = attached.loss or context.loss

        def loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
            count = max(1, round(self.kept * len(inputs["labels"])))
            return whole(model, {name: tensor[:count] for name, tensor in inputs.items()})

        return replace(attached, loss=loss)
