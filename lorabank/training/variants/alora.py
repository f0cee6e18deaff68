r"""ALoRA (NAACL 2024, arXiv 2403.16187): ranks move from the modules where they help least to those that need more.

    ΔW = s B diag(g) A,    g_i = 1 for the components that are open, else 0

A few times during the training every open component is scored by ablation (AB-LoRA), with S the negative loss of some
rows,

    score = S(all) − S(without it) + S(its module with it alone)

and the lowest are closed. As many are opened, from B = 0, in the modules that lost none, those with the highest mean
score first. The number of open components stays ``n r``.

It is our reading of the paper. It scores on validation rows, of which a bank has none: ours are rows of the task that
are drawn once. A round takes two forward passes for each component. (PEFT's *aLoRA* is another method.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.machine import distributed as processes
from lorabank.core.settings import setting
from lorabank.models.tasks.probing import undisturbed
from lorabank.training.variants.base import FreeFactors, Parametrization, Step, Variant
from lorabank.training.variants.cubic import Window

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.starts.base import FactorStart


@dataclass(frozen=True)
class ALora(Variant):
    """Components are closed where they help least, and opened where they help most."""

    paper: ClassVar[str | None] = "ALoRA, arXiv 2403.16187"
    draws: ClassVar[bool] = True
    prunes: ClassVar[bool] = True
    own_rows: ClassVar[str | None] = "the strategy makes A anew, and components are scored with the A of the variant"

    limit: float = setting(2.0, "The highest rank of a module, as a multiple of --r.", ge=1)
    first: float = setting(0.2, "Share of the steps before ranks move.", ge=0, lt=1)
    last: float = setting(0.4, "Share of the steps, at the end, with the final ranks.", ge=0, lt=1)
    rounds: int = setting(4, "How often ranks move.", ge=1)
    share: float = setting(0.125, "Share of the open components that move in a round.", gt=0, lt=1)
    rows: int = setting(32, "Rows of the task by which components are scored.", ge=1)

    def parametrize(self, context: TrainContext, start: FactorStart) -> Parametrization:
        """LoRA's A and B at the highest rank, of which r components are open."""
        wide = replace(context, config=replace(context.config, r=self.rank(context.config.r)))
        begun = start.begin(wide)
        begun = replace(begun, scaling=dict.fromkeys(begun.A, context.scaling))
        generator = torch.Generator().manual_seed(context.config.seed * 1_000_003 + context.number)
        drawn = torch.randperm(context.rows, generator=generator)[: self.rows]
        batches = [context.inputs(part.tolist()) for part in drawn.split(context.config.batch_size)]

        def score() -> float:
            return -sum(float(context.loss(context.model, batch)) for batch in batches) / max(1, len(batches))

        return Allocated(begun, context.config.r, self, context.model, score)

    def rank(self, r: int) -> int:
        """The highest rank of a module."""
        return max(r, int(self.limit * r))

    def parameters(self, d_out: int, d_in: int, r: int) -> int:
        """Those of LoRA at the highest rank: what is closed rests."""
        return self.rank(r) * (d_out + d_in)


class Allocated(FreeFactors):
    """A and B, of which some components are open.

    Args:
        start: A and B by site at the highest rank.
        r: How many components of each site are open at first.
        settings: Those of the variant.
        model: The one that is trained.
        score: S of the model as it is.
    """

    open: Tensor

    def __init__(
        self, start: LoraFactors, r: int, settings: ALora, model: nn.Module, score: Callable[[], float]
    ) -> None:
        super().__init__(start)
        self._settings = settings
        self._model = (model,)  # in a tuple: it is no part of what is trained
        self._score = score
        self._layers: Mapping[str, Any] = {}
        first = next(iter(self.A))
        self.register_buffer("open", torch.zeros(len(self.A), len(first), dtype=torch.bool))
        self.open[:, :r] = True

    @property
    def prunes(self) -> bool:
        """Closed components are left out."""
        return True

    def factors(self) -> LoraFactors:
        """A, and B with the closed columns 0."""
        free = super().factors()
        gates = zip(free.B.items(), self.open, strict=True)
        return replace(free, B={site: b * is_open.to(b) for (site, b), is_open in gates})

    def begin(self, layers: Mapping[str, nn.Module]) -> None:
        """Know the layers, in which components are ablated."""
        self._layers = layers

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Move ranks, where it is time."""
        window = Window.of(step.total, self._settings.first, self._settings.last)
        length, rounds = window.end - window.begin, self._settings.rounds
        if step.number in {window.begin + -(-length * k // rounds) for k in range(1, rounds + 1)}:
            self.move(self.scores())

    @torch.no_grad()
    def move(self, scores: Tensor) -> None:
        """Close the components with the lowest scores ``[sites, r]``, and open as many elsewhere."""
        open_before = self.open.clone()
        ranked = scores.masked_fill(~self.open, float("inf")).flatten().argsort(stable=True)
        lowest = ranked[: int(self._settings.share * int(self.open.sum()))]
        self.open.view(-1)[lowest] = False
        kept_all = (self.open == open_before).all(1)
        mean = (scores * open_before).sum(1) / open_before.sum(1).clamp_min(1)
        needy = [k for k in mean.argsort(descending=True, stable=True).tolist() if bool(kept_all[k])]
        opened = self._opened(needy, len(lowest), open_before)
        for n in lowest.tolist()[opened:]:  # there was no room for it elsewhere
            self.open.view(-1)[n] = True
        for k, b in enumerate(self.B):  # what is closed, or opened now, is 0
            b.mul_((self.open[k] & open_before[k]).to(b))

    def scores(self) -> Tensor:
        """Of every component ``[sites, r]``, 0 where it is closed."""
        found, made = torch.zeros(self.open.shape), super().factors()
        with undisturbed(self._model[0]), self._bare():
            whole = self._score()
            for k, (site, is_open) in enumerate(zip(made.B, self.open, strict=True)):
                leaf, b = self._layers[site].lora_B, made.B[site] * is_open.to(made.B[site])
                for i in is_open.nonzero().flatten().tolist():
                    alone = torch.zeros_like(is_open)
                    alone[i] = True
                    found[k, i] = whole - self._with(leaf, b * ~alone) + self._with(leaf, b * alone)
                leaf.copy_(b)
        return processes.averaged(found.to(self.open.device))

    def _opened(self, sites: list[int], count: int, before: Tensor) -> int:
        """Open one component after another in these sites, in turn, as long as there is room; says how many."""
        done = 0
        while sites and done < count:
            for k in list(sites):
                room = (~self.open[k] & ~before[k]).nonzero().flatten()
                if not len(room):
                    sites.remove(k)
                elif done < count:
                    self.open[k, room[0]] = True
                    done += 1
        return done

    def _with(self, leaf: Tensor, values: Tensor) -> float:
        leaf.copy_(values)
        return self._score()

    @contextmanager
    def _bare(self) -> Iterator[None]:
        """Layers that answer from their factors, and have the newest ones."""
        made, ready = self.factors(), []
        for site, layer in self._layers.items():
            layer.lora_A.copy_(made.A[site])
            layer.lora_B.copy_(made.B[site])
            ready.append((layer, layer.effective, layer.shadow))
            layer.effective = layer.shadow = None
        try:
            yield
        finally:
            for layer, effective, shadow in ready:
                layer.effective, layer.shadow = effective, shadow
