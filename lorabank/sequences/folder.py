"""The folder of a sequence: which settings and rows it was begun with, and where its banks and results lie."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorabank.bank.failures import reported
from lorabank.core.errors import ConfigError, DamagedError, DataError, ExistsError, IncompatibleError
from lorabank.sequences.config import Cell, SequenceConfig

FORMAT = 1
_GROWING = ("orders", "strategies", "seeds", "compositions")
"""Lists that may get more entries: every bank that is there stays what it is."""
_TABLES = ("strategy", "tasks")
"""Tables that may get more entries."""

_ELSEWHERE = "name another folder: --out DIR"


class SequenceFolder:
    """Where a sequence puts its files."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def manifest(self) -> Path:
        """What the folder was begun with."""
        return self.path / "sequence.json"

    @property
    def data(self) -> Path:
        """The rows of the tasks."""
        return self.path / "data"

    def bank(self, cell: Cell) -> Path:
        """The bank of an order, a strategy and a seed."""
        return self.path / "banks" / f"order{cell.order}" / cell.strategy / f"seed{cell.seed}"

    def reference(self, cell: Cell) -> Path:
        """The scores of a reference on an order with a seed, and its weights while it is not finished."""
        return self.path / "references" / f"order{cell.order}" / cell.strategy / f"seed{cell.seed}"

    def plot(self, strategy: str, subject: str) -> Path:
        """The heat-map of a subject."""
        return self.path / "plots" / strategy / f"{subject}.png"

    def check(self, manifest: Mapping[str, Any]) -> None:
        """Refuse to resume with other settings, rows or another base model than the folder was begun with.

        More orders, strategies, seeds and compositions, behind those that are there, are no other settings; nor is
        another ``selection``, which is a sentence.

        Raises:
            ExistsError: It belongs to another sequence, or is not the folder of a sequence.
            DataError: The rows have changed.
            IncompatibleError: The base model has changed.
        """
        stored = self._stored()
        if stored is None:
            return
        hint = _ELSEWHERE
        changed = [*_changes(stored["document"], manifest["document"])]
        if stored["dev"] != manifest["dev"]:
            changed.insert(0, "it is scored on other rows (--dev)")
        if changed:
            raise ExistsError(
                f"{self.path} was started with other settings: {'; '.join(changed[:5])}"
                + (f"; and {len(changed) - 5} more" if len(changed) > 5 else ""),
                hint=hint,
                unchanged="nothing was changed",
            )
        for task, digests in manifest["rows"].items():
            if stored["rows"].get(task) != digests:
                raise DataError(
                    f"the rows of task {task!r} are no longer those that {self.path} was started with",
                    hint=hint,
                    unchanged="nothing was changed",
                )
        if stored["base"] != manifest["base"]:
            raise IncompatibleError(
                f"the base model is no longer the one that {self.path} was started with",
                hint=hint,
                unchanged="nothing was changed",
            )

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Write what the folder is begun (or gone on) with, after `check`."""
        with reported(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.manifest, json.dumps({"format": FORMAT, **manifest}, indent=2) + "\n")

    def _stored(self) -> dict[str, Any] | None:
        with reported(self.path):
            try:
                stored = json.loads(self.manifest.read_bytes())
                if stored["format"] != FORMAT or not {"document", "rows", "base", "dev"} <= stored.keys():
                    raise ValueError("its format is another")
            except (FileNotFoundError, NotADirectoryError):
                stored = None
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise DamagedError(f"{self.manifest} cannot be read ({error})", hint=_ELSEWHERE) from error
            if stored is None and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise ExistsError(
                    f"{self.path} exists and holds no sequence",
                    hint=_ELSEWHERE,
                    unchanged="nothing was changed",
                )
        return dict(stored) if stored else None


def document_of(config: SequenceConfig) -> dict[str, Any]:
    """The file's content as JSON knows it, with the name of the size."""
    content = {**config.document, "size": config.size} if config.size else dict(config.document)
    document: dict[str, Any] = json.loads(json.dumps(content))
    return document


def digest_of(config: SequenceConfig) -> str:
    """SHA-256 of the file's content: comments, blanks and the order of keys do not count."""
    text = json.dumps(document_of(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _changes(stored: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What is other than it was, but for what may grow."""
    for key in dict.fromkeys((*stored, *now)):
        old, new = stored.get(key), now.get(key)
        if old == new or key == "selection":
            continue
        if key in _GROWING and isinstance(new, list) and new[: len(old or [])] == (old or []):
            continue
        if key in _TABLES and isinstance(new, dict):
            common = {name: new[name] for name in old or {} if name in new}
            yield from _flat(key, old or {}, common)
        else:
            yield from _flat(key, old, new)


def _flat(key: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            if old.get(name) != new.get(name):
                yield from _flat(f"{key}.{name}", old.get(name), new.get(name))
    else:
        yield f"{key} is {_shown(new)}, was {_shown(old)}"


def _shown(value: Any) -> str:
    text = "not given" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_once(paths: Sequence[Path]) -> None:
    """Refuse a file or folder that is named twice, also through a link or by another path.

    Raises:
        ConfigError: One is.
    """
    seen: dict[Path, Path] = {}
    for path in paths:
        whole = Path(os.path.realpath(path))
        if whole in seen:
            again = (
                f"{seen[whole]} is named twice" if path == seen[whole] else f"{seen[whole]} and {path} are the same"
            )
            raise ConfigError(again, hint="name each file and folder once", unchanged="nothing was written")
        seen[whole] = path


def write_text(target: Path, text: str) -> None:
    """Write a file whole or not at all; its folder is made."""
    with reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
