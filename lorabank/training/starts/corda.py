r"""CorDA (NeurIPS 2024, arXiv 2406.05223): the weight is decomposed in the directions that some inputs use.

With ``C = 1/n sum_t x_t x_t^T`` of a module's inputs, ``C' = C + d mean(diag C) I`` and ``W C' = U S V^T``,

    W = U S (V^T C'^-1),    A = sqrt(S_r / s) V_r^T C'^-1,    B = U_r sqrt(S_r / s),    W_res = W - s B A

In the mode ``ipm``, instruction-previewed adaptation, C is of the task's rows and r are the largest components: what
the task uses most is trained. In the mode ``kpm``, knowledge-preserved adaptation, C is of a text whose knowledge is
to stay, and r are the smallest: what that text uses least is trained.

d is 0.01, doubled until ``||C' C'^-1 - I||_F < 0.05``, as in the paper's code; there and in PEFT that is done in
float32, here in float64, which needs no doubling. Only padding is left out of C. Each C is divided by the mean of its
diagonal, which changes neither ``B A`` nor the components but only how A and B share a scale: with inputs that are
equally strong in all directions, the factors of ``ipm`` are PiSSA's. The paper's code divides every text by its
largest entry and C by 256, PEFT by the number of texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting
from lorabank.models.facts.inputs import InputCovariance, collect_inputs
from lorabank.training.starts.components import ComponentStart, halves
from lorabank.training.starts.measured import MeasuredStart, covariance_at, covariance_of, modules_of, reached

if TYPE_CHECKING:
    from lorabank.models.bases.sites import Site
    from lorabank.training.context import TrainContext

_INVERTED = 0.05
"""How far the product of a matrix and its inverse may be from the identity, in the Frobenius norm."""


@dataclass(frozen=True)
class CorDA(ComponentStart, MeasuredStart):
    """The adapter begins as the part of the weight that the task's inputs use most, or that a text uses least."""

    paper: ClassVar[str | None] = "CorDA, arXiv 2406.05223"

    components: Literal["own", "next"] = setting(
        "own", "Components: the mode's own r, or the r behind those of earlier tasks."
    )
    mode: Literal["ipm", "kpm"] = setting(
        "ipm", "ipm: the largest components under the task's inputs; kpm: the smallest under those of a text."
    )
    text: str | None = setting(
        None,
        "kpm: a file in UTF-8 with a text in each line, whose knowledge is to stay (the paper: questions).",
        file=True,
    )
    rows: int = setting(256, "Texts on which the inputs are measured.", ge=1)
    damping: float = setting(0.01, "What is added to the diagonal, as a share of its mean.", gt=0)

    @property
    def smallest(self) -> bool:
        """Those of a text whose knowledge is to stay."""
        return self.mode == "kpm"

    def refusal(self, site: Site, r: int, number: int) -> ConfigError | None:
        """There is no text, or the weight has too few components."""
        problem = hint = ""
        if self.smallest and self.text is None:
            problem, hint = "mode kpm keeps the knowledge of a text, and none is given", "--set text=FILE"
        elif self.text is not None and not self.smallest:
            problem, hint = "mode ipm reads the task's own rows, and no text", "--set mode=kpm"
        elif self.text is not None and not Path(self.text).is_file():
            problem, hint = f"there is no file {self.text}", "--set text=FILE, with a text in each line"
        if problem:
            return ConfigError(problem, hint=hint, unchanged="nothing was changed")
        return super().refusal(site, r, number)

    def every(self, context: TrainContext) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Halves of r components of every site.

        Raises:
            ConfigError: See `refusal`; or there are no rows.
            DivergedError: What the base feeds into a module is not finite.
        """
        for site in context.sites:
            self.block(site, context)  # refuses before anything is measured
        inputs = covariance_of(context, self.rows) if self.text is None else self._of_text(context, Path(self.text))
        sites = reached(context, inputs.shared)
        return {site.name: self._factors(site, covariance_at(inputs, site), context) for site in sites}

    def _factors(self, site: Site, covariance: Tensor, context: TrainContext) -> tuple[Tensor, Tensor]:
        C, inverse = damped(covariance.to(site.device), self.damping)
        U, S, V = torch.linalg.svd(site.weight().double() @ C, full_matrices=False)
        taken = self.block(site, context)
        return halves(U[:, taken], S[taken], V[taken] @ inverse, context.scaling)

    def _of_text(self, context: TrainContext, path: Path) -> InputCovariance:
        if context.texts is None:
            raise ConfigError("a stream keeps no text", hint="--set mode=ipm", unchanged="nothing was changed")
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{path} cannot be read as UTF-8: {error}", unchanged="the adapter was not added to the bank"
            ) from error
        if not lines:
            raise ConfigError(f"{path} holds no text", unchanged="the adapter was not added to the bank")
        generator = torch.Generator().manual_seed(context.config.seed)
        drawn = torch.randperm(len(lines), generator=generator)[: self.rows].sort().values.tolist()
        batches = context.texts([lines[i] for i in drawn])
        return collect_inputs(context.model, modules_of(context), batches)


def damped(covariance: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """A covariance with mean diagonal 1 that can be inverted, and its inverse; float64.

    Args:
        covariance: ``[d_in, d_in]``, positive semidefinite and finite.
        share: What is added to its diagonal, as a share of the diagonal's mean; doubled until the inverse is good.
    """
    C = covariance.double()
    C = C / C.diagonal().mean().clamp_min(torch.finfo(C.dtype).tiny)
    one = torch.eye(len(C), dtype=C.dtype, device=C.device)
    while True:
        fixed = C + share * one
        inverse = torch.linalg.inv(fixed)
        if float(torch.dist(fixed @ inverse, one)) < _INVERTED:
            return fixed, inverse
        share *= 2
