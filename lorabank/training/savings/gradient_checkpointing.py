"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): a layer's activations are computed again when needed.

The forward pass keeps the input of each transformer layer alone; the backward pass runs the layer again, with the same
random numbers, before it passes through it. So the memory of activations falls to one layer's and an input for each
other, for one more forward pass, and every gradient is the same to the last bit.

transformers' own switch works only in training mode; a training without dropout runs in eval mode, and this one works
there too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorabank.core.errors import IncompatibleError
from lorabank.training.savings.base import Saving, layers_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorabank.training.context import TrainContext
    from lorabank.training.layers.attaching import Attached

_UNCACHED = {"past_key_values": None, "past_key_value": None, "layer_past": None, "use_cache": False}
"""What a layer is given in the place of a cache for its keys and values, which nobody reads in a training step."""


@dataclass(frozen=True)
class GradientCheckpointing(Saving):
    """Activations of a layer are not kept but computed again in the backward pass; gradients stay the same."""

    paper: ClassVar[str | None] = "Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174"

    def refusal(self, model: PreTrainedModel, adapted: Collection[str] = ()) -> IncompatibleError | None:
        """The model has no list of layers."""
        if any(True for _ in layers_in(model)):
            return None
        return IncompatibleError(
            f"{type(model).__name__} has no list of layers whose activations could be forgotten",
            hint="leave out --saving gradient-checkpointing",
            unchanged="nothing was changed",
        )

    def attach(self, context: TrainContext, attached: Attached) -> Attached:
        """Every transformer layer forgets its activations.

        Raises:
            IncompatibleError: See `refusal`.
        """
        if refusal := self.refusal(context.model):
            raise refusal
        layers = [layer for _, layer in layers_in(context.model)]
        for layer in layers:
            vars(layer)["forward"] = partial(_again, layer.forward)  # the class's own stays behind it
        return replace(attached, ends=(*attached.ends, partial(_restore, layers)))


def _again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A layer's forward pass, which keeps only its inputs where gradients are wanted."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # a cache would be written to a second time
    kwargs |= {name: value for name, value in _UNCACHED.items() if name in kwargs}
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _restore(layers: list[nn.Module]) -> None:
    for layer in layers:
        del vars(layer)["forward"]
