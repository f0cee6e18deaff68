"""``prototype``: every text goes to the task whose training texts it resembles (CoLoR, arXiv 2311.17601).

Features of the frozen base, L2-normalised; the router knows, per task, k-means centroids (``kmeans``, the paper's)
or a mean beside one shared, shrunk covariance (``gaussian``). The routed task's own state and head answer. What the
router needs was stored when each task was added, so a new task needs no old data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from lorabank.compose.base import Fitted, Member, known, longest, state_weights
from lorabank.compose.routing import Router, TaskStatistics, fit_statistics, make_router
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import NotFoundError
from lorabank.core.observer import Observer
from lorabank.core.records import CompositionRecord
from lorabank.models.mixing.runtime import Plan, Runtime


class Prototype:
    """Routing by prototypes."""

    mode: ClassVar[str] = "prototype"
    routed: ClassVar[bool] = True

    def __init__(
        self, parameters: Mapping[str, Any], members: Sequence[Member], runtime: Callable[[], Runtime]
    ) -> None:
        self._parameters = parameters
        self._members = members
        self._runtime = runtime
        self._router: tuple[int, Router] | None = None

    @classmethod
    def fit(
        cls, members: Sequence[Member], config: ComposeConfig, runtime: Callable[[], Runtime], observer: Observer
    ) -> Fitted:
        """Take the stored statistics; another number of centroids is fitted on the calibration samples."""
        parameters = {
            "router": config.router,
            "shrinkage": config.shrinkage,
            "own_covariance": config.own_covariance,
            "clusters_per_task": config.clusters_per_task,
        }
        objects = {}
        for member in members:
            statistics = member.statistics()
            if config.router == "kmeans" and member.clusters != config.clusters_per_task:
                statistics = _refit(member, config, runtime())
            objects[f"prototypes:{member.task}"] = statistics.to_bytes()
        return Fitted(parameters, objects)

    @classmethod
    def load(
        cls,
        record: CompositionRecord,
        objects: Mapping[str, bytes],
        members: Sequence[Member],
        runtime: Callable[[], Runtime],
    ) -> Prototype:
        """The stored statistics, read when a router is made of them."""

        def read(task: str) -> TaskStatistics:
            return TaskStatistics.from_bytes(objects[f"prototypes:{task}"])

        own = [replace(member, statistics=partial(read, member.task)) for member in members]
        shares = {name: float(record.parameters[name]) for name in ("shrinkage", "own_covariance")}
        return cls({"router": str(record.parameters["router"]), **shares}, own, runtime)

    def plan(self, stage: int, texts: Sequence[str]) -> Plan:
        """Each text's routed state."""
        members = known(self._members, stage)
        features = self._runtime().features(texts, longest(members))
        if self._router is None or self._router[0] != stage:
            self._router = stage, build_router(members, self._parameters)
        ranked = self._router[1].rank(features)
        names = self._runtime().stack.names
        states = np.stack([state_weights(names, dict.fromkeys(member.state, 1.0)) for member in members])
        return Plan(weights=states[ranked.task], route=ranked.task, margin=ranked.margin)

    def identity(self, stage: int) -> Any:
        """The router, its statistics, and each member's state."""
        members = known(self._members, stage)
        return [
            "prototype",
            [*router_identity(self._parameters), longest(members)],
            [[member.lasting, list(member.state), statistics_digest(member)] for member in members],
        ]


def build_router(members: Sequence[Member], parameters: Mapping[str, Any]) -> Router:
    """A router over the members, in their order."""
    return make_router(
        parameters["router"],
        (member.statistics() for member in members),
        shrinkage=parameters["shrinkage"],
        own_covariance=parameters["own_covariance"],
    )


def default_parameters(router: str) -> dict[str, Any]:
    """What ``compose`` would store for a router of this name."""
    config = ComposeConfig()
    return {"router": router, "shrinkage": config.shrinkage, "own_covariance": config.own_covariance}


def router_identity(parameters: Mapping[str, Any]) -> list[Any]:
    """The parameters that change a route: k-means has none."""
    shares = [parameters["shrinkage"], parameters["own_covariance"]]
    return [parameters["router"], shares if parameters["router"] == "gaussian" else None]


def statistics_digest(member: Member) -> str:
    """SHA-256 of what the router knows of a member."""
    return hashlib.sha256(member.statistics().to_bytes()).hexdigest()


def _refit(member: Member, config: ComposeConfig, runtime: Runtime) -> TaskStatistics:
    if not member.texts:
        raise NotFoundError(
            f"task {member.task!r} keeps {member.clusters} centroids and no samples "
            f"to find {config.clusters_per_task} in",
            hint=f"--clusters-per-task {member.clusters}, or --router gaussian",
            unchanged="nothing was changed",
        )
    features = runtime.features(member.texts, member.form.max_length)
    return fit_statistics(features, config.clusters_per_task, config.seed)
