"""What answers under one name: a task as trained, or a composition that finds each text's task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lorabank.bank.bank import Bank
from lorabank.bank.snapshot import Snapshot
from lorabank.compose.base import Member
from lorabank.compose.known_tasks import MemberRouter
from lorabank.compose.routed import known_for_heads
from lorabank.core.states import answering_in, whose_head
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.models.mixing.soft import labelled, shares_of
from lorabank.workflows.asking.predictions import adapters_of, likely_tasks
from lorabank.workflows.asking.questions import Who
from lorabank.workflows.assemble import adapters_in_order, load_composer
from lorabank.workflows.scored import state_plan


@dataclass(frozen=True)
class Part:
    """A state in which a text is asked, with its share of the answer.

    Attributes:
        text: Number of the text.
        member: The task whose head or form answers.
        share: How much it counts; 1 where one task answers.
        plan: The text's state. Without weights it is that of several texts, of which ``row`` is this one.
        row: The text's row in the plan.
    """

    text: int
    member: Member
    share: float
    plan: Plan
    row: int


@dataclass(frozen=True)
class Responder:
    """A task or a composition.

    Attributes:
        tasks: Those that may answer.
        states: Gives the states of some texts.
        members: The tasks that states route to.
        given: The task that answers all texts, where no router finds it.
        composition: Its name; None for a task as trained.
    """

    tasks: tuple[str, ...]
    states: Callable[[Sequence[str]], Plan]
    members: Sequence[Member]
    given: Member | None
    composition: str | None

    def parts(self, texts: Sequence[str], runtime: Runtime, every: Sequence[Member]) -> tuple[list[Who], list[Part]]:
        """What answers each of n texts, and the states in which it is asked, at least one for each.

        Args:
            texts: The texts; only a router reads them.
            runtime: The model.
            every: Every task of the bank; their names are those of the adapters in `Who`.
        """
        plan, forms = self.states(texts), runtime.answerer.forms
        route = plan.route
        if route is None or self.given is not None:
            assert self.given is not None
            adapters = adapters_of(plan, len(texts), runtime, every)
            labels = forms[self.given.head].labels if labelled(forms[self.given.head]) else ()
            given = [Who(self.given.task, "given", own, self.composition, labels=labels) for own in adapters]
            return given, [Part(i, self.given, 1.0, plan, i) for i in range(len(texts))]
        parts = []
        if plan.own_states is not None:
            shares = shares_of(plan, np.array([member.head for member in self.members], np.int64), forms)
            for i, k in zip(*(index.tolist() for index in np.nonzero(shares)), strict=True):
                state = Plan(weights=plan.own_states[k])
                parts.append(Part(i, self.members[k], float(shares[i, k]), state, 0))
            plan = replace(plan, weights=(shares @ plan.own_states).astype(np.float32))
        else:
            parts = [Part(i, self.members[k], 1.0, plan, i) for i, k in enumerate(route.tolist())]
        adapters = adapters_of(plan, len(texts), runtime, every)
        return [self._routed(plan, i, adapters[i], runtime) for i in range(len(texts))], parts

    def _routed(self, plan: Plan, i: int, adapters: dict[str, float], runtime: Runtime) -> Who:
        assert plan.route is not None
        member = self.members[int(plan.route[i])]
        form = runtime.answerer.forms[member.head]
        margin = None if plan.margin is None or not np.isfinite(plan.margin[i]) else float(plan.margin[i])
        likely = likely_tasks(plan, i, self.members)
        labels = form.labels if labelled(form) else ()
        return Who(member.task, "routed", adapters, self.composition, margin, likely, labels)


def responder_of(name: str, bank: Bank, snapshot: Snapshot, runtime: Runtime, every: Sequence[Member]) -> Responder:
    """The task or composition of a name; the states of a task as trained are those of `lorabank predict --task`.

    Raises:
        NotFoundError: There is neither.
        DamagedError: What is stored for it cannot be used.
    """
    if any(one.task == name for one in every):
        own = snapshot.adapter_of(name)
        answers = answering_in("now", adapters_in_order(snapshot), own)
        plan, owner = state_plan(bank, answers, runtime), whose_head(own, answers).task
        head = next(one for one in every if one.task == owner)
        return Responder((name,), lambda texts: plan, (head,), head, None)
    composer, members = load_composer(bank, snapshot, snapshot.composition(name), lambda: runtime)
    states = partial(composer.plan, snapshot.tasks[-1].position)
    tasks = tuple(one.task for one in members)
    if composer.routed:
        return Responder(tasks, states, members, None, name)
    if members[-1].grown:
        return Responder(tasks, states, members, members[-1], name)
    method, known = known_for_heads(members)
    router = MemberRouter(method, lambda: runtime)

    def found(texts: Sequence[str]) -> Plan:
        ranked = router.rank(known, texts)
        return replace(states(texts), route=ranked.task, margin=ranked.margin)

    return Responder(tasks, found, members, None, name)
