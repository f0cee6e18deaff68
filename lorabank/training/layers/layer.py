"""The trainable LoRA layer, and the frozen past folded into the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack, StackedFactors
from lorabank.models.bases.quantised.linear import QuantisedLinear
from lorabank.models.bases.sites import (
    Site,
    WrappedLinear,
    bias_of,
    is_plain,
    matrix_of,
    set_matrix,
    site_of,
    weight_of,
)
from lorabank.training.kernels.effective_weight import effective_linear
from lorabank.training.kernels.gain import gained_linear
from lorabank.training.kernels.lora import lora_linear


class LoraLinear(WrappedLinear):
    """A frozen linear module with one trainable adapter: ``y = W x + b + s B A dropout(x)``.

    With a row gain g, beside a past that is not in the weight, it is
    ``y = (g + sum_k (g_k - 1)) * (W x) + b + sum_k s_k B_k A_k x + s B A dropout(x)`` over the untouched W.

    Args:
        base: The linear layer or Conv1D whose matrix ``[d_out, d_in]`` is adapted; frozen here.
        factors: A ``[r, d_in]``, B ``[d_out, r]`` and g ``[d_out]`` or None: parameters are taken as they are, other
            tensors are copied, and get gradients if they are part of a graph.
        scaling: s.
        dropout: Probability with which an input of A is dropped while training.
        past: A, B and g of the sum of frozen adapters beside the weight, with their scalings inside.

    Attributes:
        one_weight: Whether the output without dropout is that of one weight, ``W + s B A``.
        effective: That weight, of A and B as they are now (`EffectiveWeights`); None while W and the adapter answer.
        shared: Computes the output, from the layer, its input and the dropout, together with layers that have the same
            input (`lorabank.training.layers.shared_input`); None where the layer does it by itself.
        shadow: A and B as they are now in the dtype of the products (`lorabank.training.layers.shadows`), or None.
    """

    one_weight: ClassVar[bool] = True

    def __init__(
        self,
        base: nn.Module,
        factors: tuple[Tensor, Tensor, Tensor | None],
        scaling: float,
        dropout: float,
        past: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__(base.requires_grad_(False))
        self.scaling = scaling
        self.dropout = dropout
        self.effective: Tensor | None = None
        self.shadow: tuple[Tensor, Tensor] | None = None
        self.shared: Callable[[LoraLinear, Tensor, float], Tensor] | None = None
        A, B, gain = factors
        self.lora_A, self.lora_B = _leaf(A), _leaf(B)
        self.lora_gain = None if gain is None else _leaf(gain)
        self._past: tuple[Tensor, Tensor] | None = None
        self._shift: Tensor | float = 0.0
        if past is not None:
            dtype = weight_of(base).dtype
            self._past, self._shift = (past[0].to(dtype), past[1].to(dtype)), past[2] - 1

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d_in]`` to ``[..., d_out]``."""
        self._mark_called()
        W, b, A, B, s = weight_of(self.base), bias_of(self.base), self.lora_A, self.lora_B, self.scaling
        if self.effective is not None:
            return effective_linear(x, self.effective, b, A, B, s)
        p = self.dropout if self.training else 0.0
        if self.shared is not None:
            return self.shared(self, x, p)
        if self.lora_gain is not None:
            return gained_linear(x, W, b, self.lora_gain + self._shift, A, B, self._past, s, p, self.shadow)
        return lora_linear(x, W, b, A, B, s, p, self.shadow)

    def leaves(self) -> tuple[nn.Parameter, ...]:
        """A, B and the gain where there is one."""
        return (self.lora_A, self.lora_B) if self.lora_gain is None else (self.lora_A, self.lora_B, self.lora_gain)


class LoraModule(LoraLinear):
    """The same for a module whose input is not x itself: a table, a convolution (`lorabank.models.bases.kinds`).

    It is autograd's graph of ``W x`` by the module and ``s B A x`` beside it, where the kind reads A: a table by its
    columns, so that their gradient is a sum of what arrives, and a convolution as a kernel. Of a convolution's input
    entries are dropped, as in PEFT; of a table's nothing is, as in PEFT and loralib.
    """

    one_weight: ClassVar[bool] = False

    def forward(self, x: Tensor) -> Tensor:
        """What the module answers, with the adapter."""
        self._mark_called()
        base, kind = self.base, self.kind
        assert kind is not None
        out: Tensor = base(x)
        y, dtype = kind.answer_rows(base, out), out.dtype
        if self.lora_gain is not None:
            b = bias_of(base)
            wx = y if b is None else y - b
            y = y + ((self.lora_gain + self._shift - 1) * wx.float()).to(dtype)
            if self._past is not None:
                past_A, past_B = self._past
                y = y + F.linear(kind.down(base, x, past_A.to(dtype), 0.0), past_B.to(dtype))
        h = kind.down(base, x, self.lora_A.to(dtype), self.dropout if self.training else 0.0)
        return kind.answer(base, (y + self.scaling * F.linear(h, self.lora_B.to(dtype))).to(dtype))


