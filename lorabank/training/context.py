"""What a strategy, a variant and a start find when an adapter begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lorabank.algebra.factors import lora_scaling

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lorabank.algebra.factors import LoraFactors
    from lorabank.algebra.stack import AdapterStack
    from lorabank.core.config import TrainConfig
    from lorabank.models.bases.sites import Site


@dataclass(frozen=True)
class TaskFact:
    """What an earlier task recorded under a role: the bytes, and the adapters of its state, its own one last."""

    adapters: tuple[str, ...]
    data: bytes


class Memory(NamedTuple):
    """What a training has of an earlier task.

    Attributes:
        place: The task's place among the earlier ones, from 0.
        head: The number of its head, for `TrainContext.inputs`; None for a model without heads.
        rows: The numbers of its rows that are trained on again, in the order in which the task keeps them.
    """

    place: int
    head: int | None
    rows: range


class Each(Protocol):
    """A loss of single terms: the label of a row, or one token of its answer."""

    def __call__(self, logits: Tensor, labels: Tensor, rows: Tensor, /) -> Tensor:
        """A loss ``[n]``.

        Args:
            logits: float32 ``[n, choices]``.
            labels: int64 ``[n]``.
            rows: int64 ``[n]``: the number of the row of each term. All terms of a row lie side by side.
        """


class Inputs(Protocol):
    """Rows by their numbers as inputs."""

    def __call__(self, rows: Sequence[int], head: int | None = None) -> dict[str, Tensor]:
        """A batch on the model's device, every row under this head, by default under its own task's."""


class Texts(Protocol):
    """Texts as inputs."""

    def __call__(self, texts: Sequence[str], /) -> Iterable[dict[str, Tensor]]:
        """Batches of them, on the model's device, with labels only for an encoder-decoder."""


def _equal(labels: Tensor, rows: Tensor) -> float:
    return 1.0


@dataclass(frozen=True)
class TrainContext:
    """What there is when an adapter begins.

    Attributes:
        model: The base with the task's head, nothing attached yet; the strategy changes it in place.
        sites: What to adapt.
        config: The settings.
        number: How many adapters the bank was given before.
        earlier: The adapters that are to be active, frozen, in sequence order, by module; None where there are none.
        initial: The factors by site of the adapter that is continued, or None.
        objects: Role to what each earlier task recorded under it, in sequence order.
        batches: Gives the task's own training rows in order, as inputs on the model's device.
        loss: Mean loss of a batch.
        inputs: Gives rows by their numbers as inputs on the model's device, under their own tasks' heads or a given
            one. The task's own rows are numbered first.
        mean: The mean over the labelled terms of a batch of an `Each`.
        weight: What each term of a loss counts, by its label and the number of its row: for the task's own rows the
            class weight of the label, else 1.
        memory: The earlier tasks whose rows or heads the strategy asked for, in sequence order.
        kept: Numbers of the own rows that the bank keeps for later tasks, in its order.
        rows: How many rows are the task's own, those that `inputs` numbers first; 0 where they are not known.
        texts: Gives texts that are of no task as inputs on the model's device, padded on the right; None where there
            is no tokenizer.
        apart: Numbers of the own rows that are in no epoch, since the variant passes them itself.
        unweighted: The mean loss of a batch without class weights; None where ``loss`` has none.
    """

    model: PreTrainedModel
    sites: Sequence[Site]
    config: TrainConfig
    number: int
    earlier: AdapterStack | None
    initial: LoraFactors | None
    objects: Mapping[str, Sequence[TaskFact]]
    batches: Callable[[], Iterable[dict[str, Tensor]]]
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor]
    inputs: Inputs
    mean: Callable[[Each, nn.Module, dict[str, Tensor]], Tensor]
    memory: Sequence[Memory] = ()
    kept: Sequence[int] = ()
    rows: int = 0
    texts: Texts | None = None
    weight: Callable[[Tensor, Tensor], Tensor | float] = _equal
    apart: Sequence[int] = ()
    unweighted: Callable[[nn.Module, dict[str, Tensor]], Tensor] | None = None

    def without_past(self) -> TrainContext:
        """What there is during and after training: ``earlier``, ``initial`` and ``objects`` are let go."""
        return replace(self, earlier=None, initial=None, objects={})

    def negative_log_likelihood(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The mean of -log p over a batch's labelled terms, whatever their labels weigh in the loss.

        The Fisher information is of this. A class weight w would count w² in its squared gradients.
        """
        return (self.unweighted or self.loss)(model, inputs)

    @property
    def targets(self) -> tuple[str, ...]:
        """The sites' names."""
        return tuple(site.name for site in self.sites)

    @property
    def scaling(self) -> float:
        """The factor s before ``B A``."""
        config = self.config
        return lora_scaling(config.r, config.lora_alpha, use_rslora=config.use_rslora)

    @property
    def earlier_by_site(self) -> AdapterStack | None:
        """What the earlier adapters do to each site."""
        from lorabank.models.bases.blocks import of_sites

        return None if self.earlier is None else of_sites(self.earlier, self.sites)
