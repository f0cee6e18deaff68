r"""Adapters on blocks of a matrix, and the same adapters on the whole matrix.

An adapter on the blocks i = 1..n of a matrix, ``dW[rows_i] = s B_i A_i``, is on the whole matrix

    A = [A_1; ...; A_n]  [sum r_i, d_in],     B [d_out, sum r_i] with B_i in rows_i of its columns, 0 elsewhere

exactly, with the same s; a row gain is 1 outside of rows_i. A group of a convolution is a block of columns too: A_i is
in columns_i of its rows, 0 elsewhere. The bank stores the whole form, a plain PEFT adapter of rank ``sum r_i``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack, StackedFactors
from lorabank.models.bases.sites import Site, sizes_of


def of_modules(factors: LoraFactors, sites: Sequence[Site]) -> LoraFactors:
    """An adapter by site as an adapter by module.

    Args:
        factors: By the sites' names; blocks of one module have one scaling.
        sites: Where the factors are; whole modules keep their tensors.
    """
    A: dict[str, Tensor] = {}
    B: dict[str, Tensor] = {}
    scaling: dict[str, float] = {}
    gain: dict[str, Tensor] = {}
    for site in sites:
        if site.name not in factors.A:  # nothing is left of it
            continue
        a, b, g, module = factors.A[site.name], factors.B[site.name], factors.gain.get(site.name), site.module_name
        if site.rows is not None:
            own, (d_out, d_in) = b, sizes_of(site.module)
            b = b.new_zeros(d_out, b.shape[1])
            b[site.rows] = own
        if site.columns is not None:
            own, a = a, a.new_zeros(len(a), d_in)
            a[:, site.columns] = own
        if g is not None and site.rows is not None:
            own, g = g, gain.get(module, g.new_ones(d_out))
            g[site.rows] = own
        if g is not None:
            gain[module] = g
        A[module] = torch.cat([A[module], a]) if module in A else a
        B[module] = torch.cat([B[module], b], dim=1) if module in B else b
        scaling[module] = factors.scaling[site.name]
    return LoraFactors(A, B, scaling, gain)


def of_sites(stack: AdapterStack, sites: Sequence[Site]) -> AdapterStack:
    """Adapters by module as what they do to each site: of a block the rows of A that write into it.

    Args:
        stack: By module; a site whose module it has not is left out.
        sites: Of whole modules the factors are the same objects.
    """
    modules = {}
    for site in sites:
        factors = stack.modules.get(site.module_name)
        if factors is None:
            continue
        if site.rows is not None:
            B = factors.B[site.rows]
            used = (B != 0).any(0)
            gain = None if factors.gain is None else factors.gain[:, site.rows]
            A = factors.A[used] if site.columns is None else factors.A[used][:, site.columns]
            factors = StackedFactors(A, B.T[used].T, factors.owner[used], factors.scale[used], gain)
        modules[site.name] = factors
    return AdapterStack(stack.names, modules)
