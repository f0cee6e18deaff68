r"""Two adapters side by side: what they read, what they write, and how far they would disturb each other.

On one module the delta weights are ``D_k = (diag(g_k) - 1) W + s_k B_k A_k``. An adapter reads the row space of A, so
the principal angles between two row spaces say whether both react to the same inputs; it writes into the column space
of B. The squared size of the sum differs from the sum of the squared sizes by twice the Frobenius inner product

    <s_1 B_1 A_1, s_2 B_2 A_2>_F = s_1 s_2 sum((B_1^T B_2) * (A_1 A_2^T))

which is 0 for adapters that do not interfere, positive where they pull into one direction, negative where they cancel.
All of it is computed in float64 from matrices of ``r x r``; ``d_out x d_in`` is never formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lorabank.algebra.distance import distance_from_sum
from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.subspaces import row_space


@dataclass(frozen=True)
class Angles:
    """The principal angles between two spaces of dimensions p and q in d dimensions.

    Attributes:
        cosines: Of the angles, largest first, ``min(p, q)`` of them.
        overlap: Mean of their squares, in [0, 1].
        random: The overlap to be expected of random spaces, ``max(p, q) / d``.
    """

    cosines: tuple[float, ...]
    overlap: float
    random: float


@dataclass(frozen=True)
class ModuleComparison:
    """One module that both adapters change.

    Attributes:
        inputs: Between the row spaces of A, in ``d_in`` dimensions.
        outputs: Between the column spaces of B, in ``d_out`` dimensions.
        inner: Frobenius inner product of the delta weights.
        cosine: The same over both norms; 0 where a delta weight is 0.
        distance: ``||D_1 - D_2||_F / ||D_2||_F``; 0 or 1 where ``D_2`` is 0.
    """

    inputs: Angles
    outputs: Angles
    inner: float
    cosine: float
    distance: float

    @property
    def changed(self) -> bool:
        """Whether an adapter has a direction there: two that are 0, as beside trained biases, overlap in nothing."""
        return bool(self.inputs.random or self.outputs.random)


@dataclass(frozen=True)
class Comparison:
    """Two adapters.

    Attributes:
        modules: Module name to what is compared on it, for the modules that both change.
        inner: Frobenius inner product of all delta weights.
        norms: Frobenius norm of all delta weights of each adapter.
        cosine: ``inner`` over both norms; 0 where a norm is 0.
        distance: The largest distance of a module; at least 1 where a module is changed by one adapter alone.
    """

    modules: dict[str, ModuleComparison]
    inner: float
    norms: tuple[float, float]
    cosine: float
    distance: float


def compare_adapters(one: LoraFactors, other: LoraFactors, weight: Callable[[str], Tensor]) -> Comparison:
    """Compare two adapters of one base model.

    Args:
        one: An adapter.
        other: Another one.
        weight: Module name to W ``[d_out, d_in]``, the untouched base's; asked for only where there is a row gain.
    """
    distances = distance_from_sum(
        one, AdapterStack.build({"": _exact(other)}, dtype=torch.float64), torch.ones(1), weight
    )
    squares = [sum(_square(each, module, weight) for module in each.A) for each in (one, other)]
    modules = {module: _module(one, other, module, weight, distances[module]) for module in one.A if module in other.A}
    inner = sum(found.inner for found in modules.values())
    first, second = map(math.sqrt, squares)
    return Comparison(
        modules, inner, (first, second), _over(inner, first * second), max(distances.values(), default=0.0)
    )


def _exact(factors: LoraFactors) -> LoraFactors:
    """The same in float64 with the scaling folded into B: a stack keeps scalings in float32."""
    B = {module: factors.scaling[module] * B.double() for module, B in factors.B.items()}
    return LoraFactors(factors.A, B, dict.fromkeys(B, 1.0), factors.gain)


def _module(
    one: LoraFactors, other: LoraFactors, module: str, weight: Callable[[str], Tensor], distance: float
) -> ModuleComparison:
    inner = _inner(one, other, module, weight)
    size = math.sqrt(_square(one, module, weight) * _square(other, module, weight))
    return ModuleComparison(
        inputs=principal_angles(one.A[module], other.A[module]),
        outputs=principal_angles(one.B[module].T, other.B[module].T),
        inner=inner,
        cosine=_over(inner, size),
        distance=distance,
    )


def principal_angles(rows: Tensor, others: Tensor) -> Angles:
    """The principal angles between the row spaces of ``[p, d]`` and ``[q, d]``.

    Björck and Golub, Math. Comp. 27 (1973): their cosines are the singular values of the product of orthonormal bases.
    """
    p, q = row_space(rows), row_space(others)
    cosines = torch.linalg.svdvals(p @ q.T).clamp(max=1)
    overlap = float(cosines.square().mean()) if len(cosines) else 0.0
    return Angles(tuple(cosines.tolist()), overlap, max(len(p), len(q)) / rows.shape[1])


def _inner(one: LoraFactors, other: LoraFactors, module: str, weight: Callable[[str], Tensor]) -> float:
    """``<D_1, D_2>_F`` of one module."""
    A, B = one.A[module].double(), one.scaling[module] * one.B[module].double()
    C, D = other.A[module].double(), other.scaling[module] * other.B[module].double()
    total = ((B.T @ D) * (A @ C.T)).sum()
    shifts = [None if (gain := each.gain.get(module)) is None else gain.double() - 1 for each in (one, other)]
    if shifts == [None, None]:
        return float(total)
    W = weight(module).double()
    if (shift := shifts[0]) is not None:
        total = total + ((D.T @ (shift[:, None] * W)) * C).sum()
    if (shift := shifts[1]) is not None:
        total = total + ((B.T @ (shift[:, None] * W)) * A).sum()
    if shifts[0] is not None and shifts[1] is not None:
        total = total + (shifts[0] * shifts[1] * W.square().sum(1)).sum()
    return float(total)


def _square(one: LoraFactors, module: str, weight: Callable[[str], Tensor]) -> float:
    """``||D||_F^2`` of one module; rounding makes it no less than 0."""
    return max(0.0, _inner(one, one, module, weight))


def _over(inner: float, size: float) -> float:
    return inner / size if size > 0 else 0.0
