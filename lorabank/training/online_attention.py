r"""AM-LoRA as the paper trains it (arXiv 2409.19611): selector and new adapter together, older adapters frozen.

While task t is learnt, an adapted module with input x computes

    h_k = s_k B_k A_k x  (k < t, frozen),   h_t = s_t B_t A_t dropout(x)  (trained),   h_0 = 0
    a = softmax(tanh(z_0), ..., tanh(z_t)),   z_k = u_k . h_k + c_k,   y = W x + b + sum_{k >= 1} a_k h_k
    L = task loss + lambda sum |u|

with one z per token. The task loss reaches A_t, B_t (through h_t and through z_t) and every u_k, c_k, c_0; A_k and B_k
of k < t never change. The equations are those of `lorabank.models.gates.attention_token`, which says what is known
of the paper; what a trained selector answers afterwards is exactly a `Mixture` attending over all t adapters.

The selector may start from the one that an earlier task ended with: u_k, c_k, c_0 of the adapters that it knew, zeros
for the others. The first task has nothing to select from: it is trained as a plain adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack, StackedFactors
from lorabank.algebra.states import StateStack
from lorabank.models.bases.kinds.bias import put_in_place
from lorabank.models.bases.sites import WrappedLinear, bias_of, site_of, weight_of
from lorabank.models.gates.attention_token import Selector
from lorabank.models.gates.base import key_of, module_of
from lorabank.training.layers.layer import LoraLinear
from lorabank.training.penalties.base import FactorGroup, Penalty

SELECTOR = "online_selector"
"""Name under which the selector is a part of the model, so that it is optimised and checkpointed with it."""


class AttendedLoraLinear(LoraLinear):
    """The new adapter's layer, beside the earlier ones under attention.

    Args:
        name: Full module name.
        base: The module that is adapted; frozen here.
        earlier: Its earlier adapters, which may be none of it (R = 0), on the module's device in float32.
        selector: Over all earlier adapters and the new one, which comes last; not a part of this module.
        factors: Of the new adapter, as for `LoraLinear`; it has no gain.
        scaling: s of the new adapter.
        dropout: On the input of the new adapter alone.
    """

    one_weight = False

    def __init__(
        self,
        name: str,
        base: nn.Module,
        earlier: StackedFactors,
        selector: Selector,
        factors: tuple[Tensor, Tensor],
        scaling: float,
        dropout: float,
    ) -> None:
        super().__init__(base, (*factors, None), scaling, dropout)
        r = len(self.lora_A)
        self._name = name
        self._earlier = earlier
        self._selector = (selector,)  # in a tuple: the model owns it, not each layer
        newest = selector.c[key_of(name)].shape[0] - 1
        self._owner = torch.cat([earlier.owner, torch.full((r,), newest, device=earlier.owner.device)])
        self._scale = torch.cat([earlier.scale, torch.full((r,), scaling, device=earlier.scale.device)])
        self._gain = _with_newest(earlier.gain)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d_in]`` to ``[..., d_out]``."""
        self._mark_called()
        p, plain = self.dropout if self.training else 0.0, self.kind is None or self.kind.plain
        dropped = F.dropout(x, p) if plain else x  # before x is read: the order in which x's gradients are added up
        h = torch.cat([_read(self, x, self._earlier.A), _read(self, dropped, self.lora_A, 0.0 if plain else p)], -1)
        factors = StackedFactors(
            torch.cat([self._earlier.A, self.lora_A]),
            torch.cat([self._earlier.B, self.lora_B], dim=1),
            self._owner,
            self._scale,
            self._gain,
        )
        return _answered(self, x, h, factors, self._selector[0], self._name)


