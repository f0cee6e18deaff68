"""``import``: an adapter from elsewhere, judged and made a task of the bank."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from safetensors.torch import save as save_tensors

from lorabank.algebra.factors import LoraFactors
from lorabank.bank.failures import taken
from lorabank.bank.objects.layout import check_name
from lorabank.bank.operations import Operation
from lorabank.bank.upkeep.remarks import remarks
from lorabank.core.config import InitConfig, LoralibConfig, TrainConfig
from lorabank.core.errors import ConfigError, DataError, NotFoundError
from lorabank.core.limits import MAX_RANK
from lorabank.core.machine.packages import package_versions
from lorabank.core.methods import with_settings
from lorabank.core.observer import Observer
from lorabank.core.records import AdapterRecord, DatasetRecord, TaskRecord
from lorabank.core.settings import validate
from lorabank.core.shelves import ROWS, TASK_TYPES
from lorabank.core.states import ANSWERS, IMPORTED, TUNER
from lorabank.core.task_kinds import HEAD
from lorabank.data.loading import TaskData
from lorabank.data.methods import CHAT
from lorabank.exchange.tuners.untrusted import ForeignTuner
from lorabank.exchange.untrusted_adapter import ForeignAdapter
from lorabank.models.bases.loading import resolve_device
from lorabank.models.bases.open_base import OpenBase
from lorabank.training.factor_groups import overlap_report
from lorabank.workflows.assemble import adapters_in_order, read_stack
from lorabank.workflows.bases import future_base, open_or_init
from lorabank.workflows.carrying.adapter_source import check_source_base, find_source, read_source
from lorabank.workflows.carrying.judging import Judged, judge
from lorabank.workflows.compose import superseded_by
from lorabank.workflows.learning.known_rows import known_rows
from lorabank.workflows.learning.one_head import head_before
from lorabank.workflows.learning.train import commit_and_score
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.results import AddTaskResult
from lorabank.workflows.show import listed
from lorabank.workflows.task_data import (
    as_asked,
    dataset_records,
    found_in_data,
    load_data,
    recorded_bad_rows,
    recorded_settings,
    text_facts,
)

_UNCHANGED = "nothing was changed"

_USED = (
    "data", "eval_data", "format", "map", "eval_fraction", "text_column", "label_column", "skip_bad",
    CHAT, "scoring", "set", "max_length", "keep_samples", "clusters_per_task", "seed", "device",
)  # fmt: skip
"""The settings that say something of a task whose adapter is not trained here."""

_SHOWN = 300
"""Characters of an example."""


def import_adapter(
    opened: OpenBank,
    source: str | Path,
    name: str,
    *,
    config: TrainConfig,
    labels: Sequence[str] | None,
    init: InitConfig,
    base_fingerprint: str | None,
    part: int | None,
    ignore_unknown: bool,
    loralib: LoralibConfig,
    as_lora: int | None,
    observer: Observer,
    note: str | None = None,
    tags: Sequence[str] = (),
    replace: bool = False,
) -> AddTaskResult:
    """Judge an adapter and put it into the bank as a task, whole or not at all."""
    check_name(name)
    written = remarks(note, tags)
    with_settings([], config.set, among=ROWS, besides=ROWS)
    if as_lora is not None and not 1 <= as_lora <= MAX_RANK:
        raise ConfigError(f"--as-lora {as_lora} is not a rank from 1 to {MAX_RANK}", unchanged=_UNCHANGED)
    found = find_source(str(source), observer)
    adapter, digest = read_source(found, part=part, ignore_unknown=ignore_unknown, loralib=loralib)
    if not opened.exists:
        init = _as_trained(adapter, init)
    base = _future_base(opened, name, config, init, observer, replace=replace)
    check_source_base(adapter, base.record, base_fingerprint)
    context = _earlier_parts(opened, digest, part)
    data = load_data(config, base)
    order = _label_order(data, labels, observer)
    judged = judge(adapter, base, data, order, config, as_lora, observer)
    facts: dict[str, Any] = {
        "trusted": False,
        "source": found.name,
        "source_revision": found.revision,
        "source_digest": digest,
        "source_base": adapter.base_model[:256],
        "ignored_fields": [field[:_SHOWN] for field in adapter.ignored],
        "taken_from_names": list(adapter.taken),
        "targets_unread": judged.adapter.unread,
        "part": part,
        "largest_update": judged.largest_update,
        "rows_cut": judged.rows_cut,
        "rows_dropped": judged.rows_dropped,
        **recorded_bad_rows(data),
        **judged.adapter.facts,
        **({TUNER: judged.adapter.tuner} if judged.adapter.tuner else {}),
    }
    _warn(facts, observer)
    for line in data.told:
        observer.notice(line)
    created = open_or_init(opened, init, observer)
    bank, snapshot = opened.bank, opened.refresh()
    old = snapshot.position_of(name) if replace else None
    if known := known_rows(bank, snapshot.without(old), data.eval, observer):
        facts["known_rows"] = known
    written = written if old is None else written | {"replaces": old}
    with bank.reserve("import", name, {"source": found.name, "digest": digest, **written}) as operation:
        superseded = superseded_by(opened.refresh(), old)
        result = _commit(opened, operation, judged, data, order, context, facts, observer)
    told = found_in_data(data)
    return AddTaskResult(*result, bank=str(opened.path), bank_created=created, **told, superseded=superseded)


def _as_trained(adapter: ForeignAdapter | ForeignTuner, init: InitConfig) -> InitConfig:
    """The settings of a bank that is made now: where they leave the task type open, the adapter's own."""
    if init.task_type != "auto" or adapter.task_type not in TASK_TYPES:
        return init
    return validate(InitConfig, asdict(init) | {"task_type": adapter.task_type})


