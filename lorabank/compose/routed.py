"""``routed``: every text goes to the task whose training texts it resembles (CoLoR, arXiv 2311.17601).

Texts and their features under the frozen base are judged by a router of the shelf `lorabank.core.shelves.ROUTERS`. The
routed task's own state and head answer; with a soft router the states of all tasks answer, weighed by the posterior.
What the router needs was stored when each task was added, so a new task needs no old data.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.bank.objects.canonical import Encoded, encoded_list
from lorabank.compose.base import Fitted, Member, chosen_method, chosen_name, longest, state_weights, stored_method
from lorabank.compose.known_tasks import KnownTask, MemberRouter, all_kept, from_samples, kept_of, known_tasks
from lorabank.compose.posterior import calibrate
from lorabank.compose.routers.base import Kept, RouterMethod
from lorabank.compose.routers.gaussian import Gaussian
from lorabank.compose.routers.layered import Layered
from lorabank.core.commands import Command
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import ConfigError
from lorabank.core.observer import Observer
from lorabank.core.records import CompositionRecord
from lorabank.core.shelf import Shelf
from lorabank.core.shelves import ROUTERS, USUAL_ROUTER
from lorabank.models.mixing.runtime import Plan, Runtime

OF_HEADS: dict[str, RouterMethod] = {"layered": Layered(), "gaussian": Gaussian()}
"""What picks the head where a composition does not route and no router was asked for: the first whose statistics are
kept of all members."""

_FITTED = "calibration"


class Routed:
    """Routing by statistics of the tasks' rows.

    Args:
        name: The router's name on the shelf.
        method: It with its settings.
        tasks: The members with what the router needs of each.
        runtime: Gives features.
    """

    routed: ClassVar[bool] = True
    shelf: ClassVar[Shelf | None] = ROUTERS
    usual: ClassVar[str] = USUAL_ROUTER
    unused: ClassVar[tuple[str, ...]] = ("weights", "over", "tolerance")

    def __init__(
        self, name: str, method: RouterMethod, tasks: Sequence[KnownTask], runtime: Callable[[], Runtime]
    ) -> None:
        self._name = name
        self._method = method
        self._tasks = tasks
        self._runtime = runtime
        self._router = MemberRouter(method, runtime)

    @classmethod
    def fit(
        cls, members: Sequence[Member], config: ComposeConfig, runtime: Callable[[], Runtime], observer: Observer
    ) -> Fitted:
        """Take the stored statistics, or what the router makes of the calibration samples."""
        method: RouterMethod = chosen_method(ROUTERS, config)
        if method.answers == "soft" and not method.calibrates:
            reason = f"router {chosen_name(ROUTERS, config)!r} gives none"
            message = f"soft answers need calibrated probabilities of tasks, and {reason}"
            raise no_posterior(config.name or config.mode, message)
        fitted = Fitted({"router": chosen_name(ROUTERS, config), **asdict(method)})
        tasks, made = known_tasks(members, method, config.seed, runtime)
        for task in tasks:
            if task.stored:
                fitted.kept[_role(task.member.task)] = task.stored
            else:
                fitted.objects[_role(task.member.task)] = task.read().to_bytes()
        found: dict[str, Any] = {"from_samples": made} if made else {}
        if made:
            observer.notice(from_samples(made))
        found |= calibrate(method.fitted(found), tasks, runtime) if method.calibrates else {}
        fitted.parameters.update({_FITTED: found} if found else {})
        fitted.report.update(found)
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
        name = str(record.parameters["router"])
        method: RouterMethod = stored_method(ROUTERS, name, record).fitted(record.parameters.get(_FITTED, {}))

        def read(task: str) -> Kept:
            return method.reads.from_bytes(objects[_role(task)])

        tasks = [
            KnownTask(member, partial(read, member.task), record.objects.get(_role(member.task), ""))
            for member in members
        ]
        return cls(name, method, tasks, runtime)

    def plan(self, stage: int, texts: Sequence[str]) -> Plan:
        """Each text's routed state, or the mixture of all states by their posterior."""
        tasks = self._known(stage)
        ranked = self._router.rank(tasks, texts)
        names = self._runtime().stack.names
        states = np.stack([state_weights(names, dict.fromkeys(task.member.state, 1.0)) for task in tasks])
        if self._method.soft and ranked.posterior is not None:
            weights = (ranked.posterior @ states).astype(np.float32)
        else:
            weights = states[ranked.task]
        plan = Plan(weights=weights, route=ranked.task, margin=ranked.margin, posterior=ranked.posterior)
        return replace(plan, own_states=states) if self._method.answers == "soft" else plan

    def identity(self, stage: int) -> Any:
        """The router, its statistics, and each member's state."""
        tasks = self._known(stage)
        router = [self._name, self._method.identity(), longest([task.member for task in tasks])]
        router += [self._method.answers] if self._method.answers != "hard" else []
        return encoded_list(["prototype", router, encoded_list(self._identities[task.member.task] for task in tasks)])

    def _known(self, stage: int) -> list[KnownTask]:
        return [task for task in self._tasks if task.member.position <= stage]

    @cached_property
    def _identities(self) -> dict[str, Encoded]:
        """What decides what each member adds, by its task: encoded once for all stages."""
        return {
            task.member.task: encoded_list([task.member.lasting, list(task.member.state), task.digest])
            for task in self._tasks
        }

    def as_adapter(self, stage: int, stack: AdapterStack, weight: Callable[[str], Tensor]) -> LoraFactors | None:
        """None: a text's state is its task's, and a composition of one task is that task, with its head."""
        return None


def known_for_heads(members: Sequence[Member]) -> tuple[RouterMethod, list[KnownTask]]:
    """The router of `OF_HEADS` for some members, with what it knows of them.

    Raises:
        NotFoundError: A member keeps no routing statistics at all.
    """
    *better, last = OF_HEADS
    fits = (name for name in better if all(kept_of(member, OF_HEADS[name].reads) for member in members))
    name = next(fits, last)
    return OF_HEADS[name], all_kept(members, name, OF_HEADS[name])


class Prototype(Routed):
    """`Routed` under the name that it had first, when CoLoR's router was the only one."""

    usual: ClassVar[str] = "kmeans"


def no_posterior(name: str, message: str) -> ConfigError:
    """The error for what needs probabilities of tasks; it proposes to compose ``name`` with a router that has them."""
    return ConfigError(
        message,
        hint="compose again with a router that gives them",
        commands=[Command("compose", "--mode", "routed", "--name", name, "--router", Routed.usual, "--replace")],
        unchanged="nothing was changed",
    )


def _role(task: str) -> str:
    """Under which a composition keeps what it knows of a task."""
    return f"prototypes:{task}"
