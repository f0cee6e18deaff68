"""``predict`` and ``generate``: answers to new texts, with the adapters that gave them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorabank.bank.snapshot import Snapshot
from lorabank.compose.base import Composer, Member, state_weights
from lorabank.compose.known_tasks import MemberRouter
from lorabank.compose.routed import known_for_heads
from lorabank.compose.routers.ranking import Ranked
from lorabank.core.commands import ADD_TASK, Command
from lorabank.core.config import GenerateConfig, PredictConfig
from lorabank.core.errors import ConfigError, IncompatibleError, NotFoundError, at_work
from lorabank.core.methods import with_settings
from lorabank.core.observer import Observer
from lorabank.core.records import AdapterRecord, CompositionRecord
from lorabank.core.shelves import COMPOSERS, FORMATS, ROUTING
from lorabank.core.states import answering_in, grown, whose_head
from lorabank.core.task_kinds import generating, task_kind
from lorabank.data.formats.cells import BadCell, check_characters
from lorabank.data.formats.readers import Reading
from lorabank.data.loading import read_rows
from lorabank.models.answering.base import Answers
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.workflows.asking.bare import BARE, bare_answerer
from lorabank.workflows.asking.predictions import Say, found_tasks, given_task
from lorabank.workflows.asking.questions import Prompts, UserTexts
from lorabank.workflows.asking.writing import requests_of, write
from lorabank.workflows.assemble import RuntimeSettings, adapters_in_order, load_composer
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.results import Prediction
from lorabank.workflows.scored import all_members, state_plan

Answerer = Callable[[Sequence[str], Sequence[int]], tuple[Prediction, ...]]
"""Gives one answer for each text, in order; the numbers of the texts in their call or file say how each draws."""


def predict(
    opened: OpenBank, texts: Iterable[str], config: PredictConfig, observer: Observer
) -> tuple[Prediction, ...]:
    """One prediction per text, in order.

    Without a composition the state as trained answers, and the task must be named. With a task no router picks
    adapters: a routed composition answers with the task's own state, as it does for texts that it routes there. A
    composition that does not route needs a task too, or a router picks the head.
    """
    return _answer(opened, texts, config, observer)


def generate(
    opened: OpenBank, texts: Iterable[str], config: GenerateConfig, observer: Observer
) -> tuple[Prediction, ...]:
    """One generated text per prompt, in order; who answers is found as in `predict`.

    Raises:
        IncompatibleError: The bank's base is a classifier.
    """
    return _answer(opened, texts, config, observer)


def checked_texts(texts: Iterable[str]) -> list[str]:
    """Texts that were given as arguments, with the characters that a text of a file may have.

    Raises:
        ConfigError: One has others.
    """
    return [_checked(text, place) for place, text in enumerate(texts, start=1)]


def _checked(text: str, place: int) -> str:
    try:
        check_characters(text)
    except BadCell as error:
        raise ConfigError(f"text {place}: {error.problem}", unchanged="nothing was changed") from error
    return text


def _answer(
    opened: OpenBank, given: Iterable[str], config: PredictConfig | GenerateConfig, observer: Observer
) -> tuple[Prediction, ...]:
    """Answer the texts given and those of the file."""
    _check_base(opened.refresh(), config)
    texts = checked_texts(given)
    numbers = list(range(len(texts)))
    if config.data:
        rows = read_rows(config.data, text_column=config.text_column, label_column=None, reading=Reading.of(config))
        for line in rows.told:
            observer.notice(line)
        numbers += [len(texts) + number for number in rows.numbers]
        texts += rows.texts
    if not texts:
        generates = isinstance(config, GenerateConfig)
        command = Command("generate", "TEXT") if generates else Command("predict", "TEXT")
        raise ConfigError(
            "there is no text to answer",
            hint="give texts, or --data FILE",
            commands=[command],
            unchanged="nothing was changed",
        )
    return answerer(opened, config, observer)(texts, numbers)


def _check_base(snapshot: Snapshot, config: PredictConfig | GenerateConfig) -> None:
    if isinstance(config, GenerateConfig):
        check_generates(snapshot)


def check_generates(snapshot: Snapshot) -> None:
    """Refuse to generate with a classifier.

    Raises:
        IncompatibleError: The bank's base is one.
    """
    base = snapshot.base
    if not task_kind(base.task_type).generates:
        raise IncompatibleError(
            f"the bank's base {base.name!r} is a classifier, which generates nothing",
            hint="predict labels texts; a language model generates, in a bank of its own",
            commands=[Command("predict", "TEXT"), Command("-b", "NEW", "init", "--task-type", generating().name)],
            unchanged="nothing was changed",
        )


def answerer(opened: OpenBank, config: PredictConfig | GenerateConfig, observer: Observer) -> Answerer:
    """Who answers in the bank's last state, found out and checked; models are loaded with the first texts and stay.

    Raises:
        ConfigError: It is not given what answers, the question has several meanings, or there are settings of a file
            without one.
        NotFoundError: There is no task, or none of that name.
        IncompatibleError: A classifier is to generate.
    """
    snapshot = opened.snapshot
    _check_base(snapshot, config)
    if not config.data:
        with_settings([], config.set, among=(FORMATS,))
    if config.task == BARE:
        return opened.keep(replace(config, data=None), lambda: bare_answerer(opened.base, config, observer))
    if not snapshot.tasks:
        bare = [Command("generate", "--task", BARE, "TEXT")] if isinstance(config, GenerateConfig) else []
        raise NotFoundError(
            "the bank has no task",
            hint="the bare base answers under the name 'none'" if bare else None,
            commands=[*bare, ADD_TASK],
            unchanged="nothing was changed",
        )
    if not (config.task or config.composition) and (only := _only_task(snapshot)):
        config = replace(config, task=only)
    if config.task:
        snapshot.task(config.task)
    name = config.composition or (None if config.task else _default(snapshot))
    _check_question(config, snapshot, name)

    found = opened.keep(replace(config, data=None), lambda: _Asked(opened, snapshot, config, name))
    found.notice = observer.notice
    return found


class _Asked:
    """A question without its texts: who answers, and what was read for it, which stays as long as its runtime."""

    def __init__(
        self, opened: OpenBank, snapshot: Snapshot, config: PredictConfig | GenerateConfig, composition: str | None
    ) -> None:
        self._opened = opened
        self._snapshot = snapshot
        self._config = config
        self._composition = composition
        self.notice: Callable[[str], None] = lambda message: None

    def __call__(self, texts: Sequence[str], numbers: Sequence[int]) -> tuple[Prediction, ...]:
        """One answer for each text, in order."""
        config, name = self._config, self._composition
        asked = UserTexts(self._prompts, texts, raw=getattr(config, "raw", False))
        routed = asked.routed([config.task] if config.task else _tasks(self._snapshot, name))
        say = partial(self._write, numbers) if isinstance(config, GenerateConfig) else None
        with at_work(f"composition {name!r}" if name else f"task {config.task!r}"):
            self._runtime.notice = self.notice
            found = self._composed(asked, routed, say) if name else self._as_trained(asked, say)
        self._runtime.forget_features()  # the next texts are others, and there may be no end of them
        return found

    @cached_property
    def _prompts(self) -> Prompts:
        return Prompts(self._opened.base, self._snapshot)

    @cached_property
    def _runtime(self) -> Runtime:
        config = self._config
        settings = RuntimeSettings(
            device=config.device,
            dtype="auto",
            batch_size=config.batch_size,
            asked=_other_than_trained(config),
            max_resident=config.max_resident,
        )
        return self._opened.runtime(settings, self.notice)

    @cached_property
    def _members(self) -> list[Member]:
        return all_members(self._opened.bank, self._snapshot)

    def _member(self, task: str) -> Member:
        return next(member for member in self._members if member.task == task)

    @cached_property
    def _loaded(self) -> tuple[Composer, list[Member]]:
        """The composition, and its own members."""
        assert self._composition is not None
        record = self._snapshot.composition(self._composition)
        return load_composer(self._opened.bank, self._snapshot, record, lambda: self._runtime)

    @cached_property
    def _head_router(self) -> Callable[[Sequence[str]], Ranked]:
        """Finds the head where a composition finds none."""
        method, tasks = known_for_heads(self._loaded[1])
        return partial(MemberRouter(method, lambda: self._runtime).rank, tasks)

    @cached_property
    def _answering(self) -> AdapterRecord:
        """The adapter whose state answers for the task as trained."""
        snapshot = self._snapshot
        return answering_in(self._config.state or "now", adapters_in_order(snapshot), self._own)

    @property
    def _own(self) -> AdapterRecord:
        assert self._config.task is not None
        return self._snapshot.adapter_of(self._config.task)

    @cached_property
    def _state(self) -> Plan:
        """The task's state as trained."""
        return state_plan(self._opened.bank, self._answering, self._runtime)

    def _write(self, numbers: Sequence[int], texts: Sequence[str], plan: Plan, heads: NDArray[np.int64]) -> Answers:
        """Free text in the place of what the runtime answers, whatever the scoring of the tasks."""
        assert isinstance(self._config, GenerateConfig)
        forms = [self._runtime.answerer.forms[head] for head in heads.tolist()]
        written = write(self._runtime, texts, plan, forms, requests_of(self._config, numbers))
        return Answers(tuple(one.text for one in written), np.full(len(texts), np.nan, np.float32))

    def _as_trained(self, texts: UserTexts, say: Say | None) -> tuple[Prediction, ...]:
        owner = self._member(whose_head(self._own, self._answering).task)
        state = self._config.state or "now"
        return given_task(self._runtime, texts, self._state, owner, self._members, state=state, say=say)

    def _composed(self, texts: UserTexts, routed: Sequence[str], say: Say | None) -> tuple[Prediction, ...]:
        composer, own = self._loaded
        runtime, task, last = self._runtime, self._config.task, self._snapshot.tasks[-1].position
        name = self._composition
        if own[-1].grown and not composer.routed:
            plan = composer.plan(last, routed)
            return given_task(runtime, texts, plan, own[-1], self._members, composition=name, say=say)
        if task:
            chosen = self._member(task)
            plan = _routed_to(chosen, runtime) if composer.routed else composer.plan(last, routed)
            return given_task(runtime, texts, plan, chosen, self._members, composition=name, say=say)
        plan = composer.plan(last, routed)
        if plan.route is None:
            ranked = self._head_router(routed)
            plan = replace(plan, route=ranked.task, margin=ranked.margin)
        abstain = getattr(self._config, "abstain", None)
        return found_tasks(runtime, texts, plan, own, self._members, composition=name, abstain=abstain, say=say)