def _future_base(
    opened: OpenBank, name: str, config: TrainConfig, init: InitConfig, observer: Observer, *, replace: bool
) -> OpenBase:
    """The base model that the adapter is to sit on; a name that is taken is told before the base is loaded.

    Raises:
        ExistsError: The name is taken.
    """
    base = future_base(opened, config, init, observer)
    if opened.exists:
        snapshot = opened.snapshot
        for kind, records in (("task", snapshot.tasks), ("composition", snapshot.compositions)):
            if any(record.name == name for record in records) and not (replace and kind == "task"):
                raise taken(kind, name, kind="import")
        head_before(snapshot.without(snapshot.position_of(name) if replace else None), config.head)
    return base


def _earlier_parts(opened: OpenBank, digest: str, part: int | None) -> tuple[str, ...]:
    """The adapters beneath part ``part`` of a folder: O-LoRA answers with the sum of a task's adapter and the earlier.

    Raises:
        NotFoundError: One of them is not in the bank.
    """
    if part is None or part == 1:
        return ()
    snapshot = opened.snapshot if opened.exists else None
    adapters = [snapshot.adapter_of(task.name) for task in snapshot.tasks] if snapshot else []
    parts = {
        adapter.metrics.get("part"): adapter for adapter in adapters if adapter.metrics.get("source_digest") == digest
    }
    for earlier in range(1, part):
        if earlier not in parts:
            raise NotFoundError(
                f"part {part} was trained on top of part {earlier}, which is not in the bank",
                hint=f"the same import with --part {earlier} first",
                unchanged=_UNCHANGED,
            )
    return tuple(parts[earlier].digest for earlier in range(1, part))


