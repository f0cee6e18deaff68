"""The gradients of whole weights, for the few steps of a training in which a variant reads them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorabank.core.machine.distributed import averaged
from lorabank.models.bases.sites import weight_of, wrapped_by


class DenseGradients:
    """Collects dL/dW of layers while it is open; closed, it costs a look in each pass of a layer.

    Args:
        layers: Site to the layer that computes ``y = W x`` and more of one input; y must get a gradient.

    Attributes:
        open: Whether gradients are collected.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.open = False
        self._sums: dict[str, Tensor] = {}
        self._layers = layers
        for site, layer in layers.items():
            layer.register_forward_hook(partial(self._watch, site))

    def taken(self) -> dict[str, Tensor]:
        """The sums over all passes since it was opened, ``[d_out, d_in]`` in float32 or wider; it is closed then.

        Of several processes each gets the mean, with zeros where a layer had nothing in one of them. A layer that no
        text went through, in any process, is left out.
        """
        self.open = False
        sums, self._sums = self._sums, {}
        factors = {site: layer.get_parameter("lora_A") for site, layer in self._layers.items()}
        device = next(iter(factors.values())).device
        shares = averaged(torch.tensor([float(site in sums) for site in factors], device=device)).tolist()
        found = {}
        for (site, A), share in zip(factors.items(), shares, strict=True):
            if share:  # all processes exchange the same sites in the same order
                shape = weight_of(wrapped_by(self._layers[site])).shape
                found[site] = averaged(sums[site] if site in sums else A.new_zeros(shape, requires_grad=False))
        return found

    def _watch(self, site: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self.open and output.requires_grad:
            output.register_hook(partial(self._add, site, inputs[0].detach()))

    def _add(self, site: str, x: Tensor, gradient: Tensor) -> None:
        wide = torch.promote_types(gradient.dtype, torch.float32)
        rows, of_rows = (tensor.detach().reshape(-1, tensor.shape[-1]).to(wide) for tensor in (x, gradient))
        product = of_rows.mT @ rows
        self._sums[site] = self._sums[site] + product if site in self._sums else product
