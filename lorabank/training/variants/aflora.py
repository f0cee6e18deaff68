r"""AFLoRA (ACL 2024, arXiv 2403.13269): A and B are trained until they change little, then two vectors alone.

    ΔW = diag(v) B diag(u) A,    A, B by kaiming_uniform, u = 0.1, v = 0 at the start

There is no ``lora_alpha / r``. The freezing score of a matrix is the mean of ``Ī U`` over its entries, with the
smoothed ``I = |dL/dw|`` and its uncertainty U (as in `lorabank.training.variants.sensitivity`), once for each
``every`` steps, from the mean of I over them. The share of all matrices that are frozen is

    r(t) = 1 − (1 − (t − t_i) / (T − t_i − t_f))³

those with the lowest scores first, and a matrix that is frozen stays so. In the last t_f steps all are.

The released code takes the share of what is still trained, where the paper takes it of all; and its scripts freeze the
matrices of every square weight from the first step on, which we do not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.settings import setting
from lorabank.training.variants.base import FreeFactors, Parametrization, Step, Variant
from lorabank.training.variants.cubic import Window

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class AFLora(Variant):
    """A, B and two vectors are trained; the matrices are frozen one after another."""

    paper: ClassVar[str | None] = "AFLoRA, arXiv 2403.13269"
    draws: ClassVar[bool] = True
    learning_rate: ClassVar[float | None] = 1e-2

    u: float = setting(0.1, "Where every entry of u begins.", gt=0)
    first: float = setting(0.05, "Share of the steps before anything is frozen.", ge=0, lt=1)
    last: float = setting(0.7, "Share of the steps, at the end, in which all matrices are frozen.", ge=0, lt=1)
    every: int = setting(10, "Optimizer steps from one scoring to the next.", ge=1)
    beta1: float = setting(0.85, "Share of the mean gradient that is kept in a scoring.", ge=0, lt=1)
    beta2: float = setting(0.95, "Share of its uncertainty that is kept in a scoring.", ge=0, lt=1)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """A and B drawn by kaiming_uniform, u constant, v = 0."""
        A, B = {}, {}
        for site in context.sites:
            A[site.name] = nn.init.kaiming_uniform_(torch.empty(context.config.r, site.d_in, device=site.device))
            B[site.name] = nn.init.kaiming_uniform_(torch.empty(site.d_out, context.config.r, device=site.device))
        return Freezing(LoraFactors(A, B, dict.fromkeys(A, context.scaling)), self)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """Those of LoRA, u and v."""
        return super().parameters(d_out, d_in, r) + r + d_out


class Freezing(FreeFactors):
    """A, B, u and v.

    Args:
        start: A and B by site, with the scaling of the stored adapter.
        settings: Those of the variant.
    """

    frozen: Tensor

    def __init__(self, start: LoraFactors, settings: AFLora) -> None:
        super().__init__(start)
        self._settings = settings
        self.u = nn.ParameterList(a.new_full((len(a),), settings.u) for a in start.A.values())
        self.v = nn.ParameterList(b.new_zeros(len(b)) for b in start.B.values())
        self._matrices = (*self.A, *self.B)
        self.register_buffer("frozen", torch.zeros(len(self._matrices), dtype=torch.bool))
        for k, matrix in enumerate(self._matrices):
            for name in ("seen", "mean", "spread"):
                self.register_buffer(f"{name}_{k}", torch.zeros_like(matrix, requires_grad=False))

    def factors(self) -> LoraFactors:
        """diag(u) A and diag(v) B, with the stored scaling taken out."""
        free = super().factors()
        A = {site: u[:, None] * a for (site, a), u in zip(free.A.items(), self.u, strict=True)}
        B = {site: (v / free.scaling[site])[:, None] * b for (site, b), v in zip(free.B.items(), self.v, strict=True)}
        return replace(free, A=A, B=B)

    @torch.no_grad()
    def before_step(self, step: Step) -> None:
        """Watch the matrices that are trained, and freeze those whose time has come: they lose their gradients."""
        frozen = self.frozen.tolist()
        for k, matrix in enumerate(self._matrices):
            if matrix.grad is not None and not frozen[k]:
                self.get_buffer(f"seen_{k}").add_(matrix.grad.abs(), alpha=1 / self._settings.every)
        window = Window.of(step.total, self._settings.first, self._settings.last)
        if step.number % self._settings.every == 0:
            self._score()
        if step.number > window.begin and (step.number % self._settings.every == 0 or step.number >= window.end):
            self._freeze(int((1 - window.left(step.number)) * len(self._matrices)))
        for matrix, rests in zip(self._matrices, self.frozen.tolist(), strict=True):
            if rests:
                matrix.grad = None

    def _score(self) -> None:
        for k in range(len(self._matrices)):
            seen, mean, spread = (self.get_buffer(f"{name}_{k}") for name in ("seen", "mean", "spread"))
            mean.lerp_(seen, 1 - self._settings.beta1)
            spread.lerp_((seen - mean).abs(), 1 - self._settings.beta2)
            seen.zero_()

    def _freeze(self, count: int) -> None:
        """Freeze the lowest scores until so many rest, whichever rested before."""
        n = range(len(self._matrices))
        scores = torch.stack([(self.get_buffer(f"mean_{k}") * self.get_buffer(f"spread_{k}")).mean() for k in n])
        order = scores.masked_fill(self.frozen.to(scores.device), -1.0).argsort(stable=True)
        self.frozen[order[:count].to(self.frozen.device)] = True
