"""``lorahub``: a weight for each task, found without gradients on few rows (LoRAHub, arXiv 2307.13269).

    minimise over w in [-bound, bound]^T: mean loss of the kept rows + penalty * mean |w|

by CMA-ES (the package ``cma``, from w = 0 with step 0.5), `budget` evaluations in all. The paper's code leaves the
choice of the search to nevergrad, which is heavier and picks a CMA-ES or another one by budget and dimension.

Two faults of that code are left out: it adds up A and B apart, which has cross terms, and its loss depends on the size
of a batch. Here the exact sum of delta weights is searched, and the loss is the mean over the tasks of their mean
losses. With 40 evaluations for T numbers it is a cheap search, not a good one; `learned` has gradients.

One member has nothing to be weighed against: its weight is 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from lorabank.compose.mergers.base import Merger, Sources, Told
from lorabank.core.errors import DivergedError, MissingExtraError
from lorabank.core.machine.packages import install
from lorabank.core.settings import setting
from lorabank.core.states import Over

_POPULATION = 8


@dataclass(frozen=True)
class LoRAHub(Merger):
    """The sum of the delta weights with weights that an evolution strategy finds on kept rows."""

    paper = "arXiv 2307.13269"
    fitted: ClassVar[bool] = True
    over: ClassVar[Over] = "states"

    bound: float = setting(1.5, "Bound on the magnitude of each weight.", gt=0)
    budget: int = setting(40, "Number of evaluations of the loss.", ge=1)
    penalty: float = setting(0.05, "Weight of the mean of |w|.", ge=0)
    rows: int = setting(32, "Maximum number of kept rows of each task.", ge=1)

    def check(self, tasks: Sequence[str]) -> None:
        """Refuse to search without the package that does.

        Raises:
            MissingExtraError: ``cma`` is not installed.
        """
        if len(tasks) > 1:
            _search()

    def merge(self, sources: Sources) -> Mapping[str, float] | Told:
        """The weights, and the least that was found."""
        tasks = sources.tasks
        if len(tasks) == 1:
            return dict.fromkeys(tasks, 1.0)
        kept = sources.kept.sample(self.rows)
        draw = np.random.default_rng(kept.seed)
        options = {
            "bounds": [-self.bound, self.bound],
            "popsize": _POPULATION,
            "maxfevals": self.budget,
            "randn": lambda *shape: draw.standard_normal(shape),
            "seed": math.nan,  # the generator of the process is left alone
            "verbose": -9,
        }
        search = _search()([0.0] * len(tasks), 0.5, options)
        best, least, done = dict.fromkeys(tasks, 0.0), math.inf, 0
        kept.observer.start("weights by task", self.budget)
        try:
            while done < self.budget:
                tried = search.ask()[: self.budget - done]
                values = []
                for candidate in tried:
                    weights = dict(zip(tasks, map(float, candidate), strict=True))
                    with kept.summed(weights):
                        loss = kept.mean_loss() + self.penalty * float(np.abs(candidate).mean())
                    values.append(loss if math.isfinite(loss) else 1e30)
                    done += 1
                    if loss < least:
                        best, least = weights, loss
                    kept.observer.advance(done, {"loss": loss})
                if len(tried) == _POPULATION:
                    search.tell(tried, values)
        finally:
            kept.observer.finish()
        if not math.isfinite(least):
            raise DivergedError("no weights that were tried have a finite loss", unchanged="nothing was changed")
        return Told(best, {"weights": best, "objective": least, "evaluations": done})


def _search() -> Any:
    """The class of CMA-ES.

    Raises:
        MissingExtraError: Its package is not installed.
    """
    try:
        return import_module("cma").CMAEvolutionStrategy
    except ImportError as error:
        raise MissingExtraError(
            "lorahub searches with the package cma, which is not installed",
            hint=install("cma"),
            unchanged="nothing was changed",
        ) from error
