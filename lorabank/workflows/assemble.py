"""From records and files to what training, composition and evaluation work with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import FactorShape, LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.bank.bank import Bank
from lorabank.bank.blobs import parsed_blob
from lorabank.bank.snapshot import Snapshot
from lorabank.compose.base import Composer, Member, made_again
from lorabank.compose.routers.statistics import TaskStatistics
from lorabank.core.commands import VERIFY
from lorabank.core.errors import (
    BusyError,
    DamagedError,
    DataError,
    IncompatibleError,
    NotFoundError,
    StorageError,
    leaving,
)
from lorabank.core.machine.sizes import parse_bytes
from lorabank.core.methods import changed_settings
from lorabank.core.records import AdapterRecord, CompositionRecord, DatasetRecord, Lineage, TaskRecord
from lorabank.core.shelves import COMPOSERS, SCORINGS
from lorabank.core.states import TUNER, grown, needed, own_state
from lorabank.core.task_kinds import HEAD, task_kind
from lorabank.core.templates import ChatPrompt
from lorabank.data.formats.parquet import from_parquet
from lorabank.data.methods import in_chat_template, recorded_scoring
from lorabank.data.rows import Rows
from lorabank.exchange.peft_folder import read_factors, read_shapes
from lorabank.exchange.peft_folder import read_stack as read_folders
from lorabank.models.answering.base import Answerer, AnswerForm
from lorabank.models.answering.head_answers import HeadAnswerer
from lorabank.models.answering.text_answers import TextAnswerer
from lorabank.models.bases.loading import resolve_device
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.sites import site_of
from lorabank.models.mixing.resident_stack import ResidentStack
from lorabank.models.mixing.runtime import Runtime
from lorabank.models.tuners.alone import Alone, answering
from lorabank.workflows.stored_heads import UNREADABLE, StoredHeads


def adapters_in_order(snapshot: Snapshot) -> list[AdapterRecord]:
    """The adapters of the bank's ready tasks, in sequence order."""
    return [snapshot.adapter_of(task.name) for task in snapshot.tasks]


def stack_of(bank: Bank, digests: Iterable[str]) -> AdapterStack:
    """Verified adapters by digest, each once, in float32 on the CPU."""
    return read_folders(bank.verified_adapters(digests), device="cpu", dtype=torch.float32)


def read_stack(bank: Bank, adapters: Sequence[AdapterRecord]) -> AdapterStack | None:
    """The adapters and all that they were trained on top of, without those of no factors; None when there are none."""
    digests = Lineage.union(needed(adapter) for adapter in adapters if TUNER not in adapter.metrics)
    return stack_of(bank, digests) if digests else None


def read_rows_of(bank: Bank, snapshot: Snapshot, task: str, split: str) -> Rows | None:
    """A split that the bank keeps, or None."""
    dataset = snapshot.dataset(task, split)
    return parsed_blob(bank, dataset.blob, from_parquet) if dataset and dataset.blob else None


def evaluation_data(snapshot: Snapshot) -> dict[str, DatasetRecord]:
    """Task name to its evaluation split, for every ready task.

    Raises:
        NotFoundError: If a task keeps none.
    """
    found = {}
    for task in snapshot.tasks:
        dataset = snapshot.dataset(task.name, "eval")
        if dataset is None or dataset.blob is None:
            raise NotFoundError(f"task {task.name!r} keeps no evaluation rows", unchanged="nothing was changed")
        found[task.name] = dataset
    return found


def read_members(bank: Bank, snapshot: Snapshot, tasks: Sequence[TaskRecord], *, samples: bool) -> list[Member]:
    """What compositions see of some tasks; heads are numbered like the bank's ready tasks.

    Args:
        bank: The bank.
        snapshot: Its state.
        tasks: The members, in sequence order.
        samples: Whether the calibration samples are wanted.
    """
    heads = {task.name: index for index, task in enumerate(snapshot.tasks)}
    members = []
    for task in tasks:
        adapter = snapshot.adapter_of(task.name)
        rows = read_rows_of(bank, snapshot, task.name, "calibration") if samples else None
        members.append(
            Member(
                task=task.name,
                position=task.position,
                adapter=adapter.digest,
                state=own_state(adapter),
                head=heads[task.name],
                form=form_of(task, adapter),
                statistics=partial(_read_statistics, bank, task),
                statistics_digest=task.statistics or "",
                clusters=int(adapter.config.get("clusters_per_task", 5)),
                texts=rows.texts if rows else (),
                targets=rows.labels if rows else (),
                born=task.born,
                samples=partial(_read_samples, bank, snapshot, task.name),
                factors=partial(_read_adapter, bank),
                facts=adapter.objects,
                read_fact=bank.read_blob,
                grown=grown(adapter),
            )
        )
    return members


