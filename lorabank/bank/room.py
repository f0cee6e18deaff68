"""How many more tasks fit into a bank: by the input directions that no adapter uses yet, and by bytes."""

from __future__ import annotations

from typing import NamedTuple

from lorabank.bank.snapshot import Snapshot
from lorabank.core.records import AdapterRecord, Lineage
from lorabank.core.states import FOLDED_INTO, needed


class Room(NamedTuple):
    """The room for later tasks like the newest one.

    Attributes:
        tasks: How many more fit, by what is short first.
        r: Rank of the newest adapter.
        directions: Input directions of the tightest module that no adapter uses.
        bytes: What is left of the budget, below 0 where it is exceeded; None without a budget.
    """

    tasks: int
    r: int
    directions: int
    bytes: int | None = None


def room_left(snapshot: Snapshot, budget: int | None = None) -> Room | None:
    """The room beside the adapters of the tasks in use.

    A task of rank r takes r directions of every module's input: ``min over modules of (d_in - rank of all A) / r`` of
    them can still be orthogonal to all earlier ones. Of a budget each takes the bytes of the newest adapter, after
    those of every adapter that a task in use needs.

    Args:
        snapshot: The bank.
        budget: Maximum bytes of all adapters.

    Returns:
        None where no adapter says what is left: there is none, or an older version of lorabank trained the newest one.
    """
    adapters = [snapshot.by_position[task.position] for task in snapshot.tasks]
    newest = next((one for one in reversed(adapters) if not _takes_nothing(one)), None)
    room = newest and room_beside(newest)
    if newest is None or room is None or budget is None:
        return room
    left = budget - sum(snapshot.adapters[digest].bytes for digest in Lineage.union(map(needed, adapters)))
    return room._replace(tasks=max(0, min(room.tasks, left // max(1, newest.bytes))), bytes=left)


def room_beside(adapter: AdapterRecord) -> Room | None:
    """The room that was left when an adapter was the newest; None where its record does not say."""
    directions = adapter.metrics.get("directions_left")
    return None if directions is None else Room(directions // adapter.r, adapter.r, directions)


def _takes_nothing(adapter: AdapterRecord) -> bool:
    """Whether it stands on a folded one, or adapts biases alone, which read no input."""
    return FOLDED_INTO in adapter.metrics or adapter.metrics.get("capacity_by_module") == {}


def in_words(room: Room) -> str:
    """The room in one sentence."""
    many = room.tasks != 1
    return f"{room.tasks} more task{'s' if many else ''} of rank {room.r} fit{'' if many else 's'}"