class AttendedLinear(WrappedLinear):
    """A module that earlier adapters change and the new one does not: attention over frozen adapters alone.

    Args:
        name: Full module name.
        base: The module itself; frozen here.
        earlier: Its earlier adapters.
        selector: As for `AttendedLoraLinear`.
    """

    def __init__(self, name: str, base: nn.Module, earlier: StackedFactors, selector: Selector) -> None:
        super().__init__(base.requires_grad_(False))
        self._name = name
        self._earlier = replace(earlier, gain=_with_newest(earlier.gain))
        self._selector = (selector,)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d_in]`` to ``[..., d_out]``."""
        self._mark_called()
        return _answered(self, x, _read(self, x, self._earlier.A), self._earlier, self._selector[0], self._name)


class SelectorL1(Penalty):
    """``sum |u|`` of a selector as a penalty; of the factor groups it needs nothing.

    Args:
        selector: The selector that is trained.
    """

    default_weight = 1e-3

    def __init__(self, selector: Selector) -> None:
        self._selector = selector

    def __call__(self, groups: Sequence[FactorGroup]) -> Tensor:
        """The L1 norm of the dense parameters, float32."""
        return self._selector.l1().float()


def attach_attended_adapter(
    model: nn.Module,
    factors: LoraFactors,
    earlier: AdapterStack,
    *,
    dropout: float,
    warm: Mapping[str, Tensor] | None = None,
    warm_names: Sequence[str] = (),
) -> tuple[dict[str, LoraLinear], Selector]:
    """Put a trainable adapter and the attention over it and all earlier ones on a model, changed in place.

    The earlier adapters must not be in the model's weights already. Everything but the new factors and the selector is
    frozen by the caller; the selector becomes the model's submodule `SELECTOR`.

    Args:
        model: The base model.
        factors: Of the new adapter by module, as `LoraLinear` takes them.
        earlier: One adapter or more, in sequence order, float32 on the model's device.
        dropout: Dropout on the input of the new adapter.
        warm: Stored tensors of an earlier task's selector (`Selector.tensors`) to start from.
        warm_names: The adapters that selector knew, in its order.

    Returns:
        Module name to the new adapter's layer; and the selector over ``earlier.names`` and the
        new adapter, in this order.
    """
    bases = {name: site_of(model, name).module for name in dict.fromkeys([*factors.A, *earlier.modules])}
    known_of = {name: earlier.modules.get(name) or _nothing(base) for name, base in bases.items()}
    names = (*earlier.names, "")  # the new adapter has no name yet
    selector = Selector(StateStack.apart(AdapterStack(names, known_of)))
    if warm is not None:
        warm_start(selector, names, warm, warm_names)
    layers: dict[str, LoraLinear] = {}
    for name, base in bases.items():
        known = known_of[name]
        layer: nn.Module
        if name in factors.A:
            begun, scaling = (factors.A[name], factors.B[name]), factors.scaling[name]
            layer = layers[name] = AttendedLoraLinear(name, base, known, selector, begun, scaling, dropout)
        else:
            layer = AttendedLinear(name, base, known, selector)
        put_in_place(model, name, layer)
    model.add_module(SELECTOR, selector)
    return layers, selector


@torch.no_grad()
def warm_start(
    selector: Selector, names: Sequence[str], stored: Mapping[str, Tensor], stored_names: Sequence[str]
) -> None:
    """Start from an earlier selector where it knew the module and the adapter; what it did not know stays as it is.

    Args:
        selector: Changed in place.
        names: Its adapters, in order.
        stored: `Selector.tensors` of the earlier one.
        stored_names: The adapters of the earlier one, in order.
    """
    shared = [(i, stored_names.index(name)) for i, name in enumerate(names) if name in stored_names]
    to, of = [i for i, _ in shared], [j for _, j in shared]
    for key, zero in selector.c_zero.items():
        module = module_of(key)
        if f"c_zero:{module}" in stored:
            zero.copy_(stored[f"c_zero:{module}"])
            selector.u[key][to] = stored[f"u:{module}"][of].to(selector.u[key])
            selector.c[key][to] = stored[f"c:{module}"][of].to(selector.c[key])


def _read(layer: WrappedLinear, x: Tensor, A: Tensor, p: float = 0.0) -> Tensor:
    """``A x [..., R]``; where the kind reads x itself, it drops it too."""
    kind = layer.kind
    if kind is None or kind.plain:
        return F.linear(x.to(A.dtype), A)
    return kind.down(layer.base, x.to(A.dtype) if x.is_floating_point() else x, A, p)


def _answered(
    layer: WrappedLinear, x: Tensor, h: Tensor, factors: StackedFactors, selector: Selector, name: str
) -> Tensor:
    """What the base answers, with the adapters under attention."""
    kind, base = layer.kind, layer.base
    out: Tensor = base(x)
    if kind is None or kind.plain:
        return out + _attended(selector, name, factors, h, out, bias_of(base)).to(out.dtype)
    y = kind.answer_rows(base, out)
    return kind.answer(base, y + _attended(selector, name, factors, h, y, bias_of(base)).to(out.dtype))


def _attended(
    selector: Selector, name: str, factors: StackedFactors, h: Tensor, out: Tensor, bias: Tensor | None
) -> Tensor:
    """``sum_k a_k h_k [..., d_out]`` from ``h = A_all x [..., R]`` and ``out = W x + b``.

    Scores are in the factors' precision always.
    """
    h = h.to(factors.A.dtype)
    count = selector.c[key_of(name)].shape[0]
    members = StateStack(AdapterStack(("",) * count, {name: factors}), torch.eye(count, device=h.device))
    if factors.gain is None:
        attention = selector.attention(name, members, h)[..., 1:]
        return F.linear(h * factors.row_weights(attention), factors.B)
    wx = (out if bias is None else out - bias).to(h.dtype)
    attention = selector.attention(name, members, h, wx)[..., 1:]
    return F.linear(h * factors.row_weights(attention), factors.B) + (attention @ (factors.gain - 1)) * wx


def _with_newest(gain: Tensor | None) -> Tensor | None:
    """The gains ``[K, d_out]`` of earlier adapters and that of the new one, which has none."""
    return None if gain is None else F.pad(gain, (0, 0, 0, 1), value=1.0)


def _nothing(base: nn.Module) -> StackedFactors:
    """No adapter at all on a module."""
    (d_out, d_in), like = weight_of(base).shape, torch.zeros(0, device=weight_of(base).device)
    return StackedFactors(
        like.new_zeros(0, d_in), like.new_zeros(d_out, 0), torch.zeros(0, dtype=torch.long, device=like.device), like
    )
