"""A stranger's adapter on torch's attention, which PEFT keeps in two pairs of tensors, as one on each of its layers.

The rows of ``lora_B [3 d, r]`` under the module's own name are those of query, key and value, which share ``lora_A``.
A part of them that is 0 changes nothing and is left out, and so are columns that are 0 in a part. The other pair, on
the output, must be 0: PEFT adds it twice (`lorabank.exchange.attention_layout`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import IncompatibleError
from lorabank.exchange.attention_layout import TWICE
from lorabank.exchange.stored_factors import OF_ATTENTION
from lorabank.exchange.untrusted_adapter import ForeignAdapter
from lorabank.models.bases.kinds.attention import INPUTS, OUTPUT, Attention, attention_in

_UNCHANGED = "nothing was changed"


def with_attention(adapter: ForeignAdapter, model: nn.Module) -> ForeignAdapter:
    """The adapter with the factors of single layers in the place of those that PEFT has for torch's attention.

    Args:
        adapter: As it was read.
        model: The base, whose attention consists of linear layers (`unroll_attention`).

    Raises:
        IncompatibleError: The factors have other shapes, or PEFT itself would answer as if they were not there.
    """
    A, B, scaling = dict(adapter.factors.A), dict(adapter.factors.B), dict(adapter.factors.scaling)
    ranks, alphas, windows = dict(adapter.rank_pattern), dict(adapter.alpha_pattern), dict(adapter.windows)
    for stem in sorted(attention_in(model)):
        if f"{stem}.{OUTPUT}" in A:
            _misfit(
                f"PEFT never asks its adapter on '{stem}.{OUTPUT}', because torch's attention reads that layer's "
                "weight; in PEFT an adapter is on the whole attention"
            )
        found: dict[str, tuple[Tensor, Tensor, float]] = {}
        for name, parts in ((stem, INPUTS), (f"{stem}{OF_ATTENTION}", (OUTPUT,))):
            if name not in A:
                continue
            attention = model.get_submodule(stem)
            assert isinstance(attention, Attention)
            a, b, s, d = A.pop(name), B.pop(name), scaling.pop(name), attention.embed_dim
            if name in adapter.magnitude:
                _misfit(f"it is DoRA on {name!r}, which PEFT does not know for torch's attention")
            if name != stem and b.any() and a.any():
                _misfit(f"PEFT trained another thing on '{stem}.{OUTPUT}': {TWICE}")
            if not attention.fused or (len(b), a.shape[1]) != (len(parts) * d, d):
                _misfit(f"its factors of {name!r} are not those of an attention whose width is {d} throughout")
            found |= {part: (a, rows, s) for part, rows in zip(parts, b.chunk(len(parts)), strict=True)}
            for pattern in (ranks, alphas, windows):
                pattern.pop(name, None)
        for part, (a, b, s) in found.items():
            used = (b != 0).any(0)
            r, name = int(used.sum()), f"{stem}.{part}"
            if not r:
                continue
            A[name], B[name], scaling[name] = a[used], b[:, used], s
            windows[name] = (a.shape[1],)
            if r != adapter.r:
                ranks[name] = r
            alpha = s * (r**0.5 if adapter.use_rslora else r)
            if alpha != adapter.lora_alpha:
                alphas[name] = alpha
    if A.keys() == adapter.factors.A.keys():
        return adapter
    factors = LoraFactors(A, B, scaling)
    return replace(adapter, factors=factors, rank_pattern=ranks, alpha_pattern=alphas, windows=windows)


def _misfit(message: str) -> NoReturn:
    raise IncompatibleError(f"the adapter does not fit this bank's base model: {message}", unchanged=_UNCHANGED)
