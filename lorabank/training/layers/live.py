"""The layers' factors and what they come from, kept equal: values forward after a step, gradients back before it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorabank.training.layers.layer import LoraLinear
from lorabank.training.variants.base import Parametrization

SUBMODULE = "parametrization"
"""Where the model holds a parametrization whose parameters its layers do not have."""


class Live:
    """A parametrization at work in a model's layers.

    Args:
        model: Holds the layers. A parametrization that trains more than them becomes its submodule, so that the
            optimizer, clipping and checkpoints find it. Several processes leave it out of what they exchange: they do
            so with the gradients of the layers' factors, from which each gets the same.
        layers: By site.
        parametrization: What is trained.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, LoraLinear], parametrization: Parametrization) -> None:
        self.parametrization = parametrization
        self._layers = layers
        self._made: list[tuple[nn.Parameter, Tensor]] = []
        self._derived = [leaf for leaf, made in self._pairs() if leaf is not made]
        known = {id(parameter) for parameter in model.parameters()}
        own = [parameter for parameter in parametrization.parameters() if parameter.requires_grad]
        if any(id(parameter) not in known for parameter in own):
            model.add_module(SUBMODULE, parametrization)
            names = [f"{SUBMODULE}.{name}" for name in parametrization.state_dict()]
            model._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]
        self.refresh()

    def derives(self, parameter: Tensor) -> bool:
        """Whether a parameter of the model is a factor that comes from others, and not trained itself."""
        return any(parameter is leaf for leaf in self._derived)

    def refresh(self) -> None:
        """Give the layers the factors of the parameters as they are now."""
        if not self._derived:
            return
        with torch.enable_grad():
            self._made = [(leaf, made) for leaf, made in self._pairs() if leaf is not made]
        with torch.no_grad():
            for leaf, made in self._made:
                leaf.copy_(made)

    def pull(self) -> None:
        """Carry the gradients of the layers' factors back to what they come from; the factors' own are gone then."""
        found = [(made, leaf.grad) for leaf, made in self._made if made.requires_grad and leaf.grad is not None]
        if found:
            torch.autograd.backward([made for made, _ in found], [gradient for _, gradient in found])
        for leaf in self._derived:
            leaf.grad = None
        self._made = []

    def _pairs(self) -> list[tuple[nn.Parameter, Tensor]]:
        factors = self.parametrization.factors()
        pairs = []
        for site, layer in self._layers.items():
            pairs += [(layer.lora_A, factors.A[site]), (layer.lora_B, factors.B[site])]
            if layer.lora_gain is not None:
                pairs.append((layer.lora_gain, factors.gain[site]))
        return pairs
