"""What a strategy is: what earlier adapters do while a new one is trained, what holds it, what later tasks need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lorabank.core.records import AdapterRecord
from lorabank.core.states import FOLDED_INTO, active_state

if TYPE_CHECKING:
    from lorabank.training.context import TrainContext
    from lorabank.training.layers.attaching import Attached
    from lorabank.training.variants.base import Parametrization


@dataclass(frozen=True)
class Strategy:
    """A named preset, with two steps to override for methods that are more than a preset.

    Attributes:
        name: Its key in ``STRATEGIES``.
        earlier: ``"active"`` (frozen, added to the base), ``"attended"`` (frozen, under a learned attention),
            ``"off"``, or ``"continued"`` (the last adapter's factors are where the new one starts).
        penalty: Name of the default penalty, or None.
        replay: Rows of earlier tasks that are trained on again: none, a reservoir of ``replay_rows`` (a setting of the
            strategy), or all.
        mixed: Whether these rows are part of each epoch; else the strategy passes them itself (`TrainContext.memory`).
        heads: Whether it asks the heads of all earlier tasks, also where no row of theirs is trained on again.
        single_rows: Whether its loss is one of single rows after the first task; packed rows are refused then.
        answers: What answers for a task that later tasks follow: ``"own"``, its own adapter, or ``"newest"``, the last
            one that was trained on top of it. By default its own where each task is trained alone: earlier adapters
            are off, and no rows of earlier tasks are trained on again.
        confined: Whether it keeps the new adapter from what earlier tasks read, so that nothing of it may lie outside
            of A.
        about: What it does, in one sentence.
        paper: Where it was published.
        needs: Roles of the objects that earlier tasks must have recorded.
        reads: Roles of the objects that are used where they are.
    """

    name: str
    earlier: Literal["active", "attended", "off", "continued"]
    penalty: str | None = None
    replay: Literal["none", "reservoir", "all"] = "none"
    mixed: bool = True
    heads: bool = False
    single_rows: bool = False
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    answers: Literal["own", "newest"] | None = None
    confined: bool = False
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
        if self.earlier != "continued" or not earlier:
            return None
        found: str = earlier[-1].metrics.get(FOLDED_INTO, earlier[-1].digest)
        return found

    def replayed(self, seen: int) -> int:
        """How many of ``seen`` rows of earlier tasks, those that the bank keeps, are trained on again."""
        return {"none": 0, "all": seen}[self.replay]

    def kept(self, rows: int) -> int:
        """How many of a task's own ``rows`` the bank keeps, so that later tasks can train on them again."""
        return {"none": 0, "all": rows}[self.replay]

    def drawn(self, tasks: Sequence[int]) -> int:
        """How many rows are trained on again after earlier tasks of so many training rows each."""
        return self.replayed(sum(min(rows, self.kept(rows)) for rows in tasks))

    def in_epoch(self, tasks: Sequence[int]) -> int:
        """How many of these rows each epoch passes beside the new task's own."""
        return self.drawn(tasks) if self.mixed else 0

    def attach(self, context: TrainContext, parametrization: Parametrization) -> Attached:
        """Put the new adapter on the model, by default beside the folded past.

        Args:
            context: What is given; the model's weights are still the untouched base's.
            parametrization: What the variant trains. A strategy may wrap it to change what its factors can be.
        """
        from lorabank.training.layers.attaching import attach

        return attach(context, parametrization)

    def record(self, context: TrainContext, attached: Attached) -> dict[str, bytes]:
        """After training, role to the bytes of what later tasks need; by default nothing.

        Args:
            context: As `attach` saw it, without the past: ``earlier``, ``initial`` and ``objects`` are empty.
            attached: What `attach` gave, trained.
        """
        return {}
