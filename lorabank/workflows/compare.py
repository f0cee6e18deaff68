"""``compare``: the adapters of two tasks side by side."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Literal

from lorabank.algebra.comparison import Comparison, compare_adapters
from lorabank.algebra.factors import LoraFactors
from lorabank.core.commands import LIST
from lorabank.core.errors import ConfigError
from lorabank.core.states import refuse_tuners
from lorabank.exchange.peft_folder import read_factors
from lorabank.models.bases.loading import recorded_weights
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.results import CompareResult

_SAME = 1e-5
"""Relative distance of delta weights whose factors were rotated and rounded to float32."""


def compare(opened: OpenBank, one: str, other: str) -> CompareResult:
    """Compare the own adapters of two tasks; the base is loaded only for adapters with a row gain."""
    bank, snapshot = opened.bank, opened.refresh()
    adapters = [snapshot.adapter_of(snapshot.task(name).name) for name in (one, other)]
    if one == other:
        raise ConfigError(
            f"a task cannot be compared with itself: {one!r}", hint="name two tasks", commands=[LIST],
            unchanged="nothing was computed",
        )  # fmt: skip
    refuse_tuners(adapters, "compare needs the factors A and B of both adapters", LIST)
    first, second = (read_factors(bank.verified_adapter(adapter.digest)) for adapter in adapters)
    details = compare_adapters(first, second, recorded_weights(snapshot.base))
    found = [each for each in details.modules.values() if each.changed]
    return CompareResult(
        one=one,
        other=other,
        relation=_relation(first, second, details),
        interference=details.cosine,
        input_overlap=_mean(module.inputs.overlap for module in found),
        output_overlap=_mean(module.outputs.overlap for module in found),
        random_input_overlap=_mean(module.inputs.random for module in found),
        random_output_overlap=_mean(module.outputs.random for module in found),
        only={one: _beyond(first, second), other: _beyond(second, first)},
        details=details,
    )


def _relation(
    one: LoraFactors, other: LoraFactors, details: Comparison
) -> Literal["same factors", "same delta weights", "different"]:
    if details.distance > _SAME:
        return "different"
    same = one.scaling == other.scaling and all(
        mine.shape == theirs.shape and bool((mine == theirs).all())
        for part, others in ((one.A, other.A), (one.B, other.B))
        for mine, theirs in ((part[module], others[module]) for module in part)
    )
    return "same factors" if same else "same delta weights"


def _beyond(one: LoraFactors, other: LoraFactors) -> tuple[str, ...]:
    """The modules that one alone changes."""
    return tuple(module for module in one.A if module not in other.A)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None
