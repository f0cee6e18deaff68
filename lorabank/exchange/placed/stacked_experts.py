"""A stranger's adapter on the experts of a mixture, one pair of tensors a parameter, as an adapter on each matrix.

PEFT adapts a parameter ``[E, ...]`` by ``lora_A [r E, d_in]``, expert by expert, and ``lora_B [d_out, r E]``, rank by
rank. Its names say only how often the module was wrapped: the last of its adapted parameters, in their order in the
model, has the module's name, each one before it a ``base_layer`` more. So the base model is asked which is which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors, lora_scaling
from lorabank.core.errors import IncompatibleError
from lorabank.exchange.expressions import Unreadable
from lorabank.exchange.stored_factors import INNER, StoredFactors
from lorabank.exchange.untrusted_adapter import ForeignAdapter
from lorabank.models.bases.kinds.experts import Experts

_UNCHANGED = "nothing was changed"


def with_experts(adapter: ForeignAdapter, model: nn.Module) -> ForeignAdapter:
    """The adapter with the factors of every expert in the place of those that hold all of them.

    Args:
        adapter: As it was read.
        model: The base, whose experts are linear layers (`unroll_experts`).

    Raises:
        IncompatibleError: The base has no such experts, or other ones.
    """
    if not adapter.stacked:
        return adapter
    A, B, scaling = dict(adapter.factors.A), dict(adapter.factors.B), dict(adapter.factors.scaling)
    ranks, alphas, windows = dict(adapter.rank_pattern), dict(adapter.alpha_pattern), dict(adapter.windows)
    for module, (a, b) in adapter.stacked.items():
        parameter, experts = _meant(module, adapter, model)
        r, rest = divmod(len(a), len(experts))
        alpha = _alpha(adapter, parameter)
        if rest or not r or r != _rank(adapter, parameter):
            _misfit(f"the factors of {parameter!r} have {len(a)} rows for {len(experts)} experts")
        for e in range(len(experts)):
            name, own = f"{parameter}.{e}", StoredFactors("a", "b", e, len(experts))
            pair: Mapping[str, Tensor] = {"a": a, "b": b}
            A[name], B[name] = own.A(pair).clone(), own.B(pair).clone()
            scaling[name], windows[name] = lora_scaling(r, alpha, use_rslora=adapter.use_rslora), (a.shape[1],)
            if r != adapter.r:
                ranks[name] = r
            if alpha != adapter.lora_alpha:
                alphas[name] = alpha
    factors = LoraFactors(A, B, scaling)
    return replace(adapter, factors=factors, rank_pattern=ranks, alpha_pattern=alphas, windows=windows, stacked={})


def _meant(module: str, adapter: ForeignAdapter, model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The parameter that a pair of tensors is of, by its full name, and the layers over its matrices."""
    stem, depth = module, 0
    while stem.endswith(INNER):
        stem, depth = stem.removesuffix(INNER), depth + 1
    try:
        experts = model.get_submodule(stem)
    except AttributeError:
        experts = model
    if not isinstance(experts, Experts):
        _misfit(f"it adapts parameters of {stem!r}, and the base has no experts there")
    adapted = [name for name in experts.matrices if adapter.targets.has_experts(f"{stem}.{name}")]
    pairs = sum(1 for other in adapter.stacked if other == stem or other.startswith(f"{stem}{INNER}"))
    if depth >= len(adapted) or pairs != len(adapted):
        _misfit(f"it holds {pairs} pairs of factors for {len(adapted)} parameters of {stem!r}")
    name = adapted[-1 - depth]
    layers = experts.get_submodule(name)
    assert isinstance(layers, nn.ModuleList)
    return f"{stem}.{name}", layers


def _rank(adapter: ForeignAdapter, parameter: str) -> float:
    try:
        return adapter.ranks.value(parameter, adapter.r) if adapter.ranks else adapter.r
    except Unreadable as error:
        _misfit(f"rank_pattern cannot be evaluated: {error}")


def _alpha(adapter: ForeignAdapter, parameter: str) -> float:
    try:
        return adapter.alphas.value(parameter, adapter.lora_alpha) if adapter.alphas else adapter.lora_alpha
    except Unreadable as error:
        _misfit(f"alpha_pattern cannot be evaluated: {error}")


def _misfit(message: str) -> NoReturn:
    raise IncompatibleError(f"the adapter does not fit this bank's base model: {message}", unchanged=_UNCHANGED)
