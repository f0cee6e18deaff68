"""Adapters on biases: a bias is a matrix of one column that reads the constant 1, named by its module and `ENDING`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lorabank.algebra.factors import FactorShape, LoraFactors

ENDING = ".bias"
"""What stands behind a module's name in the name of its bias, as in a state dict."""


def bias_vectors(factors: LoraFactors) -> dict[str, Tensor]:
    """What an adapter adds to each bias that it changes: name to ``s B A [d_out]``."""
    return {name: factors.delta(name).squeeze(1) for name in factors.A if name.endswith(ENDING)}


def without_biases(factors: LoraFactors) -> LoraFactors:
    """The adapter without what it adds to biases."""
    if not any(name.endswith(ENDING) for name in factors.A):
        return factors
    A, B = ({name: one for name, one in part.items() if not name.endswith(ENDING)} for part in (factors.A, factors.B))
    return LoraFactors(A, B, {name: factors.scaling[name] for name in A}, factors.gain)


def with_biases(factors: LoraFactors, vectors: Mapping[str, Tensor]) -> LoraFactors:
    """The adapter that also adds vectors ``[d_out]`` to biases, as factors of rank 1 with s = 1.

    Args:
        factors: An adapter on weights.
        vectors: By the name of the bias.
    """
    A = {name: vector.new_ones(1, 1) for name, vector in vectors.items()}
    B = {name: vector.unsqueeze(1) for name, vector in vectors.items()}
    scaling = {**factors.scaling, **dict.fromkeys(A, 1.0)}
    return LoraFactors({**factors.A, **A}, {**factors.B, **B}, scaling, factors.gain)


def bias_shape(d_out: int) -> FactorShape:
    """What `with_biases` makes of a vector."""
    return FactorShape(r=1, d_in=1, d_out=d_out, scaling=1.0)


def no_change(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of rank 1 that change nothing of a weight ``[d_out, d_in]``, float32 on the CPU."""
    return torch.zeros(1, weight.shape[1]), torch.zeros(weight.shape[0], 1)
