"""Reading the TOML file of a sequence: every mistake is named at once, with its table."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lorabank.core.config import EvalConfig, TrainConfig, nearest, validate
from lorabank.core.errors import ConfigError, NotFoundError
from lorabank.core.sequence_checks import NAME, composition_problems, settings_problems
from lorabank.core.sequence_config import (
    SET_BY_SEQUENCE,
    CompositionTable,
    SequenceConfig,
    SequenceSettings,
    StrategyTable,
    TaskTable,
)
from lorabank.core.toml_file import load_toml

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
    missing = NotFoundError(f"no sequence file {file}", hint="name an existing TOML file: docs/sequences.md")
    return _Reader(file, size).sequence(_sized(file, load_toml(file, missing=missing), size))


def _sized(file: Path, document: dict[str, Any], size: str | None) -> dict[str, Any]:
    """The document with one of its sizes laid over it, without ``[sizes]``."""
    sizes = document.pop("sizes", {})
    if size is None:
        return document
    if not isinstance(sizes, dict) or not isinstance(sizes.get(size), dict):
        known = list(sizes) if isinstance(sizes, dict) else []
        raise ConfigError(
            f"{file}: there is no table [sizes.{size}].{nearest(size, known)}",
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


def check_data(config: SequenceConfig) -> None:
    """Refuse a data file that is not there under the path that the file gives it, not under the one it stands for.

    Raises:
        NotFoundError: Naming the table, the key and the path as it is written.
    """
    for name in config.task_names:
        for key in _FILES:
            path, written = getattr(config.tasks[name], key), config.document["tasks"][name].get(key)
            if path and not path.startswith("hf:") and not os.path.exists(path):
                message = f"{config.file}: [tasks.{name}] {key}: no such file: {written!r}"
                raise NotFoundError(message, hint="paths are relative to the sequence file", unchanged=_UNCHANGED)


class _Reader:
    """Collects what is wrong, table by table."""

    def __init__(self, file: Path, size: str | None) -> None:
        self.file = file
        self.size = size
        self.problems: list[str] = []

    def sequence(self, document: dict[str, Any]) -> SequenceConfig:
        """The checked sequence of a document."""
        flat = {key: value for key, value in document.items() if key not in TABLES}
        settings, _ = self.table(SequenceSettings, flat, "")
        train, given = self.table(TrainConfig, document.get("train", {}), "[train]")
        own = {name: getattr(train, name) for name in given} if train else {}
        strategies = {
            name: {key: getattr(table, key) for key in keys}
            for name, (table, keys) in self.tables(StrategyTable, document, "strategy").items()
            if table
        }
        tasks = self.tables(TaskTable, document, "tasks")
        entries = document.get("compositions", [])
        entries = entries if isinstance(entries, list) else [entries]
        made = [
            self.table(CompositionTable, entry, f"[[compositions]] {number}")[0]
            for number, entry in enumerate(entries, start=1)
        ]
        evaluation, _ = self.table(EvalConfig, document.get("evaluation", {}), "[evaluation]")
        compositions = [self.named(table, settings) for table in made if table]
        if settings:
            self.problems += settings_problems(settings, tasks, document.get("strategy", {}))
            self.problems += composition_problems(compositions, settings.strategies)
            settings = self.with_base(settings)
        for name, (task, keys) in tasks.items():
            if task and "data" not in keys:
                self.problems.append(f"[tasks.{name}] names no data")
        if self.problems:
            raise ConfigError(f"{self.file}: " + "; ".join(self.problems), unchanged=_UNCHANGED)
        assert settings is not None
        assert evaluation is not None
        return SequenceConfig(
            file=self.file,
            size=self.size,
            settings=settings,
            train=own,
            strategies=strategies,
            tasks={name: table for name, (table, _) in tasks.items() if table},
            given={name: keys for name, (_, keys) in tasks.items()},
            compositions=tuple(compositions),
            evaluation=replace(evaluation, all=True, forgetting_matrix=True),
            document=document,
        )

    def table(self, kind: type[T], values: Any, where: str) -> tuple[T | None, tuple[str, ...]]:
        """A checked table and the keys that it gives; None where something is wrong, which is kept for the end."""
        if not isinstance(values, dict):
            self.problems.append(f"{where} is not a table")
            return None, ()
        reserved = SET_BY_SEQUENCE.get(kind, {})
        before = len(self.problems)
        self.problems += [f"{where} {key}: {why}" for key, why in reserved.items() if key in values]
        rest = {key: self.filled(key, value, where) for key, value in values.items() if key not in reserved}
        try:
            checked = validate(kind, rest, where=where or "above the tables")
        except ConfigError as error:
            self.problems.append(error.message)
            return None, ()
        return (checked if len(self.problems) == before else None), tuple(rest)

    def tables(
        self, kind: type[T], document: Mapping[str, Any], name: str
    ) -> dict[str, tuple[T | None, tuple[str, ...]]]:
        """The checked tables ``[name.*]``."""
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
            self.problems.append(f"{where} {key} = {value!r}: a variable stands in paths of data files alone".strip())
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

    def named(self, table: CompositionTable, settings: SequenceSettings | None) -> CompositionTable:
        """The table with its defaults filled in."""
        strategies = settings.strategies if settings else ()
        return replace(table, name=table.name or table.mode, on=table.on or strategies)
