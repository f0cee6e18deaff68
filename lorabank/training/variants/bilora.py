r"""BiLoRA (arXiv 2403.13037): directions and sizes of the update are trained on rows of their own.

    dW = s P diag(e) Q,    P [d_out, r] and Q [r, d_in] with orthonormal columns and rows at the start, e = 0

The task's rows are divided: P and Q are trained on D_1 (the lower level) under a penalty that holds them orthonormal,

    min_{P,Q}  L_{D_1} + gamma sum (|P^T P - I|^2 + |Q Q^T - I|^2),        min_e  L_{D_2}    (the upper level)

so that neither can fit what the other does not see. e takes a step on rows of D_2 beside the first of every four steps
on D_1; with a fifth of the rows in D_2, an epoch costs what LoRA's costs.

Our reading of the paper, to first order: the upper level's gradient takes P and Q as they are, without the derivative
of the lower level's solution. e is the paper's real-valued one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.machine.distributed import averaged
from lorabank.core.settings import setting
from lorabank.models.tasks.probing import undisturbed
from lorabank.training.variants.base import Parametrization, Step, Variant
from lorabank.training.variants.windows import drawn_seed

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class BiLora(Variant):
    """Directions and sizes of the update are trained on disjoint rows, against overfitting."""

    paper: ClassVar[str | None] = "BiLoRA, arXiv 2403.13037"

    upper: float = setting(0.2, "Part of the task's rows on which the sizes alone are trained (D_2).", gt=0, lt=1)
    every: int = setting(4, "Steps of the directions for one of the sizes, which comes with the first.", ge=1)
    gamma: float = setting(0.1, "Weight of the penalty that holds the directions orthonormal.", ge=0)
    ratio: float = setting(10.0, "Ratio of the sizes' learning rate to that of the directions.", gt=0)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """Q spans the rows of the start's A, P is drawn, e is 0."""
        return _TwoLevels(context, start.begin(context), self)

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """Those of LoRA and a size for each rank."""
        return super().parameters(d_out, d_in, r) + r

    def apart(self, rows: int) -> int:
        """D_2; each part has a row at least, if there are two."""
        return min(max(1, round(self.upper * rows)), rows - 1)


class _TwoLevels(Parametrization):
    def __init__(self, context: TrainContext, start: LoraFactors, settings: BiLora) -> None:
        super().__init__()
        self._scaling = start.scaling
        self._settings = settings
        self._context = context.without_past()
        self._rows = list(context.apart)
        self._leaves: list[Tensor] = []
        self._seed = drawn_seed()
        generator = torch.Generator().manual_seed(self._seed)
        self.Q = nn.ParameterList(_orthonormal(A.mT).mT.contiguous() for A in start.A.values())
        self.P = nn.ParameterList(
            _orthonormal(torch.randn(B.shape, generator=generator).to(B)) for B in start.B.values()
        )
        self.e = nn.ParameterList(B.new_zeros(B.shape[1]) for B in start.B.values())

    def factors(self) -> LoraFactors:
        """Q and P diag(e); of D_1 a gradient of 0 reaches e."""
        sizes = [e.detach() + 0 * (e - e.detach()) for e in self.e] if self._rows else list(self.e)
        A = dict(zip(self._scaling, self.Q, strict=True))
        B = {site: p * e for site, p, e in zip(self._scaling, self.P, sizes, strict=True)}
        return LoraFactors(A, B, self._scaling)

    def begin(self, layers: Mapping[str, nn.Module]) -> None:
        """Keep the layers' B, whose gradients on D_2 become those of e."""
        self._leaves = [layers[site].get_parameter("lora_B") for site in self._scaling]

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The sizes apart."""
        return [{"params": list(self.e), "lr": self._settings.ratio * learning_rate, "weight_decay": 0.0}]

    def loss(self, step: Step) -> Tensor:
        """How far P and Q are from orthonormal."""
        grams = [q @ q.mT for q in self.Q] + [p.mT @ p for p in self.P]
        far = torch.stack([(gram - torch.eye(len(gram)).to(gram)).square().sum() for gram in grams])
        return self._settings.gamma * far.sum()

    def after_loss(self, step: Step) -> None:
        """The gradient of e on rows of D_2, when it is its turn; the directions are as they were in the step."""
        if not self._turn(step):
            return
        for e, p, gradient in zip(self.e, self.P, self._of_leaves(step), strict=True):
            if gradient is not None:
                e.grad = averaged((gradient * p).sum(0).detach())

    def before_step(self, step: Step) -> None:
        """In all other steps e stays where it is."""
        if self._rows and not self._turn(step):
            for e in self.e:
                e.grad = None

    def _turn(self, step: Step) -> bool:
        """Whether e takes a step on D_2."""
        return bool(self._rows) and (step.number - 1) % self._settings.every == 0

    def _of_leaves(self, step: Step) -> tuple[Tensor | None, ...]:
        generator = torch.Generator().manual_seed(self._seed + step.number)
        drawn = torch.randperm(len(self._rows), generator=generator)[: self._context.config.batch_size]
        with undisturbed(self._context.model), torch.enable_grad():
            loss = self._context.loss(self._context.model, self._context.inputs([self._rows[int(i)] for i in drawn]))
            return torch.autograd.grad(loss, self._leaves, allow_unused=True)


def _orthonormal(tall: Tensor) -> Tensor:
    """Orthonormal columns that span those of a matrix; those beyond its height are zero."""
    columns: Tensor = torch.linalg.qr(tall).Q
    # LAPACK's is laid out by columns, which a fused optimizer loses when its state is read from a checkpoint
    return torch.nn.functional.pad(columns, (0, tall.shape[1] - columns.shape[1])).contiguous()