def _other_than_trained(config: PredictConfig | GenerateConfig) -> tuple[tuple[str, Any], ...]:
    """What is asked in another form than the tasks' own."""
    return (("template", None),) if getattr(config, "raw", False) else ()


def _check_question(config: PredictConfig | GenerateConfig, snapshot: Snapshot, composition: str | None) -> None:
    """Refuse what has no one meaning.

    Raises:
        ConfigError: ``--state`` beside a composition, which is a state of its own; or a routed composition is to
            answer as a task that it never routes to.
    """
    if isinstance(config, PredictConfig) and config.abstain is not None:
        _check_abstaining(config, snapshot, composition)
    if composition is None:
        return
    if config.state is not None:
        raise ConfigError(
            f"--state {config.state} applies to a task as trained; composition {composition!r} has a state of its own",
            hint=f"--task {config.task or snapshot.tasks[-1].name} --state {config.state} without --composition",
            unchanged="nothing was changed",
        )
    record = snapshot.composition(composition)
    routed = COMPOSERS.load(record.mode).routed
    if config.task and routed and config.task not in record.members:
        raise ConfigError(
            f"composition {composition!r} never routes to {config.task!r}, which is not a member",
            hint=f"--task {config.task} without --composition; members: {', '.join(record.members)}",
            unchanged="nothing was changed",
        )


