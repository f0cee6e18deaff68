"""``stream``: labelled texts in their order, seen once; every plateau of the loss ends a task and begins the next.

Each task enters the bank whole, with where the stream stands. A stream that was stopped resumes behind the last task,
and gives what it would have given.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from io import BufferedIOBase

from lorabank.bank.blobs import parsed_blob
from lorabank.bank.operations import Operation
from lorabank.bank.snapshot import Snapshot
from lorabank.core.config import InitConfig, TrainConfig
from lorabank.core.errors import ConfigError, DataError, NotFoundError
from lorabank.core.observer import Listener, Observer
from lorabank.core.records import AdapterRecord
from lorabank.core.shelves import STREAMING
from lorabank.core.task_kinds import task_kind
from lorabank.data.forms.base import labelled_form
from lorabank.data.loading import TaskData
from lorabank.data.row_stream import StreamRow, read_stream, rows_of
from lorabank.exchange.peft_folder import read_head
from lorabank.models.bases.open_base import OpenBase
from lorabank.training.job import TrainJob
from lorabank.training.methods import chosen_strategy, filled_in
from lorabank.training.planning import check_fit
from lorabank.training.strategies.online_lora import OnlineLora
from lorabank.training.streaming.adapter import OnlineAdapter
from lorabank.workflows.assemble import read_stack
from lorabank.workflows.bases import check_base, described, open_or_init
from lorabank.workflows.learning.found import FoundTask, StreamResult
from lorabank.workflows.learning.known_rows import known_rows
from lorabank.workflows.learning.one_head import head_before
from lorabank.workflows.learning.past import check_past, earlier_adapters
from lorabank.workflows.learning.replayed import read_objects
from lorabank.workflows.learning.stream_rows import StreamRows
from lorabank.workflows.learning.stream_state import ROLE, StreamState, newest_of_stream
from lorabank.workflows.learning.train import commit_trained
from lorabank.workflows.open_bank import OpenBank

_DECIDING = (
    "eval_fraction", "set", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "first_layer",
    "batch_size", "learning_rate", "weight_decay", "max_grad_norm", "seed", "base_dtype",
    "max_length",
)  # fmt: skip
"""Settings that decide which tasks are found, and their adapters."""


def stream(
    opened: OpenBank,
    config: TrainConfig,
    *,
    init: InitConfig,
    lines: BufferedIOBase | None,
    prefix: str,
    resume: bool,
    found: Listener,
    observer: Observer,
) -> StreamResult:
    """Learn a stream to its end; ``found`` gets each task when it is in the bank."""
    config = replace(config, strategy=STREAMING, head="shared", epochs=1.0)
    chosen_strategy(config)
    config = filled_in(config)
    _check_base(opened, init, observer)
    if config.savings:
        raise ConfigError(
            "a stream is learnt without savings: what they plan needs the number of its steps",
            hint="leave out --saving",
            unchanged="nothing was changed",
        )
    check_past(opened.snapshot if opened.exists else None, chosen_strategy(config))
    check_fit(opened.base, config, len(earlier_adapters(opened.snapshot if opened.exists else None)))
    state = _state(opened, config, resume=resume)
    rows = StreamRows(read_stream(config, lines), config)
    if resume:
        rows.skip(state.taken)
    begun = rows.taken.rows
    created = rows.more() and open_or_init(opened, init, observer)
    if not rows.more() and not resume:
        raise DataError(f"{config.data!r} holds no rows", unchanged="nothing was changed")
    tasks: list[FoundTask] = []
    while rows.more():
        part = _learn_task(opened, config, prefix, rows, state, observer)
        if part is None:
            break
        task, state = part
        rows.found += 1
        tasks.append(task)
        found(task)
    behind = tasks[-1].last_row if tasks else begun
    return StreamResult(str(opened.path), created, tuple(tasks), rows.taken.rows - begun, rows.taken.rows - behind)


def _check_base(opened: OpenBank, init: InitConfig, observer: Observer) -> None:
    """Find the base of the bank, or of the bank to be, which must be a classifier's."""
    if opened.exists:
        check_base(opened.path, opened.refresh().base, init)
    else:
        opened.intend(OpenBase(described(init, observer, form=labelled_form())))
    if not task_kind(opened.base.record.task_type).has_head:
        raise ConfigError(
            "a stream is learnt by a classifier, whose head grows by its labels, and the base is a language model",
            hint="use a bank of another --task-type",
            unchanged="nothing was changed",
        )


def _state(opened: OpenBank, config: TrainConfig, *, resume: bool) -> StreamState:
    """Where the bank's last stream stands; a bank whose tasks have a head each takes none."""
    last = None
    if opened.exists:
        head_before(opened.snapshot, "shared")
        last = newest_of_stream(opened.snapshot)
    if resume and last is None:
        raise NotFoundError("there is no stream to resume", hint="leave --resume out", unchanged="nothing was changed")
    if last is None:
        return StreamState()
    if resume:
        _check_settings(_as_recorded(opened, config), last)
    return parsed_blob(opened.bank, last.objects[ROLE], StreamState.from_bytes)


def _as_recorded(opened: OpenBank, config: TrainConfig) -> TrainConfig:
    """The settings as an adapter's record keeps them: a text has no more tokens than the base takes."""
    most = opened.base.load(device=config.device, dtype=config.base_dtype).max_length
    return replace(config, max_length=min(config.max_length, most or config.max_length))


