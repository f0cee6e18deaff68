"""What can be scored: the state as trained, and compositions; heads by the task id or by a router."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors

from lorabank.bank.bank import Bank
from lorabank.bank.objects.canonical import Encoded, canonical, encoded, encoded_list
from lorabank.bank.snapshot import Snapshot
from lorabank.compose.base import Composer, Member, known, longest, state_weights
from lorabank.compose.known_tasks import KnownTask, MemberRouter, from_samples, kept_or_made
from lorabank.compose.routers.base import RouterMethod
from lorabank.core.commands import Command
from lorabank.core.config import EvalConfig
from lorabank.core.errors import ConfigError
from lorabank.core.records import AS_TRAINED, AdapterRecord, CompositionRecord, TaskRecord
from lorabank.core.shelves import ROUTERS
from lorabank.core.states import SELECTOR, Deployed, grown, needed, own_state
from lorabank.data.rows import Rows
from lorabank.evaluation.run import Subject
from lorabank.evaluation.scoring import Said, measured
from lorabank.models.answering.base import AnswerForm
from lorabank.models.gates.attention_token import Selector
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.models.mixing.soft import answer_routed
from lorabank.workflows.assemble import form_of, load_composer, read_members


class HeadRouter:
    """Says which known task's head answers each text, for states that do not route themselves."""

    def __init__(self, kind: str, members: Sequence[Member], runtime: Callable[[], Runtime]) -> None:
        self._kind, self._runtime = kind, runtime
        self._method: RouterMethod = ROUTERS.load(kind)()
        self._members = members
        self._router = MemberRouter(self._method, runtime)

    @cached_property
    def _tasks(self) -> list[KnownTask]:
        """What the router knows of the members; as `compose` does, it makes what an older version did not keep."""
        tasks, made = kept_or_made(self._members, self._method, self._runtime)
        if made:
            self._runtime().notice(from_samples(made))
            self._method = self._method.fitted({"from_samples": made})
            self._router = MemberRouter(self._method, self._runtime)
        return tasks

    @cached_property
    def _known(self) -> Callable[[int], list[KnownTask]]:
        """The tasks that a stage knows: a row of cells asks for the same ones."""
        return lru_cache(maxsize=1)(lambda stage: [task for task in self._tasks if task.member.position <= stage])

    def route(self, stage: int, texts: Sequence[str]) -> NDArray[np.int64]:
        """Indices ``[n]`` into the members that the stage knows."""
        tasks = self._known(stage)
        return np.asarray(self._router.rank(tasks, texts).task, np.int64)

    def identity(self, stage: int) -> Encoded:
        """What decides the route."""
        members, identities = known(self._members, stage), self._identities
        digests = encoded_list(identities[member.task] for member in members)
        return encoded_list([self._kind, self._method.identity(), longest(members), digests])

    @cached_property
    def _identities(self) -> dict[str, Encoded]:
        return {task.member.task: encoded_list([task.member.lasting, task.digest]) for task in self._tasks}