def _to_route(snapshot: Snapshot, config: PredictConfig) -> Command:
    """The command that asks the newest composition that routes, or makes one where there is none."""
    if routed := _routed(snapshot):
        return Command("predict", "--composition", routed[-1].name, "--abstain", f"{config.abstain:g}", "TEXT")
    return Command("compose", "--mode", ROUTING)


def _check_abstaining(config: PredictConfig, snapshot: Snapshot, composition: str | None) -> None:
    """Refuse to set texts aside where no router says how likely their task is.

    Raises:
        ConfigError: A task is given, or the composition does not route.
    """
    if composition is None or config.task:
        raise ConfigError(
            f"--abstain sets aside texts whose task is unlikely, and the task of all texts is given: {config.task}",
            hint="leave --task out, and ask a composition that routes",
            commands=[_to_route(snapshot, config)],
            unchanged="nothing was changed",
        )
    if not COMPOSERS.load(snapshot.composition(composition).mode).routed:
        raise ConfigError(
            f"composition {composition!r} does not route texts, so --abstain knows no probability of a task",
            hint="ask a composition that routes",
            commands=[_to_route(snapshot, config)],
            unchanged="nothing was changed",
        )


def _routed_to(member: Member, runtime: Runtime) -> Plan:
    """What a routed composition answers with when it routes to a member: the member's own state, for all texts."""
    return Plan(weights=state_weights(runtime.stack.names, dict.fromkeys(member.state, 1.0)))


def _tasks(snapshot: Snapshot, composition: str | None) -> Sequence[str]:
    return snapshot.composition(composition).members if composition else [task.name for task in snapshot.tasks]


def _routed(snapshot: Snapshot) -> list[CompositionRecord]:
    return [composition for composition in snapshot.compositions if COMPOSERS.load(composition.mode).routed]


def usual(snapshot: Snapshot) -> str:
    """The task or composition that answers where none is named, in a bank with a task.

    Raises:
        ConfigError: A task must be named.
    """
    return _only_task(snapshot) or _default(snapshot)


def _only_task(snapshot: Snapshot) -> str | None:
    """The task that answers where none is named: the only one, or the one whose head holds all labels."""
    newest = snapshot.tasks[-1].name
    alone = len(snapshot.tasks) == 1 or grown(snapshot.adapter_of(newest))
    return newest if alone and not snapshot.compositions else None


def _default(snapshot: Snapshot) -> str:
    """The newest composition that routes, or the only one there is."""
    chosen = _routed(snapshot)[-1:] or (list(snapshot.compositions) if len(snapshot.compositions) == 1 else [])
    if not chosen:
        raise ConfigError(
            "no task is named, and no composition finds one for a text",
            hint=f"name one, as --task {snapshot.tasks[-1].name}, or make a composition that routes texts",
            commands=[Command("compose", "--mode", ROUTING)],
            unchanged="nothing was changed",
        )
    return chosen[0].name
