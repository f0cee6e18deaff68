"""What must be there in a sequence and fit together, beyond the single values."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lorabank.core.errors import ConfigError
from lorabank.core.methods import SET_REFUSED, WEIGHTS_REFUSED
from lorabank.core.settings import nearest
from lorabank.core.shelves import REFERENCES, STRATEGIES
from lorabank.data.methods import of_training
from lorabank.sequences.config import LEARNT, CompositionTable, SequenceConfig, SequenceSettings
from lorabank.sequences.references.base import OF_ADAPTERS

NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
"""What may be the name of a folder, a task or a composition."""

_NAMES = "use a-z, 0-9, '.', '_' and '-'"


def settings_problems(
    settings: SequenceSettings, wrong: Collection[str], tasks: Collection[str], variants: Any
) -> Iterator[str]:
    """What is wrong with the keys outside of all tables.

    Args:
        settings: The keys.
        wrong: Those whose value does not fit its type, which was said.
        tasks: The names of the tables ``[tasks.NAME]``.
        variants: The tables ``[strategy.NAME]`` as they stand in the file.
    """
    if "name" not in wrong and not NAME.fullmatch(settings.name):
        yield f"name {settings.name!r}: {_NAMES}" if settings.name else "name is missing"
    if "selection" not in wrong and not settings.selection.strip():
        yield 'selection is missing: say how the settings were chosen, as in selection = "on rows cut from train"'
    for key in ("orders", "strategies", "seeds"):
        values = getattr(settings, key)
        if not values and key not in wrong:
            yield f"{key} names nothing"
        if len(set(values)) < len(values):
            yield f"{key} names one twice"
    if any(not 0 <= seed < 2**32 for seed in settings.seeds):
        yield "seeds: a seed is not in 0 .. 2**32 - 1"
    yield from _order_problems(settings.orders, tasks)
    yield from _strategy_problems(settings.strategies, variants if isinstance(variants, dict) else {})


def _order_problems(orders: Sequence[Sequence[str]], tasks: Collection[str]) -> Iterator[str]:
    for number, order in enumerate(orders, start=1):
        if not order:
            yield f"order {number} names no task"
        for name in dict.fromkeys(order):
            if name not in tasks:
                yield f"order {number}: there is no table [tasks.{name}]{nearest(name, list(tasks))}"
        if len(set(order)) < len(order):
            yield f"order {number} names a task twice"
        if set(order) != set(orders[0]):
            yield f"order {number} has other tasks than order 1: a mean over them would say nothing"


def _strategy_problems(strategies: Sequence[str], variants: Mapping[str, Any]) -> Iterator[str]:
    own = [name for name, table in variants.items() if isinstance(table, dict)]
    named = [name for name in own if "strategy" in variants[name]]
    for name in strategies:
        if not NAME.fullmatch(name):
            yield f"strategies: {name!r} cannot be a name: {_NAMES}"
    for name in dict.fromkeys((*strategies, *own)):
        if name not in named and name not in LEARNT:
            yield f"there is no strategy {name!r}{nearest(name, [*LEARNT, *own])}"


def reference_problems(
    methods: Mapping[str, str], given: Mapping[str, Sequence[str]], compositions: Sequence[CompositionTable]
) -> Iterator[str]:
    """What is said of references as if they had adapters.

    Args:
        methods: What each strategy that is run is called on its shelf.
        given: The keys that each table ``[strategy.NAME]`` gives.
        compositions: The compositions as they stand in the file.
    """
    references = [name for name, method in methods.items() if method in REFERENCES and method not in STRATEGIES]
    for name in references:
        for key in given.get(name, ()):
            if key in OF_ADAPTERS:
                yield f"[strategy.{name}] {key}: {methods[name]} trains the base's own weights, and no adapter"
        for number, table in enumerate(compositions, start=1):
            if name in table.on:
                yield f"[[compositions]] {number}: on {name!r}, which leaves no adapters to compose"


def set_problems(name: str, given: Sequence[str]) -> Iterator[str]:
    """What a table ``[strategy.NAME]`` sets though it must be the same for every strategy.

    Args:
        name: The strategy.
        given: Its ``set``.
    """
    own = of_training(given)
    for text in given:
        if text not in own:
            yield f"[strategy.{name}] set {text!r}: it is the same for every strategy: [train] or [tasks.NAME]"


def composition_problems(
    tables: Sequence[CompositionTable], wrong: Sequence[Collection[str]], strategies: Sequence[str]
) -> Iterator[str]:
    """Modes that are missing, names that cannot be names or stand twice, strategies that are not run.

    Args:
        tables: The compositions, with their defaults filled in.
        wrong: For each the fields whose value does not fit its type, which was said.
        strategies: Those that are run.
    """
    names = [table.name for table, said in zip(tables, wrong, strict=True) if "mode" not in said]
    for number, (table, said) in enumerate(zip(tables, wrong, strict=True), start=1):
        where = f"[[compositions]] {number}"
        if "mode" not in said:
            if not table.mode:
                yield f"{where}: names no mode"
            elif not NAME.fullmatch(table.name or ""):
                yield f"{where}: name {table.name!r}: {_NAMES}"
            if names.count(table.name) > 1:
                yield f"{where}: the name {table.name!r} appears twice"
        for strategy in table.on:
            if strategies and strategy not in strategies:
                yield f"{where}: on {strategy!r}, which is not run{nearest(strategy, list(strategies))}"


def tables_of(config: SequenceConfig, task: str, strategy: str | None = None) -> dict[str, tuple[str, ...]]:
    """The ``set`` of each table that a task's settings are made of, by the table's name.

    Args:
        config: The sequence.
        task: The task.
        strategy: The strategy that it is learnt with; None for what all have in common.
    """
    tables = {"[train]": config.train, f"[tasks.{task}]": {"set": config.tasks[task].set}}
    if strategy is not None:
        tables[f"[strategy.{strategy}]"] = config.strategies.get(strategy, {})
    return {name: tuple(table["set"]) for name, table in tables.items() if table.get("set")}


@contextmanager
def named_tables(config: SequenceConfig, tables: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Say of a ``set`` that the block refuses in which file and table it stands.

    Args:
        config: The sequence.
        tables: Each table's ``set``.
    """
    try:
        yield
    except ConfigError as error:
        for refused, key in ((SET_REFUSED, "set"), (WEIGHTS_REFUSED, "weights")):
            if error.message.startswith(refused):
                problems = error.message.removeprefix(refused)
                named = [name for name, given in tables.items() if any(_key(text) in problems for text in given)]
                where = " or ".join(named or tables)
                raise error.saying(f"{config.file}: {where} {key}: {problems}") from error
        raise


def _key(text: str) -> str:
    """The key of ``METHOD.KEY=VALUE``, by which a message calls it."""
    return text.partition("=")[0].strip().rpartition(".")[2]
