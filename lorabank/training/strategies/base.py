"""What a strategy is: what earlier adapters do while a new one is trained, what holds it, what later tasks need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lorabank.core.records import AdapterRecord
from lorabank.core.states import active_state

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from lorabank.algebra.factors import LoraFactors
    from lorabank.algebra.stack import AdapterStack
    from lorabank.core.config import TrainConfig
    from lorabank.models.bases.sites import Site
    from lorabank.models.facts.fisher import Anchor
    from lorabank.training.penalties.base import Penalty
    from lorabank.training.variants.layer import LoraLinear


@dataclass(frozen=True)
class Recorded:
    """What an earlier task recorded under a role: the bytes, and the adapters of its state, its own one last."""

    adapters: tuple[str, ...]
    data: bytes


@dataclass(frozen=True)
class Start:
    """What a strategy finds when an adapter begins.

    Attributes:
        model: The base with the task's head, nothing attached yet; the strategy changes it in place.
        sites: What to adapt.
        config: The settings.
        earlier: The adapters that are to be active, frozen, in sequence order, by module; None where there are none.
        initial: The factors of the adapter that goes on training by site, or None.
        objects: Role to what each earlier task recorded under it, in sequence order.
        batches: Gives the task's own training rows in order, as inputs on the model's device.
        loss: Mean loss of a batch.
    """

    model: PreTrainedModel
    sites: Sequence[Site]
    config: TrainConfig
    earlier: AdapterStack | None
    initial: LoraFactors | None
    objects: Mapping[str, Sequence[Recorded]]
    batches: Callable[[], Iterable[dict[str, Tensor]]]
    loss: Callable[[nn.Module, dict[str, Tensor]], Tensor]

    @property
    def targets(self) -> tuple[str, ...]:
        """The sites' names."""
        return tuple(site.name for site in self.sites)

    @property
    def earlier_by_site(self) -> AdapterStack | None:
        """What the earlier adapters do to each site."""
        from lorabank.models.bases.blocks import of_sites

        return None if self.earlier is None else of_sites(self.earlier, self.sites)


@dataclass(frozen=True)
class Begun:
    """An adapter that is ready to be trained.

    Attributes:
        layers: Its layers by the sites' names.
        penalties: Name, weight and penalty of what the strategy itself adds to the loss.
        anchor: What holds an adapter that goes on training, for penalties that ask for it.
        after_step: Called after every optimizer step, or None.
    """

    layers: dict[str, LoraLinear]
    penalties: tuple[tuple[str, float, Penalty], ...] = ()
    anchor: Anchor | None = None
    after_step: Callable[[], None] | None = None


@dataclass(frozen=True)
class Strategy:
    """A named preset, and for methods that are more than a preset two steps to override.

    Attributes:
        name: Its key in ``STRATEGIES``.
        earlier: ``"active"`` (frozen, added to the base), ``"attended"`` (frozen, under a learned attention),
            ``"off"``, or ``"continued"`` (the last adapter's factors are where the new one starts).
        penalty: Name of the default penalty, or None.
        replay: Rows of earlier tasks that are trained on again: none, a reservoir of ``replay_rows`` (a setting of the
            strategy), or all.
        answers: Who answers for a task that later tasks follow: ``"own"``, its own adapter, or ``"newest"``, the last
            one that was trained on top of it. By default its own where each task is trained alone: earlier adapters
            are off, and no rows of earlier tasks are trained on again.
        about: What it does, in one sentence.
        paper: Where it was published.
        needs: Roles of the objects that earlier tasks must have recorded.
        reads: Roles of the objects that are used where they are.
    """

    name: str
    earlier: Literal["active", "attended", "off", "continued"]
    penalty: str | None = None
    replay: Literal["none", "reservoir", "all"] = "none"
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    answers: Literal["own", "newest"] | None = None
    about: str = ""
    paper: str | None = None

    def __post_init__(self) -> None:
        if self.answers is None:
            alone = self.earlier == "off" and self.replay == "none"
            object.__setattr__(self, "answers", "own" if alone else "newest")

    @property
    def refused(self) -> tuple[str, ...]:
        """The banks in which a task cannot be added with it, each in words."""
        recorded = [f"a bank in which an earlier task recorded no {role!r}" for role in self.needs]
        kept = ["a bank in which an earlier task keeps no rows to train on again"] if self.replay != "none" else []
        return (*recorded, *kept)

    def context(self, earlier: Sequence[AdapterRecord]) -> tuple[str, ...]:
        """Digests of the adapters that are active while the next one is trained.

        Args:
            earlier: The bank's ready adapters in sequence order.
        """
        if self.earlier not in ("active", "attended") or not earlier:
            return ()
        return active_state(earlier)

    def continued(self, earlier: Sequence[AdapterRecord]) -> str | None:
        """Digest of the adapter whose factors are where the next one starts, or None.

        Args:
            earlier: The bank's ready adapters in sequence order.
        """
        return earlier[-1].digest if self.earlier == "continued" and earlier else None

    def replayed(self, seen: int) -> int:
        """How many of the ``seen`` rows of earlier tasks are trained on again."""
        return {"none": 0, "all": seen}[self.replay]

    def kept(self, rows: int) -> int:
        """How many of a task's own ``rows`` the bank keeps, so that later tasks can train on them again."""
        return {"none": 0, "all": rows}[self.replay]

    def begin(self, start: Start) -> Begun:
        """Put a trainable adapter on the model, by default beside the folded past."""
        from lorabank.training.variants.layer import attach_adapter, fold

        if start.earlier:
            fold(start.model, start.earlier)
        config = start.config
        return Begun(
            attach_adapter(
                start.model,
                start.targets,
                r=config.r,
                lora_alpha=config.lora_alpha,
                use_rslora=config.use_rslora,
                dropout=config.lora_dropout,
                initial=start.initial,
            )
        )

    def finish(self, start: Start, begun: Begun) -> dict[str, bytes]:
        """After training, role to the bytes of what later tasks need; by default nothing.

        Args:
            start: As `begin` saw it, without the past: ``earlier``, ``initial`` and ``objects`` are empty.
            begun: What `begin` gave, trained.
        """
        return {}