def _check_settings(config: TrainConfig, last: AdapterRecord) -> None:
    """Refuse to resume with settings that would not give what the stream would have given."""
    given = {name: getattr(config, name) for name in _DECIDING}
    stored = {name: last.config[name] for name in _DECIDING} | {"set": tuple(last.config["set"])}
    differ = [f"{name} was {stored[name]!r}" for name in _DECIDING if given[name] != stored[name]]
    if differ:
        raise ConfigError(
            f"--resume takes the settings of the stream that was stopped, and others are given: {', '.join(differ)}",
            hint="give the same settings, or leave --resume out to learn new rows with these",
            unchanged="nothing was changed",
        )


@dataclass
class _Part:
    """The rows of one adapter, and the state behind them."""

    state: StreamState
    train: list[StreamRow] = field(default_factory=list)
    held_out: list[StreamRow] = field(default_factory=list)
    plateau: bool = False
    loss: float = 0.0

    def known(self, labels: tuple[str, ...]) -> list[StreamRow]:
        """The rows held out whose label the head knows."""
        return [row for row in self.held_out if row.label in labels]


def _learn_task(
    opened: OpenBank, config: TrainConfig, prefix: str, rows: StreamRows, state: StreamState, observer: Observer
) -> tuple[FoundTask, StreamState] | None:
    """Train one adapter up to a plateau or the end of the rows, and put it into the bank.

    Returns:
        The task and the state behind it; None where the rows that are left make no task.
    """
    name, first = _next_name(opened.refresh(), prefix), rows.taken.rows + 1
    with opened.bank.reserve("add-task", name, {"config": asdict(config)}) as operation:
        snapshot = opened.refresh()
        opened.release()  # training needs the room of what answered before
        job = _job(opened, snapshot, config, operation)
        method = job.strategy
        assert isinstance(method, OnlineLora)
        adapter = OnlineAdapter(job, method, state.hard)
        part = _train(adapter, method, rows, state, config, observer)
        known = part.known(adapter.labels)
        if not known or len(adapter.labels) < 2:
            observer.notice(
                f"the last {rows.taken.rows - first + 1} rows are too few for a task (it needs two labels and a row "
                "that is held out): they are not in the bank"
            )
            return None
        trained = adapter.finish()
        trained = replace(trained, objects=trained.objects | {ROLE: part.state.to_bytes()})
        job = replace(job, labels=adapter.labels)
        del adapter
        data = TaskData(
            labels=tuple(sorted({row.label for row in part.train})),
            train=rows_of(part.train, config),
            eval=rows_of(known, config),
            dropped=len(part.held_out) - len(known),
            form=labelled_form(),
        )
        counts = known_rows(opened.bank, snapshot, data.eval, observer)
        task, *_, score = commit_trained(opened, operation, config, data, job, trained, counts, observer)
    before = snapshot.tasks[-1].labels if snapshot.tasks else ()
    found = FoundTask(
        name=task.name,
        position=task.position,
        first_row=first,
        last_row=rows.taken.rows,
        new_labels=task.labels[len(before) :],
        plateau=part.plateau,
        loss=part.loss,
        accuracy=score["value"],
        low=score["low"],
        high=score["high"],
        eval_rows=score["n"],
    )
    return found, part.state


def _job(opened: OpenBank, snapshot: Snapshot, config: TrainConfig, operation: Operation) -> TrainJob:
    """The settings and the past of an adapter whose rows are not known yet."""
    bank, earlier, strategy = opened.bank, earlier_adapters(snapshot), chosen_strategy(config)
    before = head_before(snapshot, config.head)
    return TrainJob(
        base=opened.base,
        config=config,
        strategy=strategy,
        texts=(),
        targets=(),
        labels=before.labels if before else (),
        earlier=lambda: read_stack(bank, earlier),
        context=strategy.context(earlier),
        continued=None,
        work=operation.work,
        number=len(snapshot.by_position),
        objects=read_objects(bank, earlier, strategy),
        earlier_head=read_head(bank.verified_adapter(snapshot.adapter_of(before.name).digest)) if before else {},
    )


def _train(
    adapter: OnlineAdapter,
    method: OnlineLora,
    rows: StreamRows,
    state: StreamState,
    config: TrainConfig,
    observer: Observer,
) -> _Part:
    """Batches until the loss is flat, or to the end of the rows, the last of which may be smaller."""
    part, window, batch = _Part(state), state.window, list[StreamRow]()
    for row in rows:
        if row.held_out(config.eval_fraction, config.seed):
            part.held_out.append(row)
        else:
            part.train.append(row)
            batch.append(row)
        if len(batch) < config.batch_size and (batch and rows.more()):
            continue
        if not batch:
            continue
        part.loss = adapter.step([(one.text, one.label) for one in batch])
        batch.clear()
        window = window.seen(part.loss, method.window)
        observer.advance(rows.taken.rows, {"loss": part.loss})
        ready = len(adapter.labels) > 1 and bool(part.known(adapter.labels))
        if ready and window.flat(method.window, method.mean_threshold, method.variance_threshold):
            part.plateau, window = True, window.settled()
            break
    part.state = StreamState(replace(rows.taken), window, adapter.hard)
    return part


def _next_name(snapshot: Snapshot, prefix: str) -> str:
    """The prefix with the next number that no task of the bank ever had."""
    form = re.compile(rf"{re.escape(prefix)}-([0-9]{{1,9}})")
    every = (*snapshot.tasks, *snapshot.damaged_tasks, *snapshot.removed_tasks)
    numbers = [int(found[1]) for task in every if (found := form.fullmatch(task.name))]
    return f"{prefix}-{max(numbers, default=0) + 1}"