class _Answering(ABC):
    """Turns a plan and a choice of heads into answers; shared by all subjects."""

    task_id: Literal["given", "routed"]

    def __init__(
        self,
        bank: Bank,
        snapshot: Snapshot,
        members: Sequence[Member],
        runtime: Callable[[], Runtime],
        router: HeadRouter | None,
    ) -> None:
        self._bank = bank
        self._snapshot = snapshot
        self._members = members
        self._runtime = runtime
        self._router = router
        self._index = {task.name: index for index, task in enumerate(snapshot.tasks)}
        self.task_id = "routed" if router else "given"
        # Encoded once for all cells that have them in common: those of a stage, those of a task.
        self._routed_text = lru_cache(maxsize=1)(self._routed_head)
        self._head_text = lru_cache(maxsize=None)(self._own_head)

    def said(self, stage: int, task: TaskRecord, rows: Rows, plan: Plan) -> Said:
        """What is said to the rows of a task in the state of ``plan``."""
        route = plan.route
        if route is None and self._router and stage:
            route = self._router.route(stage, rows.keys)
        members = known(self._members, stage)
        routed = () if route is None else tuple(self._lasting(stage, route))
        form = self.form(task)
        if measured(form.scoring):
            own = self.head(stage, task)
            likelihoods, tokens = self._runtime().log_likelihoods(rows.texts, rows.labels, plan, own)
            return Said((), routed, likelihoods, tokens)
        if route is None:
            answers = self._runtime().answer(rows.texts, plan, self.head(stage, task))
        else:
            heads = np.array([one.head for one in self._members[: len(members)]], np.int64)
            answers = answer_routed(self._runtime(), rows.texts, replace(plan, route=route), heads)
        return Said(answers.said, routed, probabilities=answers.probabilities, confidence=_confidence(plan))

    def routes(self, stage: int, texts: Sequence[str]) -> tuple[list[str], NDArray[np.float64] | None]:
        """The task that each text is sent to, under the name that it never loses, and how likely that is.

        Args:
            stage: The last position that is known.
            texts: n texts.

        Returns:
            Of a routed subject n names; and float64 ``[n]``, None where the router gives no probabilities.
        """
        assert self._router is not None
        return self._lasting(stage, self._router.route(stage, texts)), None

    def _lasting(self, stage: int, route: NDArray[np.int64]) -> list[str]:
        members = known(self._members, stage)
        return [members[k].lasting for k in route]

    def form(self, task: TaskRecord) -> AnswerForm:
        """How the task is asked."""
        return form_of(task, self._snapshot.adapter_of(task.name))

    def head(self, stage: int, task: TaskRecord) -> int:
        """The task's head, or before the task is learnt the head that its training begins with."""
        owner = self._owner(stage, task)
        index = self._index[owner.name]
        return index if self._trained(stage, owner) else index + len(self._snapshot.tasks)

    def _owner(self, stage: int, task: TaskRecord) -> TaskRecord:
        """The task whose head answers: of a shared head, the one that left it as it is in the state that answers."""
        return self.newest_head(stage, task) if grown(self._snapshot.adapter_of(task.name)) else task

    def _trained(self, stage: int, task: TaskRecord) -> bool:
        """Whether the task's own head answers; there is no other one of a language model."""
        return task.position <= stage or self._snapshot.adapter_of(task.name).head_digest is None

    def identity(self, stage: int, task: TaskRecord) -> tuple[str, str]:
        """The state, and the head."""
        return self.state_identity(stage, task), self.head_identity(stage, task)

    @abstractmethod
    def state_identity(self, stage: int, task: TaskRecord) -> str:
        """What decides the state that answers: the same string for all cells that have it in common."""

    @abstractmethod
    def newest_head(self, stage: int, task: TaskRecord) -> TaskRecord:
        """The task that left the shared head as it answers for ``task``; the task itself for the untrained base."""

    def head_identity(self, stage: int, task: TaskRecord) -> str:
        """Which head answers, and in which form: a router's choice, a trained head, or an untrained one."""
        if self._router and stage:
            return self._routed_text(stage)
        owner = self._owner(stage, task)
        return self._head_text(owner.name, self._trained(stage, owner))

    def _routed_head(self, stage: int) -> str:
        assert self._router is not None
        return encoded_list(["routed", self._router.identity(stage), self.forms(stage)]).text

    def _own_head(self, task: str, trained: bool) -> str:
        adapter, form = self._snapshot.adapter_of(task), self.form(self._snapshot.task(task)).identity()
        return canonical(["head", adapter.head_digest, form] if trained else ["untrained", adapter.seed, form])

    def forms(self, stage: int) -> Encoded:
        """In which forms the members that a stage knows are asked."""
        return encoded_list(self._forms[member.task] for member in known(self._members, stage))

    @cached_property
    def _forms(self) -> dict[str, Encoded]:
        return {member.task: Encoded(canonical(member.form.identity())) for member in self._members}


def _confidence(plan: Plan) -> NDArray[np.float64] | None:
    """How likely the likeliest task of each text is."""
    return None if plan.posterior is None else np.asarray(plan.posterior.max(1))


def state_plan(bank: Bank, adapter: AdapterRecord | None, runtime: Runtime) -> Plan:
    """The state that training an adapter left: a sum, or the attention that it was trained with."""
    if adapter and SELECTOR in adapter.objects:
        states = tuple((digest,) for digest in needed(adapter))
        selector = Selector(runtime.states(states)).requires_grad_(False)
        tensors = load_tensors(bank.read_blob(adapter.objects[SELECTOR]))
        return Plan(gate=selector.load_tensors(tensors), states=states)
    state = dict.fromkeys(own_state(adapter), 1.0) if adapter else {}
    return Plan(weights=state_weights(runtime.stack.names, state))


def _state(adapter: AdapterRecord | None) -> str:
    """The identity of the state that training an adapter left, in entries of a list; None: of the base."""
    if adapter and SELECTOR in adapter.objects:
        return canonical(["attention", list(needed(adapter)), adapter.objects[SELECTOR]])[1:-1]
    return canonical(["sum", None, [[name, 1.0] for name in sorted(own_state(adapter) if adapter else ())]])[1:-1]


class AsTrained(_Answering):
    """The state that training left: each task answered by the adapters deployed for it at that stage."""

    name = AS_TRAINED
    mode = AS_TRAINED

    def newest(self, stage: int, task: TaskRecord) -> AdapterRecord | None:
        """The adapter whose state answers; None for the untrained base."""
        return self._deployed.after(stage, self._snapshot.adapter_of(task.name))

    def newest_head(self, stage: int, task: TaskRecord) -> TaskRecord:
        """The task whose adapter answers."""
        adapter = self.newest(stage, task)
        return self._snapshot.task(adapter.task) if adapter else task

    @cached_property
    def _deployed(self) -> Deployed:
        return Deployed((task.position, self._snapshot.adapter_of(task.name)) for task in self._snapshot.tasks)

    def state_identity(self, stage: int, task: TaskRecord) -> str:
        """Active adapters, and the selector that they were trained with."""
        adapter = self.newest(stage, task)
        return self._state_text(adapter and adapter.task)

    @cached_property
    def _state_text(self) -> Callable[[str | None], str]:
        """The identity of the state that training the adapter of a task left; None: of the base."""
        return lru_cache(maxsize=64)(lambda task: _state(task and self._snapshot.adapter_of(task)))

    def answer(self, stage: int, task: TaskRecord, rows: Rows) -> Said:
        """Answer the rows in the deployed state."""
        return self.said(stage, task, rows, state_plan(self._bank, self.newest(stage, task), self._runtime()))


