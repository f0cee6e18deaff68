"""A bank of LoRA adapters learnt one task after another.

The use cases are functions of ``lorabank.api``; this module names what they take and give. Importing it costs the
standard library alone: every name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorabank.api import open
    from lorabank.bank.bank import Bank
    from lorabank.bank.snapshot import Snapshot
    from lorabank.core.config import ComposeConfig, EvalConfig, GenerateConfig, InitConfig, PredictConfig, TrainConfig
    from lorabank.core.errors import LorabankError
    from lorabank.core.observer import Observer, SilentObserver

__version__ = "0.1.0"

_HOMES = {
    "Bank": "lorabank.bank.bank",
    "ComposeConfig": "lorabank.core.config",
    "EvalConfig": "lorabank.core.config",
    "GenerateConfig": "lorabank.core.config",
    "InitConfig": "lorabank.core.config",
    "LorabankError": "lorabank.core.errors",
    "Observer": "lorabank.core.observer",
    "PredictConfig": "lorabank.core.config",
    "SilentObserver": "lorabank.core.observer",
    "Snapshot": "lorabank.bank.snapshot",
    "TrainConfig": "lorabank.core.config",
    "open": "lorabank.api",
}

__all__ = [
    "Bank",
    "ComposeConfig",
    "EvalConfig",
    "GenerateConfig",
    "InitConfig",
    "LorabankError",
    "Observer",
    "PredictConfig",
    "SilentObserver",
    "Snapshot",
    "TrainConfig",
    "__version__",
    "open",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
