"""What adapters were trained on top of, as rows of ``adapter_context``.

The rows of an adapter stand for a list of adapters, in the order of ``ordinal``; the ``part`` of a row says how:

    empty      the member
    lineage    all that the member was trained on top of, and then the member; the first row alone may say so
    without    the member is left out of what the first row stands for

A task that is trained on top of all earlier ones so needs one row, and one more for each task that was removed since
the last one was trained: all lineages are read in the time that their rows take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TypeVar

from lorabank.bank.catalog.base import Row, View
from lorabank.bank.catalog.columns import sound
from lorabank.bank.catalog.rows import in_order
from lorabank.core.errors import DamagedError
from lorabank.core.records import Lineage

T = TypeVar("T")

LINEAGE, WITHOUT = "lineage", "without"


class Lineages(dict[int, Lineage[T]]):
    """What each adapter was trained on top of, by the position of its task; one that has no rows stands alone.

    Args:
        view: The rows, of this schema or an older one.
        known: What stands for each adapter, by the position of its task; others are left out.

    Raises:
        DamagedError: A row cannot be read, an adapter is said to have been trained on top of a later one, or its rows
            stand for no list.
    """

    def __init__(self, view: View, known: Mapping[int, T]) -> None:
        self._known = known
        self._with_itself: dict[int, Lineage[T]] = {}
        found = in_order(view.rows("adapter_context"), "adapter", "ordinal")
        rows = [sound("adapter_context", {"part": None, **row}) for row in found]
        for adapter, group in groupby(rows, lambda row: row["adapter"]):
            self[adapter] = self._read(adapter, [row for row in group if row["member"] in known])

    def with_itself(self, adapter: int) -> Lineage[T]:
        """What an adapter was trained on top of, and then the adapter."""
        if adapter not in self._with_itself:
            self._with_itself[adapter] = Lineage((self._known[adapter],), self.get(adapter))
        return self._with_itself[adapter]

    def _read(self, adapter: int, rows: Sequence[Row]) -> Lineage[T]:
        for row in rows:
            if row["member"] >= adapter:
                raise _damaged(f"task {adapter} was not trained on top of task {row['member']}")
        if len(rows) == 1 and rows[0]["part"] == LINEAGE:
            return self.with_itself(rows[0]["member"])
        parts = [row["part"] for row in rows]
        before = self.with_itself(rows[0]["member"]) if parts[:1] == [LINEAGE] else None
        rest = list(zip(rows, parts, strict=True))[before is not None :]
        own = [self._known[row["member"]] for row, part in rest if part is None]
        without = [self._known[row["member"]] for row, part in rest if part == WITHOUT]
        if len(own) + len(without) < len(rest) or (without and not set(without) <= set(before or ())):
            raise _damaged(f"the tasks that task {adapter} was trained on top of are not a list of tasks")
        return before if before is not None and not rest else Lineage(own, before, without)


def lineage_rows(
    adapter: int, members: Sequence[int], lineages: Lineages[int], digests: Mapping[int, str]
) -> list[dict[str, int | str | None]]:
    """The fewest rows that stand for what an adapter was trained on top of, without their digests.

    Args:
        adapter: Position of its task.
        members: Positions of the tasks, in order.
        lineages: Those of the members, by position.
        digests: The members' adapters.
    """
    parts: list[tuple[int, str | None]] = [(member, None) for member in members]
    on_others = [member for member in members if member in lineages]
    if on_others:  # usually the newest, and where it stands on few the one that stands on the most
        for first in {on_others[-1], max(on_others, key=lambda member: len(lineages[member]))}:
            shorter = _behind(first, members, lineages, digests)
            parts = shorter if shorter and len(shorter) < len(parts) else parts
    return [
        {"adapter": adapter, "ordinal": number, "member": member, "part": part}
        for number, (member, part) in enumerate(parts)
    ]


def _behind(
    first: int, members: Sequence[int], lineages: Lineages[int], digests: Mapping[int, str]
) -> list[tuple[int, str | None]]:
    """The members as all that one of them stands on, without some of it, and more; none where that is not the same."""
    before = list(lineages.with_itself(first))
    wanted, there = set(members), set(before)
    own = [member for member in members if member not in there]
    if [member for member in before if member in wanted] + own != list(members):
        return []
    if len({digests[member] for member in before}) < len(before):
        return []  # leaving out one of two with the same digest would leave out both
    without = [member for member in before if member not in wanted]
    return [(first, LINEAGE), *((member, WITHOUT) for member in without), *((member, None) for member in own)]


def _damaged(problem: str) -> DamagedError:
    return DamagedError(f"bank.db: {problem}")
