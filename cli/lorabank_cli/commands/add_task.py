"""``lorabank add-task``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorabank.core.commands import ADD_TASK, Command
from lorabank.core.config import InitConfig, TrainConfig
from lorabank.core.escaping import safe
from lorabank.core.settings import old_names, sections
from lorabank.core.states import TUNER
from lorabank_cli.options import remarked
from lorabank_cli.render.labels import confusion, summary
from lorabank_cli.render.output import plain
from lorabank_cli.render.text import named, pairs, scored, shortened
from lorabank_cli.render.texts import other_metrics, samples
from lorabank_cli.settings import show_settings
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.core.records import AdapterRecord, TaskRecord
    from lorabank.workflows.results import AddTaskResult

_MOST_LABELS = 8
"""Of a task whose confusion matrix is shown at once; `eval --task` shows larger ones."""
_SECTIONS = sections(TrainConfig)


@verb(
    "add-task",
    configs={**dict.fromkeys(_SECTIONS, TrainConfig), "New bank": InitConfig},
    fields=_SECTIONS | {"Method": (*_SECTIONS["Method"], *old_names(TrainConfig))},
    dry_run=True,
    several=True,
    examples=(
        "add-task sentiment --data sentiment.jsonl",
        "add-task spam --data spam.csv --text-column body --label-column kind",
        "add-task products --data p.parquet --strategy isolated --r 16 --epochs 3",
        "add-task spam --data spam.jsonl --dry-run",
        "add-task spam --resume",
        "add-task spam --data spam.jsonl --replace",
    ),
)
@click.argument("name", help="Name of the task: lower-case letters, digits, '.', '_' and '-'.")
@click.option("--resume", is_flag=True, help="Resume the interrupted training of this task with its settings.")
@click.option("--restart", is_flag=True, help="Drop the interrupted training of this task and start again.")
@click.option("--replace", is_flag=True, help="Make a new version of a task of this name; 'lorabank undo' reverts it.")
@remarked
def add_task(
    run: Run, name: str, resume: bool, restart: bool, replace: bool, note: str | None, tags: tuple[str, ...]
) -> None:
    """Train an adapter for a new task and add it to the bank.

    The earlier adapters stay as they are; the strategy decides what they do while the new one is trained. The adapter
    enters the bank whole or not at all. If there is no bank, one is made for the base model of --base. With --replace
    the older version of the task answers until the new one is in the bank.
    """
    from lorabank import api
    from lorabank_cli.failures import Interrupted

    config = _config(run, name, resume, restart)
    init = run.config(InitConfig)
    if run.dry_run:
        if config is None:
            raise click.UsageError("--dry-run and --resume exclude each other")
        plan = plain(api.plan_task(run.bank, name, config, init, replace=replace))
        show_settings(run, f"would train task {name}", resolved=plan.pop("settings"), plan=plan)
        return
    try:
        with run.observer as observer:
            result = api.add_task(
                run.bank,
                name,
                config,
                init=init,
                resume=resume,
                restart=restart,
                observer=observer,
                note=note,
                tags=tags,
                replace=replace,
            )
    except KeyboardInterrupt:
        hint, commands = "the same command starts again from the beginning: there was no checkpoint yet", []
        if name in api.resumable(run.bank):
            hint, commands = "resume from the last checkpoint", [Command("add-task", name, "--resume")]
        raise Interrupted("interrupted", unchanged="the bank was not changed", hint=hint, commands=commands) from None
    names = {digest: adapter.task for digest, adapter in api.overview(run.bank).adapters.items()}
    run.output.data(result, _text(run, result, names))


def _config(run: Run, name: str, resume: bool, restart: bool) -> TrainConfig | None:
    """The settings, or None when those of the interrupted training are used."""
    if resume and restart:
        raise click.UsageError("--resume and --restart exclude each other")
    if run.ctx.params["data"]:
        return run.config(TrainConfig)
    if not resume:
        raise click.UsageError("Missing option '--data'")
    from lorabank.core.settings import old_names, setting_names

    given = run.flags((*setting_names(TrainConfig), *old_names(TrainConfig)))
    if given:
        raise click.UsageError(f"--resume without --data takes the stored settings; leave out {', '.join(given)}")
    return None


def _text(run: Run, result: AddTaskResult, names: dict[str, str]) -> str:
    from lorabank.bank.room import in_words, room_beside

    task, adapter, score = result.task, result.adapter, result.score
    largest = sorted(adapter.metrics.get("overlap", {}).items(), key=lambda item: -item[1])
    overlap = [f"{names[digest]} {value:.4f}" for digest, value in largest]
    size = adapter.metrics.get(TUNER, f"r {adapter.r}")
    left, room = adapter.metrics.get("capacity_left"), room_beside(adapter)
    items: list[tuple[str, object]] = [
        ("adapter", adapter.digest),
        (named(score["metric"]), f"{scored(score)} (95 % interval, task id given)"),
        *summary(score.get("labels")),
        *other_metrics(score.get("texts"), score["metric"]),
        ("strategy", f"{adapter.strategy}, {size}, {adapter.steps} steps, {adapter.wall_seconds:.0f} s"),
        ("kept", kept_step(adapter)),
        ("held", _held(adapter, names)),
        ("overlap", shortened(overlap) or None),
        ("known rows", known(adapter, names)),
        ("capacity left", None if left is None else f"{100 * left:.1f} % of the input space"),
        ("room", room and in_words(room)),
    ]
    matrix = confusion(score["labels"], _MOST_LABELS) if score.get("labels") else None
    head = f"added task {safe(task.name)} ({numbered(task)}) to {safe(result.bank)}\n{pairs(items)}"
    chosen = ("--task", task.name, "TEXT")
    asked = Command("predict", *chosen) if task.labels else Command("generate", *chosen)
    follow = run.output.next(asked, Command("eval", "--forgetting-matrix") if task.position > 1 else ADD_TASK)
    answers = samples(score["texts"]) if score.get("texts") else None
    head = "\n".join([head, follow, *again(run, result)])
    return "\n\n".join(part for part in (head, matrix, answers) if part)


def kept_step(adapter: AdapterRecord) -> str | None:
    """Which step is kept, where held-out rows decided; else None."""
    facts = adapter.metrics
    if facts.get("best_step") is None:
        return None
    ended = "stopped early" if facts.get("stopped_early") else "trained to the end"
    return (
        f"step {facts['best_step']} of {adapter.steps}, best on {facts.get('rows_held_out')} held-out rows ({ended})"
    )


def known(adapter: AdapterRecord, names: dict[str, str]) -> str | None:
    """How many evaluation rows are among the training rows of earlier tasks; None where no one knows any."""
    found = adapter.metrics.get("known_rows", {})
    return shortened([f"{count} of {names.get(digest, digest)}" for digest, count in found.items()]) or None


def numbered(task: TaskRecord) -> str:
    """The place of a new task in the sequence, and of the version that it took the place of."""
    return f"number {task.position}" + (f", in place of number {task.replaces}" if task.replaces else "")


def again(run: Run, result: AddTaskResult) -> list[str]:
    """How to make the compositions again that went with an older version, and how to take it all back."""
    if result.task.replaces is None:
        return []
    gone = result.superseded
    made = [run.output.next(*gone.values(), title=f"to make {safe(', '.join(gone))} again")] if gone else []
    return [*made, run.output.next(Command("undo"), title="to go back to before")]


def _held(adapter: AdapterRecord, names: dict[str, str]) -> str:
    """Which earlier adapters were active and frozen, and what kept the new one apart from them."""
    if not adapter.context:
        return "nothing: no earlier adapter was active"
    earlier = shortened([names[digest] for digest in adapter.context])
    by = ", ".join(f"{name} {weight:g}" for name, weight in adapter.penalties.items()) or "no penalty"
    return f"{earlier} (active, frozen; {by})"
