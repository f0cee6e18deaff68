"""What an optimizer remembers, parted into tensors and plain values, as checkpoints hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def parted(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of each parameter, by its number: tensors and plain values by path, ``"3.exp_avg"``."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entry in state.items():
        for path, value in _leaves(str(index), entry):
            if isinstance(value, Tensor):
                tensors[path] = value
            else:
                plain[path] = value
    return tensors, plain


def joined(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The state that was parted."""
    state: dict[int, dict[str, Any]] = {}
    for path, value in [*tensors.items(), *plain.items()]:
        index, *within, name = path.split(".")
        entry: dict[str, Any] = state.setdefault(int(index), {})
        for key in within:
            entry = entry.setdefault(key, {})
        entry[name] = value
    return state


def _leaves(path: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from _leaves(f"{path}.{name}", value)
        else:
            yield f"{path}.{name}", value