def _leaf(tensor: Tensor) -> nn.Parameter:
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)


def _made(base: nn.Module, **settings: Any) -> LoraLinear:
    """The layer around a module."""
    return (LoraLinear if is_plain(base) else LoraModule)(base, **settings)


def pays(layer: LoraLinear, tokens: float) -> bool:
    """Whether a layer is faster in this form: a step of so many tokens on a CPU in float32, without dropout."""
    weight = weight_of(layer.base)
    if not isinstance(weight, Tensor):
        return False  # its effective weight would be the float copy that quantising saves
    d_out, d_in = weight.shape
    able = layer.one_weight and layer.lora_gain is None and layer.dropout == 0
    here = weight.device.type == "cpu" and weight.dtype == torch.float32
    return able and here and tokens * (d_in + d_out) > d_in * d_out


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


def attach_factors(
    model: nn.Module, factors: LoraFactors, dropout: float, past: LoraFactors | None = None
) -> dict[str, LoraLinear]:
    """Put factors on their sites, to be trained; everything else is frozen by the caller.

    Args:
        model: The base model; changed in place.
        factors: By site, as `LoraLinear` takes them.
        dropout: Dropout on the adapter's input.
        past: The sum of the frozen adapters beside the weights of sites with a gain, by site, with s = 1.

    Returns:
        The site's name to its layer.
    """
    layers = {}
    for name, A in factors.A.items():
        parts = A, factors.B[name], factors.gain.get(name)
        beside = None
        if past and name in past.A:
            before = past.A[name].to(A), past.B[name].to(A)
            gain = past.gain.get(name, torch.ones(len(before[1]))).to(A)
            beside = (*before, gain)
        make = partial(_made, factors=parts, scaling=factors.scaling[name], dropout=dropout, past=beside)
        layers[name] = site_of(model, name).wrap(model, make)
    return layers


@torch.no_grad()
def fold(model: nn.Module, *stacks: AdapterStack, beside: Sequence[Site] = ()) -> None:
    """Add the sum of all stacked delta weights to the model's weights, so that the past costs no forward time.

    For the in-memory copy that is trained and thrown away: there is no way back. A weight that several modules share
    (Zamba's blocks) changes in those that the stacks name alone. Sums are in float32, and rounded once to the dtype of
    the weight, however many stacks change it. A quantised weight keeps what is added beside it, as factors.

    Args:
        model: Changed in place.
        stacks: By module.
        beside: Sites whose weight stays as it is.
    """
    for name in dict.fromkeys(name for stack in stacks for name in stack.modules):
        site, kept = site_of(model, name), [other.rows for other in beside if other.module_name == name]
        if None in kept:
            continue
        if isinstance(site.module, QuantisedLinear):
            _put_beside(site.module, [stack.modules[name] for stack in stacks if name in stack.modules])
            continue
        weight = matrix_of(site.module)
        total = weight.float()
        for stack in stacks:
            if name in stack.modules:
                factors = stack.modules[name].to(weight.device)
                delta = factors.delta(torch.ones(len(stack.names)), weight).to(total)
                for rows in kept:
                    delta[rows] = 0
                total = total + delta
        set_matrix(site.module, total)


def _put_beside(module: QuantisedLinear, stacks: Sequence[StackedFactors]) -> None:
    """Add the sum of all stacked delta weights as one adapter, whose gain is ``1 + sum_k (g_k - 1)``."""
    gain: Tensor | None = None
    for factors in stacks:
        if factors.gain is not None:
            shift = (factors.gain - 1).sum(0)
            gain = 1 + shift if gain is None else gain + shift
    A = torch.cat([factors.A for factors in stacks])
    B = torch.cat([factors.B * factors.scale for factors in stacks], dim=1)
    module.add_beside(A, B, gain)
