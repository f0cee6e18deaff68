"""Sums of a bank's adapters as PEFT folders for a server that loads them: each is written once, and few are kept.

A sum of one adapter with the weight 1 has that adapter's digest as its name; any other one is named by the digest of
its weights and of the base. Equal names are equal files, so that a folder is written anew only where one is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from lorabank.bank.bank import Bank
from lorabank.bank.failures import reported
from lorabank.bank.objects.layout import Layout
from lorabank.core.errors import ConfigError, IncompatibleError, StorageError
from lorabank.core.records import BaseModelRecord
from lorabank.exchange.peft_check import plain_files
from lorabank.exchange.peft_folder import CONFIG_FILE, WEIGHTS_FILE, combined_files, has_files, with_fields
from lorabank.exchange.safe_folders import write_folder
from lorabank.exchange.servers import SERVERS, Served
from lorabank.models.bases.loading import recorded_weights
from lorabank.models.bases.resolving import plain_name
from lorabank.workflows.assemble import stack_of
from lorabank.workflows.carrying.corrected import is_corrected, with_correction

_NAME = re.compile(r"(sum-)?[0-9a-f]{64}")
_BEGUN = re.compile(r"\.(sum-)?[0-9a-f]{64}\.[0-9a-f]{12}")
"""What a server that was killed leaves of a folder that it was writing."""
_OLD = 3600.0
"""Seconds after which such a folder is deleted."""
_ANY_HEAD = 2
"""Outputs of a classifier's head, of which a language model has none."""

Weights = Mapping[str, float]
"""Digest of each adapter of a sum to its weight, which is not 0."""


class NotServedError(IncompatibleError):
    """A server would refuse a sum of adapters, or compute something else."""


class AdapterFolders:
    """The folders of one bank, whose tasks are those of a language model. It may be used from several threads.

    `write` has PEFT look at what it writes, which for a moment changes how modules are made in the whole process: it
    belongs into the thread that loads models, if there is one.

    Args:
        bank: The bank's folder.
        folder: Where they lie; it is made where it is missing. None for one beside the hub's cache, which the bank
            alone has.
        server: What loads them, a name of `lorabank.exchange.servers.SERVERS`.

    Raises:
        LorabankError: As of `Bank.open`.
        ConfigError: As of `check_outside_banks`.
        StorageError: The folder cannot be made.
    """

    def __init__(self, bank: str | Path, folder: Path | None, server: str) -> None:
        self._bank = Bank.open(bank)
        snapshot = self._bank.snapshot()
        self._base, self._server = snapshot.base, server
        self._folder = Path(os.path.abspath(folder)) if folder else own_folder(server, snapshot.id)
        self._lock = threading.Lock()
        with reported(self._folder, unchanged="nothing was started"):
            check_outside_banks(self._folder, "nothing was started")
            self._folder.mkdir(parents=True, exist_ok=True)
        self._clean()

    def name_of(self, weights: Weights) -> str:
        """The name of a sum, by which the server knows it too."""
        if len(weights) == 1 and set(weights.values()) == {1.0}:
            return next(iter(weights))
        key = json.dumps([self._base.fingerprint, sorted(weights.items())])
        return f"sum-{hashlib.sha256(key.encode()).hexdigest()}"

    def place(self, name: str) -> Path:
        """Where the folder of a sum is, if it is there."""
        return self._folder / name

    def write(self, weights: Weights) -> Path:
        """The folder of a sum, which is written where it is not there.

        Raises:
            NotServedError: The server would refuse the adapter, or compute something else.
            IncompatibleError: PEFT would.
            DamagedError: A file of the bank is missing or changed.
            StorageError: The folder cannot be written.
        """
        name = self.name_of(weights)
        target = self.place(name)
        with self._lock:
            if not has_files(target):
                files = sum_files(self._bank, self._base, weights)
                problems = SERVERS[self._server](Served(name, str(target), files)).problems
                if problems:
                    raise NotServedError(
                        f"{self._server} cannot serve this sum of adapters: {'; '.join(problems)}",
                        unchanged="nothing was written",
                    )
                shutil.rmtree(target, ignore_errors=True)  # what is left where something else deleted files
                try:
                    write_folder(target, files)
                except StorageError:
                    if not has_files(target):  # else another server has written it meanwhile
                        raise
        return target

    def used(self, name: str) -> None:
        """Remember that a sum was just used."""
        with suppress(OSError):  # it was deleted since, or was never written here
            os.utime(self.place(name))

    def excess(self, most: int, keep: Collection[str]) -> list[str]:
        """The sums beyond a number of folders that were not used for the longest time, none of ``keep`` among them."""
        found: dict[str, float] = {}
        for path in self._paths(_NAME):
            with suppress(OSError):
                found[path.name] = path.stat().st_mtime
        old = sorted((name for name in found if name not in keep), key=lambda name: found[name])
        return old[: max(0, len(found) - most)]

    def delete(self, name: str, unless: Callable[[], bool]) -> None:
        """Delete a sum's folder, which the server does not know any longer.

        Args:
            name: The sum.
            unless: Whether it is to stay, asked when nobody is writing.
        """
        with self._lock:
            if not unless():
                shutil.rmtree(self._folder / name, ignore_errors=True)

    def _clean(self) -> None:
        for path in self._paths(_BEGUN):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _OLD:
                    shutil.rmtree(path, ignore_errors=True)

    def _paths(self, pattern: re.Pattern[str]) -> list[Path]:
        return [path for path in self._folder.iterdir() if pattern.fullmatch(path.name)]


def sum_files(bank: Bank, base: BaseModelRecord, weights: Weights) -> dict[str, bytes]:
    """PEFT's two files of a sum of adapters, as plain PEFT reads them on the base that plain transformers finds.

    Args:
        bank: Has the adapters.
        base: A language model.
        weights: The sum.

    Raises:
        IncompatibleError: PEFT would read it otherwise.
        DamagedError: A file of the bank is missing or changed.
    """
    if len(weights) == 1 and set(weights.values()) == {1.0}:
        files = bank.adapter_files(next(iter(weights)))
    else:
        order = sorted(weights)
        joined = stack_of(bank, order).combine(torch.tensor([weights[digest] for digest in order]))
        files = combined_files(
            joined, {}, base_model=base.name, task_type=base.task_type, head_modules=(), weight=recorded_weights(base)
        )
    if is_corrected(base):
        files = with_correction(files, base)
    config = with_fields(files[CONFIG_FILE], base_model_name_or_path=plain_name(base), lora_dropout=0.0)
    return plain_files({CONFIG_FILE: config, WEIGHTS_FILE: files[WEIGHTS_FILE]}, base, _ANY_HEAD)


def check_outside_banks(folder: Path, unchanged: str) -> None:
    """Refuse a folder in a bank, whose own adapters would be taken for exported ones, and deleted.

    Raises:
        ConfigError: It lies in one.
    """
    place = folder.resolve()
    if any(Layout(one).manifest.is_file() for one in (place, *place.parents)):
        hint = "name a folder elsewhere"
        raise ConfigError(f"the folder for exported adapters, {folder}, is in a bank", hint=hint, unchanged=unchanged)


def own_folder(use: str, bank: str) -> Path:
    """The folder beside the hub's cache in which adapters of a bank lie for one use.

    Args:
        use: What the adapters are for, as a folder's name.
        bank: The bank's identifier.
    """
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "lorabank" / use / bank
