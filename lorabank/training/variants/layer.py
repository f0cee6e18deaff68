"""The trainable LoRA layer, and the frozen past folded into the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors, lora_scaling
from lorabank.algebra.stack import AdapterStack
from lorabank.models.bases.sites import WrappedLinear, bias_of, matrix_of, set_matrix, site_of
from lorabank.training.variants.effective_weight import effective_linear
from lorabank.training.variants.kernel import lora_linear


class LoraLinear(WrappedLinear):
    """A frozen linear module with one trainable adapter: ``y = W x + b + s B A dropout(x)``.

    Initialised as in LoRA (arXiv 2106.09685) and PEFT: A by ``kaiming_uniform(a=sqrt(5))``, B zero.

    Args:
        base: The linear layer or Conv1D whose matrix ``[d_out, d_in]`` is adapted; frozen here.
        r: Rank.
        scaling: s.
        dropout: Probability with which an input of A is dropped while training.

    Attributes:
        one_weight: Whether the output without dropout is that of one weight, ``W + s B A``.
        effective: That weight, of A and B as they are now (`EffectiveWeights`); None while W and the adapter answer.
    """

    one_weight: ClassVar[bool] = True

    def __init__(self, base: nn.Module, r: int, scaling: float, dropout: float) -> None:
        super().__init__(base.requires_grad_(False))
        self.scaling = scaling
        self.dropout = dropout
        self.effective: Tensor | None = None
        (d_out, d_in), device = matrix_of(base).shape, matrix_of(base).device
        self.lora_A = nn.Parameter(torch.empty(r, d_in, device=device, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.zeros(d_out, r, device=device, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d_in]`` to ``[..., d_out]``."""
        self._mark_called()
        if self.effective is not None:
            return effective_linear(x, self.effective, bias_of(self.base), self.lora_A, self.lora_B, self.scaling)
        p = self.dropout if self.training else 0.0
        return lora_linear(x, matrix_of(self.base), bias_of(self.base), self.lora_A, self.lora_B, self.scaling, p)


def pays(layer: LoraLinear, tokens: float) -> bool:
    """Whether a layer is faster in this form: a step of so many tokens on a CPU in float32, without dropout."""
    weight = matrix_of(layer.base)
    d_out, d_in = weight.shape
    able = layer.one_weight and layer.dropout == 0 and weight.device.type == "cpu" and weight.dtype == torch.float32
    return able and tokens * (d_in + d_out) > d_in * d_out


class EffectiveWeights:
    """The effective weights of the layers for which they pay; call it when A or B have changed.

    Args:
        layers: Trainable layers.
        tokens: Of an optimizer step, padding left out.
    """

    def __init__(self, layers: Iterable[LoraLinear], tokens: float) -> None:
        self.layers = [layer for layer in layers if pays(layer, tokens)]
        for layer in self.layers:
            layer.effective = torch.empty_like(matrix_of(layer.base))
        self()

    @torch.no_grad()
    def __call__(self) -> None:
        """Make them again."""
        for layer in self.layers:
            torch.addmm(matrix_of(layer.base), layer.lora_B, layer.lora_A, alpha=layer.scaling, out=layer.effective)


def attach_adapter(
    model: nn.Module,
    target_modules: Sequence[str],
    *,
    r: int,
    lora_alpha: float,
    use_rslora: bool,
    dropout: float,
    initial: LoraFactors | None = None,
) -> dict[str, LoraLinear]:
    """Put a trainable adapter on each target module; everything else is frozen by the caller.

    Args:
        model: The base model; changed in place.
        target_modules: Full names of sites.
        r: Rank.
        lora_alpha: Numerator of the scaling.
        use_rslora: Whether s is ``lora_alpha / sqrt(r)``.
        dropout: Dropout on the adapter's input.
        initial: Factors to start from (a continued adapter); None for the usual initialisation.

    Returns:
        The site's name to its layer.
    """
    layers = {}
    make = partial(LoraLinear, r=r, scaling=lora_scaling(r, lora_alpha, use_rslora=use_rslora), dropout=dropout)
    for name in target_modules:
        layer = site_of(model, name).wrap(model, make)
        if initial is not None:
            layer.lora_A.data.copy_(initial.A[name])
            layer.lora_B.data.copy_(initial.B[name] * (initial.scaling[name] / layer.scaling))
        layers[name] = layer
    return layers


@torch.no_grad()
def fold(model: nn.Module, stack: AdapterStack) -> None:
    """Add the sum of all stacked delta weights to the model's weights, so that the past costs no forward time.

    For the in-memory copy that is trained and thrown away: there is no way back. A weight that several modules share
    (Zamba's blocks) changes in those that the stack names alone.
    """
    weights = torch.ones(len(stack.names))
    for name, factors in stack.modules.items():
        site = site_of(model, name)
        delta = factors.delta(weights.to(factors.A.device), matrix_of(site.module))
        set_matrix(site.module, site.merged(delta))