def _read_adapter(bank: Bank, digest: str) -> LoraFactors:
    return read_factors(bank.verified_adapter(digest))


def _read_samples(bank: Bank, snapshot: Snapshot, task: str) -> tuple[Sequence[str], Sequence[str]]:
    rows = read_rows_of(bank, snapshot, task, "calibration")
    return (rows.texts, rows.labels) if rows else ((), ())


def _read_statistics(bank: Bank, task: TaskRecord) -> TaskStatistics:
    if task.statistics is None:
        raise NotFoundError(
            f"task {task.name!r} keeps no routing statistics",
            unchanged="nothing was changed",
            hint="leave it out with --tasks, or compose with --mode manual or attention",
        )
    return parsed_blob(bank, task.statistics, TaskStatistics.from_bytes)


def form_of(task: TaskRecord, adapter: AdapterRecord) -> AnswerForm:
    """How a task is asked and answers, from its records."""
    return answer_form(task, adapter.config)


def answer_form(task: TaskRecord, config: Mapping[str, Any]) -> AnswerForm:
    """The same from the settings that its adapter's record keeps, or would keep."""
    template = task.prompt_template
    if template is not None and in_chat_template(config):
        template = ChatPrompt(template)
    head = task_kind(task.task_type).labelled
    scoring = HEAD if head else config["scoring"]
    return AnswerForm(
        labels=task.labels,
        max_length=int(config.get("max_length", 256)),
        scoring=scoring,
        template=template,
        settings=() if head else changed_settings(SCORINGS, scoring, recorded_scoring(config)),
    )


def holds_conversations(task: TaskRecord, adapter: AdapterRecord) -> bool:
    """Whether the texts of a task's rows are whole conversations as the chat template wrote them."""
    return in_chat_template(adapter.config) and task.prompt_template is None


@dataclass(frozen=True)
class RuntimeSettings:
    """How a model answers; equal settings of one state of a bank are one runtime.

    Attributes:
        device: A name for `resolve_device`.
        dtype: A name for `resolve_dtype`.
        batch_size: Texts of a forward pass.
        asked: Fields of every task's form that are other than recorded, with values: no template for raw texts.
        reuse_prefix: Whether the texts will be answered in several states.
        max_resident: Maximum memory for adapters, as `parse_bytes` takes it; None for no limit.
    """

    device: str
    dtype: str
    batch_size: int
    asked: tuple[tuple[str, Any], ...] = ()
    reuse_prefix: bool = False
    max_resident: str | None = None


@leaving("nothing was changed", commands=[VERIFY], kinds=(DataError, IncompatibleError))
def load_runtime(
    bank: Bank,
    snapshot: Snapshot,
    base: OpenBase,
    settings: RuntimeSettings,
    notice: Callable[[str], None] = lambda message: None,
) -> Runtime:
    """The base with every head of the ready tasks, and their adapters, each read when it is first needed.

    Behind the T heads, at index ``T + i``, are those that the tasks' trainings began with.

    Args:
        bank: The bank.
        snapshot: Its state, with one task at least.
        base: Its base model.
        settings: How it answers.
        notice: Gets what the user should know of how texts are answered.

    Raises:
        ConfigError: ``max_resident`` is not a size, or does not hold one adapter.
    """
    size = settings.max_resident
    max_bytes = None if size is None else parse_bytes(size, option="--max-resident")
    where = resolve_device(settings.device)
    loaded = base.load(device=where, dtype=settings.dtype)
    model = loaded.model
    adapters = adapters_in_order(snapshot)
    shapes = {digest: _shapes(bank, digest) for digest in Lineage.union(map(needed, adapters))}
    tuners = {one.digest: one.target_modules for one in adapters if TUNER in one.metrics}
    shapes |= {digest: _rows_of_none(model, modules) for digest, modules in tuners.items()}
    verified: set[str] = set()

    def verify(digest: str) -> Path:
        folder = bank.verified_adapter(digest)
        verified.add(digest)
        return folder

    stack = ResidentStack.reserve(
        shapes,
        lambda digest: read_factors(verify(digest)),
        device=where,
        dtype=model.dtype,
        max_bytes=max_bytes,
    )
    recorded = [form_of(task, adapter) for task, adapter in zip(snapshot.tasks, adapters, strict=True)]
    forms = [replace(form, **dict(settings.asked)) for form in recorded]

    def runtime(answerer: Answerer) -> Runtime:
        size, reuse = settings.batch_size, settings.reuse_prefix
        alone = {digest: partial(_read_alone, partial(verify, digest)) for digest in tuners}
        return Runtime(loaded, stack, answerer, batch_size=size, reuse_prefix=reuse, alone=alone, notice=notice)

    if not task_kind(snapshot.base.task_type).has_head:
        answerer: Answerer = TextAnswerer(loaded, snapshot.base.task_type, forms, settings.batch_size)
        return runtime(answerer)
    heads = StoredHeads(bank, loaded, adapters, forms, verified, verify)
    return runtime(HeadAnswerer(loaded, heads, [*forms, *forms], settings.batch_size, heads.vouch))


