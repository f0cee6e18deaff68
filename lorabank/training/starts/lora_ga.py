r"""LoRA-GA (NeurIPS 2024, arXiv 2407.05000): the adapter begins along the gradient, as full fine-tuning does.

With the gradient ``G = dL/dW [d_out, d_in]`` of a few rows and ``G = U S V^T``,

    A = c V_{1..r}^T,    B = c U_{r+1..2r},    c = d_out^(1/4) / sqrt(gamma),    W_res = W - s B A

(section 3; ``ArB2r`` and ``stable`` in the code of the paper). Neither the singular values nor their sign enter:
the factors are orthonormal but for c. ``scale`` and ``direction`` are those of the paper's code beside its defaults.

G is a sum of thin products ``g^T x`` that are formed when a batch has passed, so that no parameter needs a gradient of
its own; it costs the memory of the adapted weights once, until their factors are made. PEFT multiplies B, and not A,
by c, and B by S too: its ``lora_ga`` spans the same directions at a scale that is the gradient's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting
from lorabank.models.facts.gradients import weight_gradients
from lorabank.training.starts.measured import MeasuredStart, gradient_at, modules_of, reached, sampled

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext


@dataclass(frozen=True)
class LoRAGA(MeasuredStart):
    """The adapter begins along the gradient of the first rows, and the weight gives up what it begins with."""

    paper: ClassVar[str | None] = "LoRA-GA, arXiv 2407.05000"
    shifts: ClassVar[bool] = True

    rows: int = setting(128, "Training rows whose gradient is taken (the code: 64 batches of 2).", ge=1)
    direction: Literal["ArB2r", "A2rBr", "ArBr"] = setting(
        "ArB2r", "Singular vectors: A the first r and B the next; A the next and B the first; A odd and B even ones."
    )
    scale: Literal["stable", "gd", "unit", "weightS"] = setting(
        "stable", "Length of the vectors: c; 1 / s; 1; or the mean root of the weight's first r singular values / s."
    )
    gamma: float = setting(16.0, "gamma in c.", gt=0)

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """The gradient has too few singular vectors."""
        there = min(site.d_out, site.d_in)
        if 2 * r <= there:
            return None
        return ConfigError(
            f"the gradient of {site.name} has {there} singular vectors, and the start needs {2 * r}",
            hint="lower --r",
            unchanged="nothing was changed",
        )

    def every(self, context: TrainContext) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Singular vectors of the gradient of every site.

        Raises:
            ConfigError: See `refusal`; or there are no rows.
        """
        for site in context.sites:
            if refusal := self.refusal(site, context.config.r, context.number):
                raise refusal
        modules, batches = modules_of(context), sampled(context, self.rows)
        found = weight_gradients(context.model, modules, batches, context.loss)
        sites = reached(context, found)
        return {site.name: self._factors(site, found[site.module_name], context) for site in sites}

    def _factors(self, site: Site, gradient: Tensor, context: TrainContext) -> tuple[Tensor, Tensor]:
        r = context.config.r
        U, _, V = torch.linalg.svd(gradient_at(gradient, site), full_matrices=False)
        of_A, of_B = {
            "ArB2r": (slice(0, r), slice(r, 2 * r)),
            "A2rBr": (slice(r, 2 * r), slice(0, r)),
            "ArBr": (slice(1, 2 * r, 2), slice(0, 2 * r, 2)),
        }[self.direction]
        length = self._length(site, r, context.scaling)
        return (V[of_A] * length).contiguous(), (U[:, of_B] * length).contiguous()

    def _length(self, site: Site, r: int, scaling: float) -> float:
        if self.scale == "stable":
            return float(site.d_out**0.25 / self.gamma**0.5)
        if self.scale == "gd":
            return 1 / scaling
        if self.scale == "unit":
            return 1.0
        return float((torch.linalg.svdvals(site.weight())[:r] / scaling).sqrt().mean())
