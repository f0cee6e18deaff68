"""What a strategy, a variant and a start find when an adapter begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