def _shapes(bank: Bank, digest: str) -> dict[str, FactorShape]:
    """From the header, which is not hashed; none where it cannot be read: who needs the adapter is refused."""
    try:
        return read_shapes(bank.adapter_path(digest))
    except UNREADABLE:
        return {}


def _rows_of_none(model: nn.Module, modules: Iterable[str]) -> dict[str, FactorShape]:
    """The modules of an adapter that has no factors: they are mixed, and it has no rows there."""
    sites = ((name, site_of(model, name)) for name in modules)
    return {name: FactorShape(0, site.d_in, site.d_out, 1.0) for name, site in sites}


def _read_alone(verify: Callable[[], Path], weight: Callable[[str], Tensor]) -> Alone:
    """An adapter that has no factors, from its files.

    Raises:
        DamagedError: What they hold is not such an adapter.
    """
    from lorabank.exchange.tuners.folder import read_tuner

    folder = verify()
    try:
        return answering(read_tuner(folder)[0], weight)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DamagedError(f"adapter {folder}: what is stored cannot be used ({error!r})") from error


class _Objects(MutableMapping[str, bytes]):
    """Role to content, read when it is asked for: no one needs all of them at once.

    What is put in is derived from the rest and kept in the bank, if that can be now; nothing is ever taken out.
    """

    def __init__(self, bank: Bank, record: CompositionRecord) -> None:
        self._bank = bank
        self._record = record
        self._digests = record.objects
        self._new: dict[str, bytes] = {}

    def __getitem__(self, role: str) -> bytes:
        if role in self._new:
            return self._new[role]
        if role not in self._digests:
            message = f"composition {self._record.name[:80]!r} lacks its {role[:80]!r}"
            raise DamagedError(message, commands=[made_again(self._record)])
        return self._bank.read_blob(self._digests[role])

    def __setitem__(self, role: str, data: bytes) -> None:
        self._new[role] = data
        with suppress(BusyError, NotFoundError, StorageError):  # it can be derived again
            self._bank.keep_derived(self._record, role, data)

    def __delitem__(self, role: str) -> None:
        raise TypeError("what a composition is made of stays")

    def __contains__(self, role: object) -> bool:
        return role in self._digests or role in self._new

    def __iter__(self) -> Iterator[str]:
        return iter({**self._digests, **self._new})

    def __len__(self) -> int:
        return len({**self._digests, **self._new})


def load_composer(
    bank: Bank, snapshot: Snapshot, record: CompositionRecord, runtime: Callable[[], Runtime]
) -> tuple[Composer, list[Member]]:
    """A stored composition, ready to answer, and its members."""
    members = read_members(bank, snapshot, [snapshot.task(name) for name in record.members], samples=False)
    objects = _Objects(bank, record)
    composer: Any = COMPOSERS.load(record.mode)
    try:
        loaded: Composer = composer.load(record, objects, members, runtime)
    except DamagedError as error:
        if error.message.startswith("composition "):
            raise
        raise error.saying(f"composition {record.name[:80]!r}: {error.message}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise DamagedError(
            f"composition {record.name[:80]!r}: what is stored for it cannot be used ({error!r})",
            commands=[made_again(record)],
        ) from error
    return loaded, members
