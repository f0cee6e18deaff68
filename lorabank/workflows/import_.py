"""``import``: a PEFT folder from elsewhere, judged and made a task of the bank."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from safetensors.torch import save as save_tensors

from lorabank.bank.bank import Bank
from lorabank.bank.failures import reported
from lorabank.bank.operations import Operation
from lorabank.bank.snapshot import Snapshot
from lorabank.bank.store import MAX_CONFIG, StoredFile, adapter_digest
from lorabank.bank.tensors import MAX_FILE, check_tensor_bytes
from lorabank.core.config import InitConfig, TrainConfig, validate
from lorabank.core.errors import ConfigError, DataError, IncompatibleError, NotFoundError
from lorabank.core.observer import Observer
from lorabank.core.records import AdapterRecord, DatasetRecord, TaskRecord
from lorabank.data.loading import TaskData
from lorabank.models.encoding import encode_texts
from lorabank.models.foreign import ForeignAdapter, check_effect, check_fits, largest_update, read_foreign
from lorabank.models.heads import Head, load_head
from lorabank.models.loading import LoadedBase, load_base, resolve_device
from lorabank.models.peft_folder import CONFIG_FILE, WEIGHTS_FILE, adapter_files
from lorabank.training.run import overlap_report
from lorabank.training.strategies import IMPORTED
from lorabank.workflows.results import AddTaskResult
from lorabank.workflows.train import (
    commit_and_score,
    dataset_records,
    load_data,
    open_or_init,
    package_versions,
    task_statistics,
)
from lorabank.workflows.upkeep import listed
from lorabank.workflows.view import adapters_in_order, read_stack

_UNCHANGED = "nothing was changed"

_USED = (
    "data", "eval_data", "eval_fraction", "text_column", "label_column", "max_length", "keep_samples",
    "clusters_per_task", "seed", "device",
)  # fmt: skip
"""The settings that say something of a task whose adapter is not trained here."""

_PROBED = 16
"""Texts that are passed through the base with and without an imported adapter."""


def import_adapter(
    path: str | Path,
    source: Path,
    name: str,
    *,
    config: TrainConfig,
    labels: Sequence[str] | None,
    init: InitConfig,
    observer: Observer,
) -> AddTaskResult:
    """Judge a PEFT folder and put it into the bank as a task, whole or not at all."""
    checked = validate(TrainConfig, asdict(config))
    data = load_data(checked)
    order = _label_order(data, labels, observer)
    adapter, digest = read_source(source)
    bank, created = open_or_init(path, init, observer)
    with bank.reserve("import", name, {"source": str(source), "digest": digest}) as operation:
        facts = {"source": str(source), "source_digest": digest, "source_base": adapter.base_model}
        result = _import(bank, operation, adapter, data, order, checked, facts, observer)
    return AddTaskResult(*result, bank=str(path), bank_created=created)


def _import(
    bank: Bank,
    operation: Operation,
    adapter: ForeignAdapter,
    data: TaskData,
    labels: tuple[str, ...],
    config: TrainConfig,
    facts: dict[str, Any],
    observer: Observer,
) -> tuple[TaskRecord, AdapterRecord, tuple[DatasetRecord, ...], dict[str, float]]:
    snapshot = bank.snapshot()
    device = resolve_device(config.device)
    base = load_base(snapshot.base, device=device)
    check_fits(adapter, base, snapshot.base.task_type)
    head = _load_head(base, adapter, labels)
    max_length = min(config.max_length, base.max_length or config.max_length)
    statistics = task_statistics(base, data.train.texts, config)
    check_effect(base, adapter.factors, head, data.train.texts[:_PROBED], max_length=max_length)
    cut = encode_texts(base.tokenizer, data.train.texts, max_length).cut
    facts |= {
        "largest_update": largest_update(adapter.factors, base.model),
        "rows_cut": cut,
        **overlap_report(adapter.factors, read_stack(bank, adapters_in_order(snapshot))),
    }
    _warn(facts, snapshot, observer)
    settings = asdict(config)
    record = AdapterRecord(
        digest=operation.stage_adapter(_files(snapshot, base, adapter)),
        task=operation.name,
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        use_rslora=adapter.use_rslora,
        target_modules=tuple(sorted(adapter.factors.A)),
        strategy=IMPORTED,
        penalties={},
        context=(),
        seed=config.seed,
        steps=0,
        wall_seconds=0.0,
        device=str(device),
        bytes=0,
        head_digest=hashlib.sha256(save_tensors(adapter.head)).hexdigest(),
        files={},
        versions=package_versions(),
        config={name: settings[name] for name in _USED} | {"max_length": max_length},
        metrics=facts,
    )
    task = TaskRecord(
        name=operation.name,
        position=0,
        task_type=snapshot.base.task_type,
        labels=labels,
        state="training",
        adapter=record.digest,
        statistics=operation.stage_blob(statistics),
    )
    return commit_and_score(bank, operation, task, record, dataset_records(operation, data, config, cut), observer)


def read_source(folder: Path) -> tuple[ForeignAdapter, str]:
    """A PEFT folder's adapter, and a digest of its two files.

    The bytes that are judged are the ones that were read: the folder is not looked at again. Nothing but the two files
    counts; a link to the folder is followed, links in it are not.

    Raises:
        NotFoundError: There is no such folder.
        DataError: A file is missing, no regular file, too large, or not what a LoRA adapter with a head consists of.
    """
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {str(folder)!r}", hint="name a PEFT folder", unchanged=_UNCHANGED)
    config = _read_file(folder / CONFIG_FILE, MAX_CONFIG)
    weights = _read_file(folder / WEIGHTS_FILE, MAX_FILE)
    check_tensor_bytes(weights, WEIGHTS_FILE)
    files = [
        StoredFile(name, hashlib.sha256(data).hexdigest(), len(data))
        for name, data in ((CONFIG_FILE, config), (WEIGHTS_FILE, weights))
    ]
    return read_foreign(config, weights), adapter_digest(files)


def _read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file; a pipe does not block, a link is not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        pickled = path.with_suffix(".bin")
        if path.name == WEIGHTS_FILE and pickled.exists():
            _refuse(f"{pickled} is a pickle, which could run code: it is never read", "save it as safetensors")
        _refuse(f"{path} is missing: the folder is no PEFT adapter")
    except OSError as error:
        if path.is_symlink():
            _refuse(f"{path} is a link", "copy the files that the links lead to: cp -rL")
        _refuse(f"{path} cannot be read: {error.strerror}")
    with reported(path, unchanged=_UNCHANGED), os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            _refuse(f"{path} is no regular file")
        # One byte more than allowed: the file may have grown since.
        data = b"" if status.st_size > limit else file.read(limit + 1)
        if status.st_size > limit or len(data) > limit:
            _refuse(f"{path} is larger than {limit} bytes")
        return data


def _label_order(data: TaskData, labels: Sequence[str] | None, observer: Observer) -> tuple[str, ...]:
    """The labels in the order of the head's outputs.

    Raises:
        ConfigError: A label stands twice.
        DataError: The rows have a label that the head does not know.
    """
    if labels is None:
        observer.notice(f"labels in the order of the head's outputs, taken from the data: {listed(data.labels)}")
        return data.labels
    order = tuple(labels)
    if len(set(order)) != len(order) or not all(order):
        raise ConfigError("--labels: a label is empty or stands twice", unchanged=_UNCHANGED)
    unknown = [label for label in data.labels if label not in order]
    if unknown:
        hint = f"the data's labels: {listed(data.labels)}"
        _refuse(f"the data has the label {unknown[0]!r}, --labels does not", hint)
    return order


def _load_head(base: LoadedBase, adapter: ForeignAdapter, labels: tuple[str, ...]) -> Head:
    try:
        return load_head(base.model, base.head_modules, len(labels), adapter.head)
    except IncompatibleError as error:
        raise IncompatibleError(
            error.message,
            hint="name the labels in the order of the head's outputs: --labels A,B,...",
            unchanged=_UNCHANGED,
        ) from error


def _warn(facts: Mapping[str, Any], snapshot: Snapshot, observer: Observer) -> None:
    if facts["source_base"] != snapshot.base.name:
        observer.notice(
            f"the adapter names the base model {facts['source_base']!r}, the bank's is {snapshot.base.name!r}: "
            "its shapes fit, whether its weights do shows in the accuracy"
        )
    if facts["largest_update"] > 1:
        observer.notice(
            f"the adapter's update is up to {facts['largest_update']:.1f} times as large as the weights it is added to"
        )
    if facts["rows_cut"]:
        observer.notice(f"{facts['rows_cut']} training texts are cut")


def _files(snapshot: Snapshot, base: LoadedBase, adapter: ForeignAdapter) -> dict[str, bytes]:
    return adapter_files(
        adapter.factors,
        adapter.head,
        base_model=snapshot.base.name,
        task_type=snapshot.base.task_type,
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        use_rslora=adapter.use_rslora,
        head_modules=base.head_modules,
        lora_dropout=adapter.lora_dropout,
        rank_pattern=adapter.rank_pattern,
        alpha_pattern=adapter.alpha_pattern,
    )


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise DataError(message, hint=hint, unchanged=_UNCHANGED)