def _commit(
    opened: OpenBank,
    operation: Operation,
    judged: Judged,
    data: TaskData,
    labels: tuple[str, ...],
    context: tuple[str, ...],
    facts: dict[str, Any],
    observer: Observer,
) -> tuple[TaskRecord, AdapterRecord, tuple[DatasetRecord, ...], dict[str, Any]]:
    bank, snapshot = opened.bank, opened.snapshot.without(operation.config.get("replaces"))
    adapter, config = judged.adapter, judged.config
    overlap: dict[str, Any] = {}
    if isinstance(adapter.made, LoraFactors):
        overlap = overlap_report(adapter.made, read_stack(bank, adapters_in_order(snapshot)))
    settings = recorded_settings(config, data)
    record = AdapterRecord(
        digest=operation.stage_adapter(judged.files),
        task=operation.name,
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        use_rslora=adapter.use_rslora,
        target_modules=adapter.modules,
        strategy=IMPORTED,
        penalties={},
        context=context,
        seed=config.seed,
        steps=0,
        wall_seconds=0.0,
        device=str(resolve_device(config.device)),
        bytes=0,
        head_digest=hashlib.sha256(save_tensors(dict(judged.head))).hexdigest() if judged.head else None,
        files={},
        versions=package_versions(),
        config={name: settings[name] for name in _USED},
        metrics={ANSWERS: "own", **facts, **overlap, **text_facts(data)},
        objects={role: operation.stage_blob(value) for role, value in judged.others.items()},
    )
    task = TaskRecord(
        name=operation.name,
        position=0,
        task_type=snapshot.base.task_type,
        labels=labels,
        state="training",
        adapter=record.digest,
        statistics=operation.stage_blob(judged.statistics),
        prompt_template=data.prompt_template and str(data.prompt_template),
    )
    datasets = dataset_records(operation, data, config, judged.rows_cut, judged.rows_dropped, trained=False)
    return commit_and_score(opened, operation, task, record, datasets, observer)


def _label_order(data: TaskData, labels: Sequence[str] | None, observer: Observer) -> tuple[str, ...]:
    """The labels in the order of the head's outputs; without a head they are words, whose order says nothing.

    Raises:
        ConfigError: A label stands twice, or labels are given for a language model.
        DataError: The rows have a label that the head does not know.
    """
    if data.scoring != HEAD:
        if labels is not None:
            raise ConfigError(
                "--labels: a language model's adapter has no head whose outputs could be named",
                hint="leave it out; other words for the data's labels: --set label_words=0=negative,1=positive",
                unchanged=_UNCHANGED,
            )
        observer.notice(as_asked(data))
        return data.labels
    if labels is None:
        observer.notice(f"labels in the order of the head's outputs, taken from the data: {listed(data.labels)}")
        return data.labels
    order = tuple(labels)
    if len(set(order)) != len(order) or not all(order):
        raise ConfigError("--labels: a label is empty or appears twice", unchanged=_UNCHANGED)
    unknown = [label for label in data.labels if label not in order]
    if unknown:
        hint = f"the data's labels: {listed(data.labels)}"
        _refuse(f"the data has the label {unknown[0]!r}, --labels does not", hint)
    return order


def _warn(facts: Mapping[str, Any], observer: Observer) -> None:
    if facts["ignored_fields"]:
        observer.notice(f"unknown fields of the adapter's config that were skipped: {listed(facts['ignored_fields'])}")
    if facts["taken_from_names"]:
        observer.notice(
            f"the tensors' names were read without the prefixes of wrappers: {listed(facts['taken_from_names'])}"
        )
    if facts["targets_unread"]:
        observer.notice(
            "the tensors decide which modules are adapted; these fields of the config were not read: "
            f"{facts['targets_unread']}"
        )
    if facts["tasks_in_source"] > 1 and facts["part"] is None:
        observer.notice(
            f"the adapter is the sum of {facts['tasks_in_source']} tasks of O-LoRA and becomes one task; "
            "--part 1, --part 2, ... takes them one by one"
        )
    if cut := facts.get("as_lora"):
        worst = max(cut["by_module"], key=cut["by_module"].__getitem__)
        observer.notice(
            f"the {cut['tuner']} of PEFT as a LoRA adapter: relative error {cut['relative_error']:.3g} of its delta "
            f"weights, at most {cut['by_module'][worst]:.3g} on {worst}"
        )
    if facts["largest_update"] > 1:
        observer.notice(
            f"the adapter's update is up to {facts['largest_update']:.1f} times as large as the weights it is added to"
        )
    if facts["rows_cut"]:
        observer.notice(f"{facts['rows_cut']} training texts are longer than --max-length and are truncated")
    if facts["rows_dropped"]:
        observer.notice(f"{facts['rows_dropped']} training rows are left out: their answer alone exceeds --max-length")


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise DataError(message, hint=hint, unchanged=_UNCHANGED)
