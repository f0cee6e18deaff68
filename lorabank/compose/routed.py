"""``routed``: every text goes to the task whose training texts it resembles (CoLoR, arXiv 2311.17601).

Features of the frozen base, L2-normalised, are judged by a router of the shelf `lorabank.core.shelves.ROUTERS`. The
routed task's own state and head answer. What the router needs was stored when each task was added, so a new task needs
no old data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.bank.objects.canonical import Encoded, encoded_list
from lorabank.compose.base import Fitted, Member, chosen_method, known, longest, state_weights, stored_method
from lorabank.compose.routers.base import Router, RouterMethod
from lorabank.compose.routers.gaussian import Gaussian
from lorabank.compose.routers.statistics import StoredStatistics, TaskStatistics, fit_statistics
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import NotFoundError
from lorabank.core.observer import Observer
from lorabank.core.records import CompositionRecord
from lorabank.core.shelves import ROUTERS, Shelf
from lorabank.models.mixing.runtime import Plan, Runtime

OF_HEADS: RouterMethod = Gaussian()
"""Picks the head where a composition does not route and no router was asked for."""


class Routed:
    """Routing by statistics of the tasks' features.

    Args:
        name: The router's name on the shelf.
        method: It with its settings.
        members: The tasks; their statistics are what the router needs.
        runtime: Gives features.
    """

    routed: ClassVar[bool] = True
    shelf: ClassVar[Shelf | None] = ROUTERS
    unused: ClassVar[tuple[str, ...]] = ("tolerance",)

    def __init__(
        self, name: str, method: RouterMethod, members: Sequence[Member], runtime: Callable[[], Runtime]
    ) -> None:
        self._name = name
        self._method = method
        self._members = members
        self._runtime = runtime
        self._router: tuple[int, Router] | None = None  # of one stage: texts come in many batches

    @classmethod
    def fit(
        cls, members: Sequence[Member], config: ComposeConfig, runtime: Callable[[], Runtime], observer: Observer
    ) -> Fitted:
        """Take the stored statistics, or what the router makes of the calibration samples."""
        method: RouterMethod = chosen_method(ROUTERS, config)
        fitted = Fitted({"router": config.router, **asdict(method)})
        for member in members:
            other = method.refitted(member.clusters, partial(_found_again, member, config.seed, runtime))
            if other is None and member.statistics_digest:
                fitted.kept[_role(member.task)] = member.statistics_digest
            else:
                fitted.objects[_role(member.task)] = (other or member.statistics()).to_bytes()
        return fitted

    @classmethod
    def load(
        cls,
        record: CompositionRecord,
        objects: MutableMapping[str, bytes],
        members: Sequence[Member],
        runtime: Callable[[], Runtime],
    ) -> Routed:
        """The stored statistics, read when a router is made of them."""

        def read(task: str) -> TaskStatistics:
            return TaskStatistics.from_bytes(objects[_role(task)])

        own = [
            replace(
                member,
                statistics=partial(read, member.task),
                statistics_digest=record.objects.get(_role(member.task), ""),
            )
            for member in members
        ]
        name = str(record.parameters["router"])
        return cls(name, stored_method(ROUTERS, name, record), own, runtime)

    def plan(self, stage: int, texts: Sequence[str]) -> Plan:
        """Each text's routed state."""
        members = known(self._members, stage)
        features = self._runtime().features(texts, longest(members))
        if self._router is None or self._router[0] != stage:
            self._router = stage, self._method.build(StoredStatistics([member.statistics for member in members]))
        ranked = self._router[1].rank(features)
        names = self._runtime().stack.names
        routed_to, row_of = np.unique(ranked.task, return_inverse=True)
        states = np.stack([state_weights(names, dict.fromkeys(members[k].state, 1.0)) for k in routed_to])
        return Plan(weights=states[row_of], route=ranked.task, margin=ranked.margin)

    def identity(self, stage: int) -> Any:
        """The router, its statistics, and each member's state."""
        members = known(self._members, stage)
        router = [self._name, self._method.identity(), longest(members)]
        return encoded_list(["prototype", router, encoded_list(self._identities[member.task] for member in members)])

    @cached_property
    def _identities(self) -> dict[str, Encoded]:
        """What decides what each member adds, by its task: encoded once for all stages."""
        return {
            member.task: encoded_list([member.lasting, list(member.state), statistics_digest(member)])
            for member in self._members
        }

    def as_adapter(self, stage: int, stack: AdapterStack, weight: Callable[[str], Tensor]) -> LoraFactors | None:
        """None: a text's state is its task's, and a composition of one task is that task, with its head."""
        return None


def statistics_digest(member: Member) -> str:
    """SHA-256 of what a router knows of a member: nothing is read where the bank holds it under that."""
    return member.statistics_digest or hashlib.sha256(member.statistics().to_bytes()).hexdigest()


def _role(task: str) -> str:
    """Under which a composition keeps what it knows of a task."""
    return f"prototypes:{task}"


def _found_again(member: Member, seed: int, runtime: Callable[[], Runtime], clusters: int) -> TaskStatistics:
    if not member.texts:
        raise NotFoundError(
            f"task {member.task!r} keeps {member.clusters} centroids and no samples from which to compute {clusters}",
            hint=f"--set clusters_per_task={member.clusters}, or another --router",
            unchanged="nothing was changed",
        )
    return fit_statistics(runtime().features(member.texts, member.form.max_length), clusters, seed)
