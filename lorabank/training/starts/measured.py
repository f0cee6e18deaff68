"""Starts that look at rows: what is measured on the untouched base decides where the factors of all sites begin.

The rows are of the task's own training split, drawn by the seed and the number of the adapter, and at most as many as
the start says. A resumed training, and each of several processes, measures all of them again and finds the same.

A matrix of an expert to which none of the sampled tokens was sent has nothing to be measured: it begins as LoRA does
(`lorabank.training.starts.kaiming`). Of every other module that no text reaches an error tells.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import ConfigError, DivergedError
from lorabank.models.bases.kinds.experts import matrices_in
from lorabank.models.facts.inputs import InputCovariance, collect_inputs
from lorabank.training.starts.base import FactorStart
from lorabank.training.starts.kaiming import drawn

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext


@dataclass(frozen=True)
class MeasuredStart(FactorStart):
    """A start whose factors come from one measurement for all sites."""

    @abstractmethod
    def every(self, context: TrainContext) -> Mapping[str, tuple[Tensor, Tensor]]:
        """A ``[r, d_in]`` and B ``[d_out, r]`` of every site that was `reached`, float32 on its weight's device."""

    def factors(self, site: Site, context: TrainContext) -> tuple[Tensor, Tensor]:
        """Those of one site; measured for all of them."""
        return self._all(context)[site.name]

    @torch.no_grad()
    def begin(self, context: TrainContext) -> LoraFactors:
        """See `FactorStart.begin`."""
        if context.initial is not None:
            return super().begin(context)
        found = self._all(context)
        A, B = ({name: pair[k] for name, pair in found.items()} for k in (0, 1))
        return LoraFactors(A, B, dict.fromkeys(context.targets, context.scaling))

    def _all(self, context: TrainContext) -> dict[str, tuple[Tensor, Tensor]]:
        found, r = self.every(context), context.config.r
        return {
            site.name: found[site.name] if site.name in found else drawn((site.d_out, site.d_in), r, site.device)
            for site in context.sites
        }


def sampled(context: TrainContext, rows: int) -> Iterator[dict[str, Tensor]]:
    """Batches of at most so many of the task's own rows, in the order of the data; the same each time.

    Raises:
        ConfigError: There are no rows yet.
    """
    if not context.rows:
        raise ConfigError(
            f"start {context.config.start!r} is measured on rows of the task, and of a stream there are none before "
            "it begins",
            hint="another --start, or add the task with its rows in a file",
            unchanged="the adapter was not added to the bank",
        )
    generator = torch.Generator().manual_seed(context.config.seed * 1_000_003 + context.number)
    numbers = torch.randperm(context.rows, generator=generator)[:rows].sort().values.tolist()
    size = context.config.batch_size
    for first in range(0, len(numbers), size):
        yield context.inputs(numbers[first : first + size])


def covariance_of(context: TrainContext, rows: int) -> InputCovariance:
    """What a sample of the rows feeds into the modules of the untouched base, padding left out."""
    return collect_inputs(context.model, modules_of(context), sampled(context, rows), context.loss)


def covariance_at(inputs: InputCovariance, site: Site) -> Tensor:
    """The covariance ``[d_in, d_in]`` of what a site reads; of a group of a convolution, of its own windows.

    Raises:
        DivergedError: It is not finite.
    """
    C = inputs.of(site.module_name)
    C = C if site.columns is None else C[site.columns, site.columns]
    if not bool(C.isfinite().all()):
        raise DivergedError(
            f"what the base feeds into {site.name} is not finite, so no start can be measured on it",
            hint="choose another --start, or leave it out of --target-modules",
            unchanged="the adapter was not added to the bank",
        )
    return C


def gradient_at(gradient: Tensor, site: Site) -> Tensor:
    """Of the gradient of a module's matrix, the part ``[d_out, d_in]`` that is the site's."""
    part = gradient if site.rows is None else gradient[site.rows]
    return part if site.columns is None else part[:, site.columns]


def modules_of(context: TrainContext) -> tuple[str, ...]:
    """The modules around the sites, each once; the blocks of a fused matrix read the same inputs."""
    return tuple(dict.fromkeys(site.module_name for site in context.sites))


def reached(context: TrainContext, modules: Collection[str]) -> list[Site]:
    """The sites of which something was measured: all but those of experts to which no token was sent.

    Args:
        context: With all sites.
        modules: The modules through which a text of the sample passed.

    Raises:
        ConfigError: None passed through a module outside of the experts.
    """
    unseen = {name for name in modules_of(context) if name not in modules}
    if others := sorted(unseen - matrices_in(context.model)):
        raise ConfigError(
            f"no text of the sample passes through {others[0]}, so start {context.config.start!r} knows nothing of it",
            hint="take a larger sample with --set rows=N, or leave it out of --target-modules",
            unchanged="the adapter was not added to the bank",
        )
    return [site for site in context.sites if site.module_name not in unseen]
