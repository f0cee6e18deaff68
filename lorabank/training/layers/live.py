"""The layers' factors and what they come from, kept equal: values forward after a step, gradients back before it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lorabank.models.bases.quantised.linear import QuantisedLinear
from lorabank.models.bases.sites import matrix_of, set_matrix
from lorabank.training.checkpoints import read_tensors
from lorabank.training.layers.layer import LoraLinear
from lorabank.training.variants.base import Parametrization, Shift

SUBMODULE = "parametrization"
"""Where the model holds a parametrization whose parameters its layers do not have."""


@torch.no_grad()
def take_shift(parametrization: Parametrization, checkpoint: Path | None) -> None:
    """Give what is taken out of the weight the numbers that it had when the training began.

    Args:
        parametrization: As the variant made it: a checkpoint's names may begin with the wrappers around it.
        checkpoint: Of the training that is resumed, None for a new one.
    """
    names = {name for name, part in parametrization.named_modules() if isinstance(part, Shift)}
    if checkpoint is None or not names:
        return
    own = {name: one for name, one in parametrization.named_buffers() if name.rpartition(".")[0] in names}
    for name, stored in read_tensors(checkpoint, "trainable").items():
        inner = re.sub(rf"^{SUBMODULE}\.(inner\.)*", "", name)
        if inner in own and own[inner].shape == stored.shape:  # another shape is refused before the first step
            own[inner].copy_(stored)


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
        self._moved = 0
        self._unmoved: dict[str, Tensor] = {}
        self._beside: dict[str, int] = {}
        self._derived = [leaf for leaf, made in self._pairs() if leaf is not made]
        known = {id(parameter) for parameter in model.parameters()}
        own = [parameter for parameter in parametrization.parameters() if parameter.requires_grad]
        if any(id(parameter) not in known for parameter in own):
            model.add_module(SUBMODULE, parametrization)
            names = [f"{SUBMODULE}.{name}" for name in parametrization.state_dict()]
            model._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]
        self.refresh()
        parametrization.begin(layers)

    def derives(self, parameter: Tensor) -> bool:
        """Whether a parameter of the model is a factor that comes from others, and not trained itself."""
        return any(parameter is leaf for leaf in self._derived)

    def refresh(self) -> None:
        """Give the layers the factors of the parameters as they are now, and what was moved into their weights."""
        self._move()
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

    @torch.no_grad()
    def _move(self) -> None:
        """Make the weights anew from what they were before anything was moved: rounded once, resumed or not.

        A quantised weight stays as it is, and what is moved stands beside it. Where the best step of a training is put
        back, less may be moved than before.
        """
        moved = self.parametrization.moved()
        if len(moved) == self._moved:
            return
        self._moved = len(moved)
        for site, layer in self._layers.items():
            if isinstance(layer.base, QuantisedLinear):
                layer.base.cut_beside(self._beside.setdefault(site, layer.base.rank_beside))
                for factors in moved:
                    layer.base.add_beside(factors.A[site].clone(), factors.scaled(site), None)
                continue
            total = self._unmoved.setdefault(site, matrix_of(layer.base))
            for factors in moved:
                A, B = factors.A[site], factors.B[site]
                total = torch.addmm(total.to(B.dtype), B, A, alpha=factors.scaling[site])
            set_matrix(layer.base, total)

    def _pairs(self) -> list[tuple[nn.Parameter, Tensor]]:
        factors = self.parametrization.factors()
        pairs = []
        for site, layer in self._layers.items():
            pairs += [(layer.lora_A, factors.A[site]), (layer.lora_B, factors.B[site])]
            if layer.lora_gain is not None:
                pairs.append((layer.lora_gain, factors.gain[site]))
        return pairs
