"""Reading the TOML file of a sequence: every mistake is named at once, with its table."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from lorabank.core.config import EvalConfig, TrainConfig
from lorabank.core.errors import ConfigError, NotFoundError, joined
from lorabank.core.files.toml_file import load_toml
from lorabank.core.settings import examine, modern, nearest, old_names, setting_names
from lorabank.sequences.checks import NAME, composition_problems, reference_problems, set_problems, settings_problems
from lorabank.sequences.config import (
    SET_BY_SEQUENCE,
    CompositionTable,
    SequenceConfig,
    SequenceSettings,
    StrategyTable,
    TaskTable,
)
from lorabank.sequences.orders import with_random

T = TypeVar("T")

TABLES = ("train", "strategy", "tasks", "compositions", "evaluation", "sizes")
_FILES = ("data", "eval_data", "dev_data")
"""Keys in which a variable may stand: a file is only read, while the hub is asked for a name."""

_NAMES = ("base", "revision", "gguf_file")
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_UNCHANGED = "nothing was changed"


def read_sequence(path: str | Path, size: str | None = None) -> SequenceConfig:
    """Read and check a sequence.

    Args:
        path: The TOML file; relative paths in it are relative to its folder, and ``${VARIABLE}`` in those of data
            files is filled from the environment.
        size: A table of ``[sizes]``, laid over the rest of the file.

    Raises:
        NotFoundError: There is no such file.
        ConfigError: It is not TOML, or keys and values do not fit: all of them are named.
    """
    file = Path(path)
    missing = NotFoundError(
        f"no sequence file {file}",
        hint="name an existing TOML file: docs/sequences.md",
        unchanged="nothing was changed",
    )
    document = load_toml(file, missing=missing)
    reader = _Reader(file, size)
    sizes = document.get("sizes", {})
    if not isinstance(sizes, dict) or not all(isinstance(table, dict) for table in sizes.values()):
        reader.problems.append("sizes is not a table of tables: write [sizes.NAME]")
    return reader.sequence(_sized(file, document, size))


def _sized(file: Path, document: dict[str, Any], size: str | None) -> dict[str, Any]:
    """The document with one of its sizes laid over it, without ``[sizes]``."""
    sizes = document.pop("sizes", {})
    if size is None:
        return document
    if not isinstance(sizes, dict) or not isinstance(sizes.get(size), dict):
        known = list(sizes) if isinstance(sizes, dict) else []
        raise ConfigError(
            f"{file}: there is no table [sizes.{size}]{nearest(size, known)}",
            hint=f"--size {'|'.join(known)}" if known else "leave out --size",
            unchanged=_UNCHANGED,
        )
    return _laid_over(document, sizes[size])


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


def _ordered(settings: SequenceSettings, document: dict[str, Any]) -> tuple[SequenceSettings, dict[str, Any]]:
    """The same with the random orders among the others: what was drawn is recorded, not how."""
    tasks, count = document.get("tasks"), settings.random_orders
    if not count or not isinstance(tasks, dict) or not tasks:
        return settings, document
    orders = with_random(settings.orders, list(tasks), count, settings.order_seed)
    rest = {key: value for key, value in document.items() if key not in ("random_orders", "order_seed")}
    return replace(settings, orders=orders), {**rest, "orders": [list(order) for order in orders]}


def check_data(config: SequenceConfig) -> None:
    """Refuse data files that are not there, by the paths that the file gives them, not by those they stand for.

    Raises:
        NotFoundError: Naming for each the table, the key and the path as it is written.
    """
    missing = []
    for name in config.task_names:
        for key in _FILES:
            path, written = getattr(config.tasks[name], key), config.document["tasks"][name].get(key)
            if path and not path.startswith("hf:") and not os.path.exists(path):
                missing.append(f"[tasks.{name}] {key}: no such file: {written!r}")
    if missing:
        message = f"{config.file}: {joined(missing)}"
        raise NotFoundError(message, hint="paths are relative to the sequence file", unchanged=_UNCHANGED)


def _method(document: Mapping[str, Any], name: str) -> str:
    """What a strategy that is run is called on its shelf."""
    tables = document.get("strategy")
    table = tables.get(name) if isinstance(tables, dict) else None
    return str(table.get("strategy", name)) if isinstance(table, dict) else name


class _Table(NamedTuple, Generic[T]):
    """A table of the file: defaults stand where a value is wrong.

    Attributes:
        config: Its values.
        given: The keys that it gives.
        wrong: The fields whose value does not fit, of which nothing more needs to be said.
    """

    config: T
    given: tuple[str, ...]
    wrong: frozenset[str]


class _Reader:
    """Collects what is wrong, table by table."""

    def __init__(self, file: Path, size: str | None) -> None:
        self.file = file
        self.size = size
        self.problems: list[str] = []

    def sequence(self, document: dict[str, Any]) -> SequenceConfig:
        """The checked sequence of a document."""
        flat = {key: value for key, value in document.items() if key not in TABLES}
        settings, _, wrong = self.table(SequenceSettings, flat, "")
        settings, document = _ordered(settings, document)
        train, given, _ = self.table(TrainConfig, document.get("train", {}), "[train]")
        variants = self.tables(StrategyTable, document, "strategy")
        tasks = self.tables(TaskTable, document, "tasks")
        entries = document.get("compositions", [])
        entries = entries if isinstance(entries, list) else [entries]
        made = [
            self.table(CompositionTable, entry, f"[[compositions]] {number}")
            for number, entry in enumerate(entries, start=1)
        ]
        evaluation = self.table(EvalConfig, document.get("evaluation", {}), "[evaluation]").config
        compositions = [self.named(one.config, settings) for one in made]
        self.problems += settings_problems(settings, wrong, tasks, document.get("strategy", {}))
        for name, variant in variants.items():
            self.problems += set_problems(name, variant.config.set)
        methods = {name: _method(document, name) for name in settings.strategies}
        given_there = {name: one.given for name, one in variants.items()}
        self.problems += reference_problems(methods, given_there, [one.config for one in made])
        self.problems += composition_problems(compositions, [one.wrong for one in made], settings.strategies)
        self.problems += [f"[tasks.{name}] gives no data" for name, task in tasks.items() if "data" not in task.given]
        if self.problems:
            raise ConfigError(f"{self.file}: {joined(self.problems)}", unchanged=_UNCHANGED)
        return SequenceConfig(
            file=self.file,
            size=self.size,
            settings=self.with_base(settings),
            train={key: getattr(train, key) for key in given},
            strategies={name: {key: getattr(one.config, key) for key in one.given} for name, one in variants.items()},
            tasks={name: task.config for name, task in tasks.items()},
            given={name: task.given for name, task in tasks.items()},
            compositions=tuple(compositions),
            evaluation=replace(evaluation, all=True, forgetting_matrix=True),
            document=document,
        )

    def table(self, kind: type[T], values: Any, where: str) -> _Table[T]:
        """A table; what is wrong with it is kept for the end, and does not hide what else is wrong."""
        if not isinstance(values, dict):
            self.problems.append(f"{where} is not a table")
            every = setting_names(kind)
            return _Table(kind(), every, frozenset(every))
        reserved = SET_BY_SEQUENCE.get(kind, {})
        self.problems += [f"{where} {key}: {why}" for key, why in reserved.items() if key in values]
        rest = {key: self.filled(key, value, where) for key, value in values.items() if key not in reserved}
        try:
            rest = modern(kind, rest)[0]
        except ConfigError as error:
            self.problems.append(f"{where}: {error.message}")
            rest = {key: value for key, value in rest.items() if key not in old_names(kind)}
        examined = examine(kind, rest)
        if examined.problems:
            place = where or "above the tables"
            self.problems += [f"{place}: {problem}" for problem in examined.problems]
        return _Table(examined.config, tuple(rest), examined.wrong)

    def tables(self, kind: type[T], document: Mapping[str, Any], name: str) -> dict[str, _Table[T]]:
        """The tables ``[name.*]``."""
        found = document.get(name, {})
        if not isinstance(found, dict):
            self.problems.append(f"{name} is not a table of tables: write [{name}.NAME]")
            return {}
        for key in found:
            if not NAME.fullmatch(key):
                self.problems.append(f"[{name}.{key}] cannot be a name: use a-z, 0-9, '.', '_' and '-'")
        return {key: self.table(kind, values, f"[{name}.{key}]") for key, values in found.items()}

    def filled(self, key: str, value: Any, where: str) -> Any:
        """The path of a data file with its variables filled in, from the file's folder; everything else as it is.

        Somebody else may have written the file. So a variable never gets into a name that the hub is asked for, and
        a message shows the path as it is written.
        """
        if not isinstance(value, str) or not value or key not in (*_FILES, *_NAMES):
            return value
        names = [match[1] for match in _VARIABLE.finditer(value)]
        if names and (key in _NAMES or value.startswith("hf:")):
            self.problems.append(
                f"{where} {key} = {value!r}: variables are allowed only in paths of data files".strip()
            )
        if key in _NAMES or value.startswith("hf:"):
            return value
        missing = [name for name in names if name not in os.environ]
        if missing:
            self.problems.append(f"{where} {key}: the environment variable {missing[0]} is not set".strip())
            return value
        return self.beside(_VARIABLE.sub(lambda match: os.environ[match[1]], value))

    def beside(self, path: str) -> str:
        """A path from the file's folder."""
        return os.path.normpath(self.file.parent.absolute() / Path(os.path.expanduser(path)))

    def with_base(self, settings: SequenceSettings) -> SequenceSettings:
        """A base model beside the TOML file gets its path, where there is one of this name; else it is a hub id."""

        def local(name: str) -> str:
            path = self.beside(name)
            return path if os.path.exists(path) else name

        if settings.base is not None:
            return replace(settings, base=local(settings.base))
        return replace(settings, gguf_file=local(settings.gguf_file)) if settings.gguf_file else settings

    def named(self, table: CompositionTable, settings: SequenceSettings) -> CompositionTable:
        """The table with its defaults filled in."""
        return replace(table, name=table.name or table.mode, on=table.on or settings.strategies)
