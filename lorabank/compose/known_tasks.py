"""What a router knows of the members of a composition."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lorabank.compose.base import Member, longest
from lorabank.compose.routers.base import Kept, Router, RouterMethod
from lorabank.compose.routers.query import Query
from lorabank.compose.routers.ranking import Ranked
from lorabank.compose.routers.statistics import StoredStatistics
from lorabank.core.commands import Command
from lorabank.core.errors import NotFoundError
from lorabank.core.shelves import ROUTING
from lorabank.models.mixing.runtime import Runtime

_UNCHANGED = "nothing was changed"
_NOTHING = "no statistics for this router"


@dataclass(frozen=True)
class KnownTask:
    """A member and its statistics.

    Attributes:
        member: The member.
        read: Reads its statistics; again at each call, since those of all tasks are not needed at once.
        stored: Digest of their blob in the bank; empty if they are not stored as one.
    """

    member: Member
    read: Callable[[], Any]
    stored: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the statistics: nothing is read where the bank holds them under that."""
        return self.stored or hashlib.sha256(self.read().to_bytes()).hexdigest()


def kept_of(member: Member, kind: type[Kept]) -> KnownTask | None:
    """The statistics of a kind that were kept when a task was added; None where there are none."""
    if not kind.role:
        return KnownTask(member, member.statistics, member.statistics_digest)
    digest = member.facts.get(kind.role)
    return KnownTask(member, lambda: kind.from_bytes(member.read_fact(digest)), digest) if digest else None


def kept_or_made(
    members: Sequence[Member], method: RouterMethod, runtime: Callable[[], Runtime]
) -> tuple[list[KnownTask], list[str]]:
    """What is kept of every member, as it is; only what is kept of none is made of samples, which are read then.

    Args:
        members: Members, with or without their samples.
        method: The router that wants it.
        runtime: Gives features; not asked for where everything is kept.

    Returns:
        The tasks, and the names of those whose statistics were made of samples.

    Raises:
        NotFoundError: The bank keeps neither of a member.
    """
    kept = [kept_of(member, method.reads) for member in members]
    lacking = [member.with_samples() for member, task in zip(members, kept, strict=True) if task is None]
    tasks, made = known_tasks(lacking, method, 0, runtime)
    new = iter(tasks)
    return [next(new) if task is None else task for task in kept], made


def all_kept(members: Sequence[Member], name: str, method: RouterMethod) -> list[KnownTask]:
    """What is kept of every member.

    Raises:
        NotFoundError: Nothing that the router reads is kept of a member; `compose` can make it.
    """
    known = []
    for member in members:
        kept = kept_of(member, method.reads)
        if kept is None:
            raise NotFoundError(
                f"router {name!r}: task {member.task!r} keeps {_NOTHING}",
                hint="compose makes them of the kept samples",
                commands=[Command("compose", "--mode", ROUTING, "--router", name)],
                unchanged=_UNCHANGED,
            )
        known.append(kept)
    return known


def known_tasks(
    members: Sequence[Member], method: RouterMethod, seed: int, runtime: Callable[[], Runtime]
) -> tuple[list[KnownTask], list[str]]:
    """What is kept of every member, or made of its samples.

    Args:
        members: Members with their samples.
        method: The router that wants it.
        seed: Of everything that is fitted.
        runtime: Gives features; not asked for where everything is kept.

    Returns:
        The tasks, and the names of those whose statistics were made of samples.

    Raises:
        NotFoundError: The bank keeps neither of a member.
    """
    tasks, made = [], []
    for member in members:
        task = kept_of(member, method.reads)
        lacks = _NOTHING if task is None else method.lacks(member.clusters, task.read)
        if task is None or lacks:
            task = KnownTask(member, partial(_itself, _from_samples(member, method, seed, runtime, lacks)))
            made.append(member.task)
        tasks.append(task)
    return tasks, made


def from_samples(made: Sequence[str]) -> str:
    """The notice that statistics of some tasks were made."""
    return f"routing statistics of {', '.join(made)} are computed from the kept samples"


def _from_samples(member: Member, method: RouterMethod, seed: int, runtime: Callable[[], Runtime], lacks: str) -> Kept:
    if not member.texts:
        raise NotFoundError(
            f"task {member.task!r} keeps {lacks}, and no samples from which to compute what this router needs",
            hint="another router, or its settings with which the task was added",
            unchanged=_UNCHANGED,
        )
    samples = query_of(runtime(), raw_texts(member), member.form.max_length)
    return method.from_samples(samples, runtime().routing_layers, member.clusters, seed)


def _itself(kept: Kept) -> Kept:
    return kept


def raw_texts(member: Member) -> list[str]:
    """A member's samples as a router reads them: the texts, or of plain text what stands in it."""
    return [text or target for text, target in zip(member.texts, member.targets, strict=True)]


def query_of(runtime: Runtime, texts: Sequence[str], max_length: int) -> Query:
    """Texts with features that the runtime computes when they are looked at."""
    return Query(texts, lambda layers: runtime.layer_features(texts, max_length, layers))


class MemberRouter:
    """A router over members, made anew where other members are known; texts come in many batches.

    Args:
        method: The router's method.
        runtime: Gives features.
    """

    def __init__(self, method: RouterMethod, runtime: Callable[[], Runtime]) -> None:
        self._method = method
        self._runtime = runtime
        self._made: tuple[list[KnownTask], Router] | None = None

    def rank(self, known: list[KnownTask], texts: Sequence[str]) -> Ranked:
        """The best of the tasks that are known for each text, see `Ranked`."""
        if self._made is None or self._made[0] != known:
            self._made = known, self._method.router(StoredStatistics([task.read for task in known]))
        return self._made[1].rank(query_of(self._runtime(), texts, longest([task.member for task in known])))
