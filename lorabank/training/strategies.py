"""Strategies: what earlier adapters do while a new one is trained, and which penalty holds it.

| strategy | earlier adapters while training   | penalty    | state after task t        |
| -------- | --------------------------------- | ---------- | ------------------------- |
| olora    | active, frozen                    | orthogonal | sum of 1..t               |
| inclora  | active, frozen                    | none       | sum of 1..t               |
| isolated | off                               | none       | each task's own adapter   |
| seqlora  | the last one goes on training     | none       | the snapshot after task t |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorabank.core.records import AdapterRecord


@dataclass(frozen=True)
class Strategy:
    """A named preset.

    Attributes:
        name: Its key in ``STRATEGIES``.
        earlier: ``"active"`` (frozen, added to the base), ``"off"``, or ``"continued"`` (the last adapter's factors
            are where the new one starts).
        penalty: Name of the default penalty, or None.
    """

    name: str
    earlier: Literal["active", "off", "continued"]
    penalty: str | None

    def context(self, earlier: Sequence[AdapterRecord]) -> tuple[str, ...]:
        """Digests of the adapters that are active while the next one is trained.

        Args:
            earlier: The bank's ready adapters in sequence order.
        """
        if self.earlier != "active" or not earlier:
            return ()
        return active_state(earlier)


OLORA = Strategy("olora", "active", "orthogonal")
INCLORA = Strategy("inclora", "active", None)
ISOLATED = Strategy("isolated", "off", None)
SEQLORA = Strategy("seqlora", "continued", None)

IMPORTED = "imported"
"""What ``AdapterRecord.strategy`` says of an adapter that was trained elsewhere."""

_ON_ITS_OWN = (ISOLATED.name, IMPORTED)


def own_state(adapter: AdapterRecord) -> tuple[str, ...]:
    """The adapters of a task's own state: its context and itself, each with weight 1."""
    return (*adapter.context, adapter.digest)


def active_state(adapters: Sequence[AdapterRecord]) -> tuple[str, ...]:
    """Every adapter that counts after the last one: all, but of each ``seqlora`` chain the newest snapshot only."""
    kept: list[str] = []
    for adapter in adapters:
        if adapter.strategy == SEQLORA.name:
            kept = [digest for digest in kept if digest != adapter.metrics.get("continued_from")]
        kept.append(adapter.digest)
    return tuple(kept)


def deployed_state(adapters: Sequence[AdapterRecord], task: AdapterRecord) -> tuple[str, ...]:
    """The state that answers for ``task`` after the last of ``adapters`` was trained (the state *as trained*).

    An isolated or imported task keeps its own adapter. Any other task is answered by the newest adapter trained on
    top of it, with that adapter's context; a task not learnt yet by the newest state there is.

    Args:
        adapters: Adapters of the stage, in sequence order; empty for the untrained base.
        task: The adapter of the task that is scored, part of ``adapters`` or later.
    """
    known = {adapter.digest for adapter in adapters}
    if task.digest in known and task.strategy in _ON_ITS_OWN:
        return own_state(task)
    shared = [adapter for adapter in adapters if adapter.strategy not in _ON_ITS_OWN]
    return own_state(shared[-1]) if shared else ()
