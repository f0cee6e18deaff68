"""Which adapters answer: a task's own state, what is active after a task, and the state *as trained*."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal

from lorabank.core.commands import Command
from lorabank.core.errors import IncompatibleError
from lorabank.core.records import AdapterRecord, Lineage
from lorabank.core.shelves import STRATEGIES, TUNERS

State = Literal["now", "learnt"]
"""A task's state as trained: at the bank's present, or right after the task itself was learnt."""

Over = Literal["adapters", "states"]
"""What a member of a merge is: its adapter, or the state in which its task was learnt."""

IMPORTED = "imported"
"""What ``AdapterRecord.strategy`` says of an adapter that was trained elsewhere."""

FOLDED = "folded"
"""What ``AdapterRecord.strategy`` says of an adapter that several were folded into, and of those that stand on it."""

FOLDED_INTO = "folded_into"
"""Where ``AdapterRecord.metrics`` of a folded task's adapter holds the digest of the one that holds the factors."""

SELECTOR = "selector"
"""Role of the selector that an adapter was trained together with."""

ANSWERS = "answers"
"""Where ``AdapterRecord.metrics`` holds who answers for the task, ``"own"`` or ``"newest"``: ``Strategy.answers``."""


TUNER = "tuner"
"""Where ``AdapterRecord.metrics`` names the variant of an adapter that has no factors to sum and answers alone."""


def tuner_named(tuner: str) -> str:
    """What messages call an adapter by the variant that `TUNER` names."""
    return f"{tuner} of PEFT" if tuner in TUNERS.table else f"{tuner} adapter"


def refuse_tuners(adapters: Iterable[AdapterRecord], what: str, *commands: Command, hint: str | None = None) -> None:
    """Refuse what needs factors A and B of every adapter.

    Args:
        adapters: Those that are needed.
        what: What needs their factors: the beginning of the message.
        commands: What can be typed instead.
        hint: What can be done instead, in words.

    Raises:
        IncompatibleError: One has none (`TUNER`).
    """
    for adapter in adapters:
        if TUNER in adapter.metrics:
            raise IncompatibleError(
                f"{what}, and task {adapter.task!r} has none: it is a {tuner_named(adapter.metrics[TUNER])}, which "
                "answers alone or routed",
                hint=hint,
                commands=commands,
                unchanged="nothing was changed",
            )


def grown(adapter: AdapterRecord) -> bool:
    """Whether the adapter's head is a stage of the one head that all tasks of its bank share and make grow."""
    return bool(adapter.config.get("head") == "shared")


def whose_head(task: AdapterRecord, answers: AdapterRecord | None) -> AdapterRecord:
    """The adapter whose head answers for a task: the task's own, or of a shared head the one whose state answers.

    Args:
        task: The adapter of the task.
        answers: The adapter whose state answers; None for the untrained base.
    """
    return answers if answers is not None and grown(task) else task


def own_state(adapter: AdapterRecord) -> Lineage[str]:
    """The adapters of a task's own state, each with weight 1: its context and itself.

    An adapter that was trained under attention over its context was never part of their sum: it stands alone.
    """
    return Lineage((adapter.digest,)) if SELECTOR in adapter.objects else needed(adapter)


def needed(adapter: AdapterRecord) -> Lineage[str]:
    """Every adapter without which a task cannot be answered as it was trained."""
    context = adapter.context
    return Lineage((adapter.digest,), context if isinstance(context, Lineage) else Lineage(context))


def active_state(adapters: Sequence[AdapterRecord]) -> tuple[str, ...]:
    """Every adapter that counts after the last one: all, but of a chain of continued adapters only the newest."""
    kept: list[str] = []
    for adapter in adapters:
        if (continued := adapter.metrics.get("continued_from")) is not None:
            kept = [digest for digest in kept if digest != continued]
        kept.append(adapter.digest)
    return tuple(kept)


def deployed_state(adapters: Sequence[AdapterRecord], task: AdapterRecord) -> Sequence[str]:
    """The state that answers for ``task`` after the last of ``adapters`` was trained (the state *as trained*).

    A task keeps its own adapter where its strategy says so, and where it was imported. Any other task is answered by
    the newest adapter trained on top of it, with that adapter's context; a task not learnt yet by the newest state
    there is.

    Args:
        adapters: Adapters of the stage, in sequence order; empty for the untrained base.
        task: The adapter of the task that is scored, part of ``adapters`` or later.
    """
    answers = answering(adapters, task)
    return own_state(answers) if answers else ()


def answering(adapters: Sequence[AdapterRecord], task: AdapterRecord) -> AdapterRecord | None:
    """The adapter whose state answers for ``task``; arguments as in `deployed_state`, None for the untrained base."""
    return Deployed(enumerate(adapters)).after(len(adapters), task)


class Deployed:
    """Who answers after each stage of a sequence, found without going through the sequence again.

    Args:
        adapters: Adapters in sequence order, each behind the stage from which on it is there.
    """

    def __init__(self, adapters: Iterable[tuple[int, AdapterRecord]]) -> None:
        self._adapters = list(adapters)
        self._since: dict[str, int] = {}
        for stage, adapter in self._adapters:
            self._since.setdefault(adapter.digest, stage)

    @cached_property
    def _shared(self) -> list[tuple[int, AdapterRecord]]:
        """Those that answer for earlier tasks too."""
        return [(stage, adapter) for stage, adapter in self._adapters if not _alone(adapter)]

    def after(self, stage: int, task: AdapterRecord) -> AdapterRecord | None:
        """The adapter whose state answers for a task after a stage, as `answering` says."""
        if self._since.get(task.digest, stage + 1) <= stage and _alone(task):
            return task
        there = bisect_right(self._shared, stage, key=lambda entry: entry[0])
        return self._shared[there - 1][1] if there else None


def _alone(adapter: AdapterRecord) -> bool:
    """Whether a task is answered by its own adapter whatever is learnt later.

    The record says so itself, so a bank answers alike where the package of a strategy is not installed. Records of
    older banks do not say it; their strategy does.

    Raises:
        ConfigError: The record does not say it, and its strategy is not known.
    """
    said = adapter.metrics.get(ANSWERS)
    if said is None:
        said = "own" if adapter.strategy == IMPORTED else STRATEGIES.load(adapter.strategy).answers
    return bool(said == "own")


def answering_in(state: State, adapters: Sequence[AdapterRecord], task: AdapterRecord) -> AdapterRecord:
    """The adapter whose state answers for a task of the bank: what ``--state`` means wherever it stands.

    Args:
        state: ``"now"`` (the newest adapter that answers for the task) or ``"learnt"`` (the task's own).
        adapters: The adapters of the bank's ready tasks, in sequence order.
        task: One of them.
    """
    return task if state == "learnt" else answering(adapters, task) or task
