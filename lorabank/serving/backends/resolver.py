"""What vLLM's plug-in does (`lorabank.serving.backends.plugin`): an adapter that vLLM does not know comes from a bank.

The class and its method are those of ``vllm.lora.resolver`` in vLLM 0.33.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shutil
import threading
from pathlib import Path

from lorabank.bank.bank import Bank
from lorabank.bank.failures import reported
from lorabank.bank.snapshot import Snapshot
from lorabank.core.errors import LorabankError
from lorabank.core.escaping import safe
from lorabank.core.records import BaseModelRecord
from lorabank.core.states import answering_in, own_state, whose_head
from lorabank.exchange.peft_folder import has_files
from lorabank.models.bases.fingerprint import quantised_fingerprint
from lorabank.models.bases.kept_facts import known_weight_facts
from lorabank.models.bases.resolving import plain_name, resolve_base
from lorabank.workflows.assemble import adapters_in_order
from lorabank.workflows.carrying.adapter_folders import check_outside_banks, own_folder
from lorabank.workflows.carrying.export import export

FOLDER = "LORABANK_VLLM_FOLDER"
"""Environment variable with the folder that adapters are exported to; default: one beside the hub's cache."""

_log = logging.getLogger(__name__)


def register(bank: str) -> None:
    """Register the resolver of a bank with vLLM."""
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    adapters = BankAdapters(bank, os.environ.get(FOLDER) or None)

    class BankResolver(LoRAResolver):  # type: ignore[misc]
        """Finds adapters in a bank."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            """The adapter of a name; None where the bank has none that vLLM could use."""
            folder = await asyncio.to_thread(adapters.find, base_model_name, lora_name)
            if folder is None:
                return None
            number = 1 + int(hashlib.sha256(folder.name.encode()).hexdigest()[:7], 16)
            return LoRARequest(lora_name=lora_name, lora_int_id=number, lora_path=str(folder))

    LoRAResolverRegistry.register_resolver("lorabank", BankResolver())


class BankAdapters:
    """The adapters of a bank as PEFT folders, each written once. It may be used from several threads.

    Args:
        bank: The bank's folder; it is opened anew for each adapter, so that what others add is found.
        folder: Where folders are written to; None for one beside the hub's cache.
    """

    def __init__(self, bank: str | Path, folder: str | Path | None = None) -> None:
        self._bank, self._folder = Path(bank), None if folder is None else Path(folder)
        self._lock = threading.Lock()
        self._bases: dict[tuple[str, str], bool] = {}

    def find(self, base_model: str, name: str) -> Path | None:
        """The folder of a task or of an adapter; None where there is none for this base, which is logged.

        Args:
            base_model: What vLLM loaded the base by.
            name: Of a task, whose present state is meant (as `lorabank.api.export` has it), or an adapter's digest.
        """
        try:
            with self._lock:
                return self._found(base_model, name)
        except LorabankError as error:
            _log.warning("%s", safe(f"the bank {self._bank} gives vLLM no adapter {name[:80]!r}: {error.message}"))
            return None

    def _found(self, base_model: str, name: str) -> Path | None:
        snapshot = Bank.open(self._bank).snapshot()
        task, own = _task_of(snapshot, name)
        if task is None:
            return None
        if not self._same_base(base_model, snapshot.base):
            _log.warning(
                "%s", safe(f"vLLM's base {base_model!r} is not that of the bank {self._bank}: {snapshot.base.name}")
            )
            return None
        folder = self._folder or own_folder("vllm-plugin", snapshot.id)
        with reported(folder, unchanged="nothing was written"):
            check_outside_banks(folder, "nothing was written")
            folder.mkdir(parents=True, exist_ok=True)
        target = folder / _key(snapshot, task, own=own)
        if not has_files(target):
            shutil.rmtree(target, ignore_errors=True)  # what is left where something else deleted files
            try:
                export(
                    self._bank,
                    task,
                    target,
                    state=None,
                    own=own,
                    check="vllm",
                    tokenizer=False,
                    merged=False,
                    dtype=None,
                )
            except LorabankError:
                if not has_files(target):  # else another process has written it meanwhile
                    raise
        return target.absolute()

    def _same_base(self, given: str, record: BaseModelRecord) -> bool:
        """Whether vLLM's base is the bank's, by its name or by its weights, which are read once."""
        key = given, record.fingerprint
        if key not in self._bases:
            self._bases[key] = given in (record.name, plain_name(record)) or _fingerprint(given, record) == key[1]
        return self._bases[key]


def _task_of(snapshot: Snapshot, name: str) -> tuple[str | None, bool]:
    """The task that a name means, and whether its own adapter alone is meant; None where there is none."""
    for task in snapshot.tasks:
        if name in (task.name, task.adapter):
            return task.name, name != task.name
    return None, False


def _key(snapshot: Snapshot, task: str, *, own: bool) -> str:
    """What decides the files: the adapters and the head."""
    adapter = snapshot.adapter_of(task)
    if own:
        return adapter.digest
    answers = answering_in("now", adapters_in_order(snapshot), adapter)
    head = whose_head(adapter, answers).head_digest
    state = json.dumps([snapshot.base.fingerprint, list(own_state(answers)), head])
    return f"state-{hashlib.sha256(state.encode()).hexdigest()}"


def _fingerprint(base_model: str, record: BaseModelRecord) -> str:
    """That of a base model as a bank records it.

    Raises:
        LorabankError: It cannot be found.
    """
    weights = known_weight_facts(resolve_base(base_model, None, typed=False).path).fingerprint
    return weights if record.quantisation is None else quantised_fingerprint(weights, record.quantisation)