class Oracle(AsTrained):
    """Every task in its own state with its own head: what perfect routing would give."""

    name = "oracle"
    mode = "oracle"

    def newest(self, stage: int, task: TaskRecord) -> AdapterRecord:
        """The task's own adapter, whatever the stage."""
        return self._snapshot.adapter_of(task.name)


class Composed(_Answering):
    """A stored composition."""

    def __init__(
        self,
        record: CompositionRecord,
        composer: Composer,
        bank: Bank,
        snapshot: Snapshot,
        members: Sequence[Member],
        runtime: Callable[[], Runtime],
        router: HeadRouter | None,
    ) -> None:
        super().__init__(bank, snapshot, members, runtime, router)
        self.composer = composer
        self.name = record.name
        self.mode = record.mode
        if composer.routed:
            self.task_id = "routed"
        self._state_text = lru_cache(maxsize=1)(self._composed)
        self._forms_text = lru_cache(maxsize=1)(lambda stage: self.forms(stage).text)

    def state_identity(self, stage: int, task: TaskRecord) -> str:
        """The composition's own identity at this stage."""
        return self._state_text(stage)

    def newest_head(self, stage: int, task: TaskRecord) -> TaskRecord:
        """The last member that the stage knows."""
        members = known(self._members, stage)
        return self._snapshot.task(members[-1].task) if members else task

    def head_identity(self, stage: int, task: TaskRecord) -> str:
        """The head, or of a composition that routes the forms of all that it may route to."""
        if not self._begun(stage):
            return super().head_identity(0, task)
        return self._forms_text(stage) if self.composer.routed else super().head_identity(stage, task)

    def _composed(self, stage: int) -> str:
        if not self._begun(stage):
            return _state(None)
        return encoded(self.composer.identity(stage))[1:-1]

    def _begun(self, stage: int) -> bool:
        """Whether the stage knows a member."""
        return self._members[0].position <= stage

    def answer(self, stage: int, task: TaskRecord, rows: Rows) -> Said:
        """Answer the rows; before the first member is known the base answers."""
        if not self._begun(stage):
            bare = Plan(weights=np.zeros(len(self._runtime().stack.names), np.float32))
            return self.said(0, task, rows, bare)
        return self.said(stage, task, rows, self.composer.plan(stage, rows.keys))

    def routes(self, stage: int, texts: Sequence[str]) -> tuple[list[str], NDArray[np.float64] | None]:
        """By the composition's own router, or by the one that picks the head; as the base class has it."""
        if not self.composer.routed:
            return super().routes(stage, texts)
        plan = self.composer.plan(stage, texts)
        assert plan.route is not None
        return self._lasting(stage, plan.route), _confidence(plan)


def all_members(bank: Bank, snapshot: Snapshot) -> list[Member]:
    """Every ready task as a member."""
    return read_members(bank, snapshot, snapshot.tasks, samples=False)


def make_subject(bank: Bank, snapshot: Snapshot, name: str, runtime: Callable[[], Runtime], head_from: str) -> Subject:
    """The subject of a name: ``"as-trained"`` or a composition."""
    every = all_members(bank, snapshot)
    if name == AsTrained.name:
        return AsTrained(bank, snapshot, every, runtime, _router(head_from, every, runtime))
    record = snapshot.composition(name)
    composer, members = load_composer(bank, snapshot, record, runtime)
    router = None if composer.routed else _router(head_from, members, runtime)
    return Composed(record, composer, bank, snapshot, members, runtime, router)


def chosen_subjects(snapshot: Snapshot, config: EvalConfig) -> list[str]:
    """Names of what an evaluation scores: the state as trained unless compositions are named.

    Raises:
        ConfigError: A task is named in the place of a composition.
    """
    tasks = {task.name for task in snapshot.tasks}
    for name in (*config.compositions, None if config.against_bank else config.against):
        if name in tasks:
            raise ConfigError(
                f"{name!r} is a task, not a composition",
                hint="score one task as trained",
                commands=[Command("eval", "--task", name)],
                unchanged="nothing was computed",
            )
    if config.all:
        return [AsTrained.name, *(composition.name for composition in snapshot.compositions)]
    return list(config.compositions) or [AsTrained.name]


def oracle_of(bank: Bank, snapshot: Snapshot, runtime: Callable[[], Runtime]) -> Oracle:
    """The bound of every router."""
    return Oracle(bank, snapshot, [], runtime, None)


def _router(head_from: str, members: Sequence[Member], runtime: Callable[[], Runtime]) -> HeadRouter | None:
    return HeadRouter(head_from, members, runtime) if head_from in ROUTERS else None
