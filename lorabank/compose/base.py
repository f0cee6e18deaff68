"""The input and output of a composition mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.compose.routers.statistics import TaskStatistics
from lorabank.core.commands import Command
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import ConfigError
from lorabank.core.methods import SET_REFUSED, WEIGHTS_REFUSED, with_settings
from lorabank.core.observer import Observer
from lorabank.core.records import CompositionRecord
from lorabank.core.settings import setting_fields, setting_names, validate
from lorabank.core.shelf import Shelf
from lorabank.core.shelves import COMPOSERS, FIRST_GATE, GATES, MERGERS, ROUTERS
from lorabank.models.answering.base import AnswerForm
from lorabank.models.mixing.runtime import Plan, Runtime

OVER = "over"
"""The parameter of a record that says what a gate weighs; a record without it weighs adapters, each by itself."""


@dataclass(frozen=True)
class Member:
    """One task of a composition.

    Attributes:
        task: Its name.
        position: Its place in the sequence, from 1.
        adapter: Digest of its adapter.
        state: Digests of its own state: its adapter and the ones active while it was trained.
        head: Index of its head and form in the runtime.
        form: How it is asked and answers.
        statistics: Reads what routing keeps of its training rows; again at each call, since those of
            all tasks are not needed at once.
        statistics_digest: Digest of their blob in the bank; empty if they are not stored as one.
        clusters: Centroids that were asked for when the task was added.
        texts: Calibration texts kept in the bank; empty where none are kept.
        targets: Their labels or completions.
        samples: Reads ``texts`` and ``targets``, where they were left out.
        born: The name that the task never loses, by which scores of routed texts are kept; empty for its name.
        factors: Reads an adapter of the bank by its digest.
        summed: Digests of the adapters whose sum a merge takes for the member; empty for its adapter alone.
        facts: Digests by role of what the task recorded when it was learnt.
        read_fact: Reads one of them by its digest.
        grown: Whether its head is a stage of the one head that all members share.
    """

    task: str
    position: int
    adapter: str
    state: Sequence[str]
    head: int
    form: AnswerForm
    statistics: Callable[[], TaskStatistics]
    clusters: int
    statistics_digest: str = ""
    texts: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    born: str = ""
    samples: Callable[[], tuple[Sequence[str], Sequence[str]]] = lambda: ((), ())
    factors: Callable[[str], LoraFactors] = lambda digest: LoraFactors({}, {}, {})
    summed: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    read_fact: Callable[[str], bytes] = lambda digest: b""
    grown: bool = False

    @property
    def lasting(self) -> str:
        """The name to use where a later renaming must change nothing."""
        return self.born or self.task

    def with_samples(self) -> Member:
        """The member with its calibration samples, which are read where they were left out."""
        if self.texts:
            return self
        texts, targets = self.samples()
        return replace(self, texts=tuple(texts), targets=tuple(targets))


@dataclass(frozen=True)
class Fitted:
    """What a mode has to store, and what it tells the user.

    Attributes:
        parameters: JSON values for the record.
        objects: Role to bytes of each blob.
        kept: Role to digest of each blob that is in the bank already.
        report: Facts for the user: errors of a compression, sparsity of an attention.
        scored: Whether each member is to be scored alone and in the composition before that is stored.
    """

    parameters: dict[str, Any]
    objects: dict[str, bytes] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    scored: bool = False
    kept: dict[str, str] = field(default_factory=dict)


class Composer(Protocol):
    """One mode.

    ``routed`` says whether it picks the task (and so the head) of each text itself; ``shelf`` where its methods are,
    one of which the settings choose by a field named after the shelf's kind; None where it has none. ``usual`` is the
    name that "auto" stands for there, by default the first on the shelf. ``unused`` names the settings of
    `ComposeConfig` that it does not read, beside the methods of other shelves. A mode whose settings name tasks has a
    class method ``checked(tasks, config)``, which refuses what does not fit them before any work.
    """

    routed: ClassVar[bool]
    shelf: ClassVar[Shelf | None]
    unused: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def fit(
        cls, members: Sequence[Member], config: ComposeConfig, runtime: Callable[[], Runtime], observer: Observer
    ) -> Fitted:
        """Learn or check what the mode needs."""

    @classmethod
    def load(
        cls,
        record: CompositionRecord,
        objects: MutableMapping[str, bytes],
        members: Sequence[Member],
        runtime: Callable[[], Runtime],
    ) -> Composer:
        """The stored composition; ``runtime`` is asked for only when texts are answered.

        What `plan` had to derive may be put into ``objects`` under a role that begins with
        `lorabank.core.records.DERIVED`: it is kept in the bank, and found there by the next `load`.
        """

    def plan(self, stage: int, texts: Sequence[str]) -> Plan:
        """The state for some texts when only members up to position ``stage`` are known (at least one is)."""

    def identity(self, stage: int) -> Any:
        """A list, different whenever ``plan`` may give different answers: as JSON values, or `Encoded`."""

    def as_adapter(self, stage: int, stack: AdapterStack, weight: Callable[[str], Tensor]) -> LoraFactors | None:
        """The state of a stage as one exact adapter, without a head; None where it is none.

        Args:
            stage: As for `plan`.
            stack: The adapters of the members' states, at least.
            weight: Module name to the untouched base's weight ``[d_out, d_in]``.
        """


def checked_mode(config: ComposeConfig) -> type[Composer]:
    """The mode, once the settings of the method that it takes are checked.

    Raises:
        ConfigError: There is no such mode or method, a setting is given that the mode does not read, or ``--set`` does
            not fit the method; names all that is wrong.
    """
    mode: type[Composer] = COMPOSERS.load(config.mode)
    if unused := _unused(config):
        raise ConfigError(
            f"--mode {config.mode} does not use {' or '.join(unused)}",
            hint=f"leave {' and '.join(unused)} out, or choose a mode that uses what you need",
            commands=[Command("compose", "--help")],
            unchanged="nothing was changed",
        )
    if mode.shelf is not None:
        chosen_method(mode.shelf, config)
    return mode


def unused_settings(mode: str) -> tuple[str, ...]:
    """The settings of `ComposeConfig` that mean nothing to a mode: those that it names, and methods of other shelves.

    Raises:
        ConfigError: There is no such mode.
    """
    composer: type[Composer] = COMPOSERS.load(mode)
    ignored = getattr(composer, "unused", ())
    return tuple(
        one.name
        for one in setting_fields(ComposeConfig)
        if one.name in ignored or one.metadata["among"] not in (None, COMPOSERS, composer.shelf)
    )


def _unused(config: ComposeConfig) -> list[str]:
    """The options that are given and mean nothing to the mode."""
    default = {one.name: one.default for one in setting_fields(config)}
    names = (name for name in unused_settings(config.mode) if getattr(config, name) != default[name])
    return [f"--{name.replace('_', '-')}" for name in names]


def chosen_method(shelf: Shelf, config: ComposeConfig) -> Any:
    """The method of a shelf that the settings choose, with the settings that ``--set`` and ``--weights`` give.

    Raises:
        ConfigError: ``--set`` or ``--weights`` does not fit the method; names all that is wrong with it.
    """
    chosen, among = [(shelf, chosen_name(shelf, config))], (MERGERS, ROUTERS, GATES)
    (method,) = with_settings(chosen, config.set, among=among)
    if config.weights is None:
        return method
    try:
        (method,) = with_settings(chosen, (*config.set, f"weights={config.weights}"), among=among)
    except ConfigError as error:
        raise error.saying(WEIGHTS_REFUSED + error.message.removeprefix(SET_REFUSED)) from error
    return method


def chosen_name(shelf: Shelf, config: ComposeConfig) -> str:
    """The name of the method of a shelf that the settings choose; auto: the usual one of the mode."""
    name: str = getattr(config, shelf.kind)
    return getattr(COMPOSERS.load(config.mode), "usual", next(iter(shelf))) if name == "auto" else name


def stored_method(shelf: Shelf, name: str, record: CompositionRecord) -> Any:
    """A method as a composition stored it.

    Raises:
        ValueError: What is stored is not a setting of it.
        ConfigError: No package that is installed has the method.
    """
    method = shelf.load(name)
    try:
        own = {name: record.parameters[name] for name in setting_names(method) if name in record.parameters}
        return validate(method, own)
    except ConfigError as error:
        raise ValueError(error.message) from error


def parameters_of(record: CompositionRecord) -> dict[str, Any]:
    """What a composition was made with; the gate of a record that does not say what it weighs has its name of today.

    Such a record names no gate, or the first there was by the name that it had.
    """
    parameters = dict(record.parameters)
    gated = record.mode in COMPOSERS and COMPOSERS.load(record.mode).shelf is GATES
    if gated and OVER not in parameters:
        gate = parameters.get("gate", FIRST_GATE[0])
        parameters["gate"] = FIRST_GATE[1] if gate == FIRST_GATE[0] else gate
    return parameters


def known(members: Sequence[Member], stage: int) -> list[Member]:
    """The members that a stage knows; those that share one head have it as the last of them left it."""
    there = [member for member in members if member.position <= stage]
    if not there or not there[-1].grown:
        return there
    return [replace(member, head=there[-1].head) for member in there]


def longest(members: Sequence[Member]) -> int:
    """Maximum number of tokens that a router reads of a text: the largest among the members."""
    return max(member.form.max_length for member in members)


def made_again(record: CompositionRecord, *more: str) -> Command:
    """The command that makes a composition again, of the same members; other settings have their defaults."""
    return Command(*_again(record), *more, "--replace")


def with_its_settings(record: CompositionRecord) -> Command:
    """The command that makes a composition as it was made; its name must be free."""
    words, parameters = _again(record), parameters_of(record)
    settings = setting_fields(ComposeConfig)
    chosen = [
        one.metadata["among"].load(parameters[one.name])
        for one in settings
        if one.metadata["among"] is not None and parameters.get(one.name) in one.metadata["among"]
    ]
    own = {name for method in chosen for name in setting_names(method)}
    for one in settings:
        value = parameters.get(one.name)
        if isinstance(value, str | int | float) and value != one.default and one.name not in own:
            words += [f"--{one.name.replace('_', '-')}", str(value)]
    for method in chosen:
        words += _set(method, record)
    return Command(*words)


def _set(method: type, record: CompositionRecord) -> list[str]:
    """The settings of a method, where they differ from its defaults; weights by task as the text that gives them."""
    words = []
    for one in setting_fields(method):
        value = record.parameters.get(one.name, one.default)
        if isinstance(value, Mapping):
            value = ",".join(f"{task}={weight}" for task, weight in value.items())
        words += ["--set", f"{one.name}={value}"] if value != one.default else []
    return words


def _again(record: CompositionRecord) -> list[str]:
    return ["compose", "--mode", record.mode, "--name", record.name, "--tasks", ",".join(record.members)]


def state_weights(names: Sequence[str], state: Mapping[str, float]) -> NDArray[np.float32]:
    """Weights ``[K]`` over the stack's ``names`` from weights by digest; infinite where float32 ends."""
    with np.errstate(over="ignore"):
        return np.array([state.get(name, 0.0) for name in names]).astype(np.float32)
