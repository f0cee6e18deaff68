"""What a saving is: a step of the training costs less memory or time, and the adapter that comes of it has any form.

Savings know nothing of variants and strategies: they change how a model passes forward and backward, or the loss of a
batch. Several may be chosen; each is put on the model behind the ones before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from lorabank.models.bases.sites import layer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorabank.core.errors import IncompatibleError
    from lorabank.training.context import TrainContext
    from lorabank.training.layers.attaching import Attached


@dataclass(frozen=True)
class Saving(ABC):
    """A saving with its settings, which are the fields of the dataclass.

    Attributes:
        paper: Where it was published.
        partial: Whether some factors may get no gradient in a step.
        attends: Whether it replaces the attention of the model, which only one saving can do.
    """

    paper: ClassVar[str | None] = None
    partial: ClassVar[bool] = False
    attends: ClassVar[bool] = False

    def refusal(self, model: PreTrainedModel, adapted: Collection[str] = ()) -> IncompatibleError | None:
        """Why a model cannot be trained with it, known before anything is loaded; None where it can.

        Args:
            model: Of the base's classes and settings; its weights may be on the meta device.
            adapted: Full names of the modules that will be adapted, beside those that have an adapter's layer already.
        """
        return None

    @abstractmethod
    def attach(self, context: TrainContext, attached: Attached) -> Attached:
        """Put it on the model behind the adapter, in place.

        Args:
            context: As the strategy had it; the model has the adapter's layers now.
            attached: What is trained.

        Returns:
            The same, with what the saving changes: the loss, a wrapped parametrization whose buffers checkpoints hold,
            and in ``ends`` what takes it off the model again.

        Raises:
            IncompatibleError: The model is of a kind that it does not fit (`refusal`).
        """


def layers_in(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The transformer layers of a model with their names, in its order: members of its outermost lists of modules."""
    for name, module in model.named_modules():
        place = layer_of(model, name)
        if place is not None and name == f"{place[0]}.{place[1]}" and any(True for _ in module.parameters()):
            yield name, module
