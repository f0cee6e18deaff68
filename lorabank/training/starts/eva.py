r"""EVA (NeurIPS 2025, arXiv 2410.07170): A begins as the directions in which the task's inputs are strongest.

With ``C = 1/n sum_t x_t x_t^T`` over the real tokens of a sample, for every site, and ``C = V diag(lambda) V^T``,

    A = V_r^T    (orthonormal rows, the largest lambda first),    B = 0

The paper takes the right singular vectors of the activations, by an incremental decomposition; those are V. Here C is
accumulated as a whole and decomposed exactly, in float64. It is not centred, as the singular value decomposition of
the activations is not; PEFT's incremental PCA is.

The ranks are distributed anew: of all directions of all sites those with the largest share ``lambda_i / tr C`` are
kept, r for each site on average and at most ``rho r`` for one. The scaling s stays, as with PEFT's
``adjust_scaling_factors``. Every site keeps at least one direction. Where a strategy projects A or continues the last
adapter, and for variants that train something else than A and B, every site has r.

Where the new adapter must stay apart from earlier ones, the directions are those of ``P C P`` with
``P = I - Q^T Q`` and Q an orthonormal basis of the rows of all earlier A: what is strongest of what is left. Under
``olora-projected`` that is always so, and with ``components = "next"`` under any strategy. It is in no paper; with
InfLoRA (arXiv 2404.00228), whose A stands outside what earlier tasks read, it shares the thought.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from lorabank.algebra.subspaces import row_space
from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting
from lorabank.core.shelves import EVERY_VARIANT, STRATEGIES
from lorabank.training.starts.components import NEXT
from lorabank.training.starts.measured import MeasuredStart, covariance_at, covariance_of, reached

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext


@dataclass(frozen=True)
class EVA(MeasuredStart):
    """A begins as the strongest directions of the task's inputs, with more ranks where they explain more; B is 0."""

    paper: ClassVar[str | None] = "EVA, arXiv 2410.07170"

    rho: float = setting(2.0, "A site has at most rho r ranks; 1 for r ranks everywhere.", ge=1)
    rows: int = setting(256, "Training rows on which the inputs are measured.", ge=1)
    components: Literal["leading", "next"] = setting(
        "leading", "Directions: the strongest, or the strongest outside of what earlier adapters read."
    )

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """There are no more directions than inputs."""
        if r <= site.d_in:
            return None
        return ConfigError(
            f"{site.name} has {site.d_in} inputs, fewer than the {r} directions that the start needs",
            hint="lower --r",
            unchanged="nothing was changed",
        )

    def every(self, context: TrainContext) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Directions of a site's inputs, and zeros.

        Raises:
            ConfigError: There are no rows, or earlier adapters left too few directions.
            DivergedError: What the base feeds into a module is not finite.
        """
        r, strategy = context.config.r, STRATEGIES.load(context.config.strategy)
        inputs = covariance_of(context, self.rows)
        earlier = context.earlier_by_site if strategy.confined or self.components == NEXT else None
        # who replaces A, goes on with the factors of the last task, or makes A and B of other parameters, counts on r
        plain = EVERY_VARIANT.load(context.config.variant).plain
        fixed = strategy.confined or strategy.earlier == "continued" or not plain
        rho = 1.0 if fixed else self.rho
        sites, count = reached(context, inputs.shared), most(r, rho)
        known: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}
        shares: dict[str, Tensor] = {}
        directions: dict[str, Tensor] = {}
        for site in sites:
            columns = site.columns and (site.columns.start, site.columns.stop)
            key = (inputs.shared[site.module_name], columns)
            if earlier is not None and site.name in earlier.modules:
                basis = row_space(earlier.modules[site.name].A).cpu().double()
                if self.components == NEXT:
                    _check_room(site, r, basis, len(earlier.names))
                shares[site.name], directions[site.name] = _directions(covariance_at(inputs, site), count, basis)
            else:
                if key not in known:
                    known[key] = _directions(covariance_at(inputs, site), count)
                shares[site.name], directions[site.name] = known[key]
        ranks = distributed(shares, r, rho)
        return {
            site.name: (
                directions[site.name][: ranks[site.name]].to(site.device, torch.float32).contiguous(),
                torch.zeros(site.d_out, ranks[site.name], device=site.device),
            )
            for site in sites
        }


def most(r: int, rho: float) -> int:
    """The most ranks of a site."""
    return max(r, round(rho * r))


def distributed(shares: Mapping[str, Tensor], r: int, rho: float) -> dict[str, int]:
    """Ranks of the sites: one each, and the rest of r per site where a direction explains most.

    Args:
        shares: Site to what its strongest directions explain, ``[most(r, rho)]`` or more, descending.
        r: Mean rank.
        rho: A site has at most ``rho r``.
    """
    ranks = dict.fromkeys(shares, 1)
    others = [(float(share), site) for site, of_site in shares.items() for share in of_site[1 : most(r, rho)].tolist()]
    others.sort(key=lambda one: -one[0])  # stable: of equal ones the first site in the model's order
    for _, site in others[: (r - 1) * len(shares)]:
        ranks[site] += 1
    return ranks


def _directions(covariance: Tensor, count: int, basis: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What each direction explains ``[count]``, descending, and the directions as rows ``[count, d_in]``; float64.

    Args:
        covariance: ``[d_in, d_in]``, positive semidefinite.
        count: How many of the strongest directions are wanted; all others are let go.
        basis: Orthonormal rows ``[q, d_in]`` of what is left out; its own directions come last.
    """
    C = covariance.double()
    total = C.diagonal().sum().clamp_min(torch.finfo(C.dtype).tiny)
    if basis is not None:
        half = C - (C @ basis.mT) @ basis
        C = half - basis.mT @ (basis @ half)
        # a little of what is left out on the negative side puts it behind directions without any input
        C = C - 1e-3 * total / len(C) * (basis.mT @ basis)
    values, vectors = torch.linalg.eigh((C + C.mT) / 2)
    strongest = vectors[:, -count:].mT.flip(0).contiguous()  # copies, since a view would keep all of them
    return (values[-count:].flip(0) / total).clamp_min(0), strongest


def _check_room(site: Site, r: int, basis: Tensor, earlier: int) -> None:
    left = site.d_in - len(basis)
    if left < r:
        raise ConfigError(
            f"{earlier} earlier adapters leave {left} directions of the inputs of {site.name}, and the "
            f"start needs {r}",
            hint="--set components=leading, or lower --r",
            unchanged="the adapter was not added to the bank",
        )
