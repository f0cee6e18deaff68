"""The backend that ``lorabank serve --backend`` names."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lorabank.bank.snapshot import Snapshot
from lorabank.core.commands import Command
from lorabank.core.errors import ConfigError, IncompatibleError, MissingExtraError
from lorabank.core.machine.packages import install
from lorabank.core.task_kinds import CAUSAL_LM
from lorabank.serving.backends.address import EXAMPLE, read_address
from lorabank.serving.backends.base import Backend
from lorabank.serving.config import ServeConfig

_UNCHANGED = "nothing was started"


def backend_of(path: str | Path, config: ServeConfig, snapshot: Snapshot) -> Backend | None:
    """What makes the tokens of a server's answers; None for the bank's own model.

    Args:
        path: The bank's folder.
        config: The server's settings.
        snapshot: The bank's state.

    Raises:
        ConfigError: The setting is not an address, or a setting of a backend is given and no backend.
        IncompatibleError: The bank's tasks are not those of a causal language model.
        MissingExtraError: The package that asks the backend is missing.
        StorageError: The folder for exported adapters cannot be made.
    """
    if config.backend is None:
        if config.backend_folder is not None:
            raise _without("--backend-folder", config.backend_folder)
        if config.backend_adapters != ServeConfig.backend_adapters:
            raise _without("--backend-adapters", str(config.backend_adapters))
        return None
    address = read_address(config.backend)
    if snapshot.base.task_type != CAUSAL_LM.name:
        raise IncompatibleError(
            f"--backend {address.name} generates text with a causal language model, and this bank's tasks are "
            f"{snapshot.base.task_type}",
            hint="leave --backend out: the bank's own model answers",
            commands=[Command("serve")],
            unchanged=_UNCHANGED,
        )
    if find_spec("httpx") is None:
        raise MissingExtraError(
            "serve --backend needs the package httpx, which is not installed",
            hint=install("serve"),
            unchanged=_UNCHANGED,
        )
    from lorabank.serving.backends.vllm import Vllm

    return Vllm(path, address, config)


def _without(*given: str) -> ConfigError:
    """The refusal of a backend's setting without a backend."""
    return ConfigError(
        f"{given[0]} is about the backend, and there is none",
        hint="add --backend",
        commands=[Command("serve", "--backend", EXAMPLE, *given)],
        unchanged=_UNCHANGED,
    )
