"""``lorabank add-task``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lorabank.core.config import InitConfig, TrainConfig
from lorabank_cli.output import plain
from lorabank_cli.settings import show_settings
from lorabank_cli.text import command, pairs, safe
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.api import AddTaskResult


@verb(
    "add-task",
    configs={"Task": TrainConfig, "New bank": InitConfig},
    dry_run=True,
    examples=(
        "add-task sentiment --data sentiment.jsonl",
        "add-task spam --data spam.csv --text-column body --label-column kind",
        "add-task products --data p.parquet --strategy isolated --r 16 --epochs 3",
        "add-task spam --data spam.jsonl --dry-run",
        "add-task spam --resume",
    ),
)
@click.argument("name", help="Name of the task: lower-case letters, digits, '.', '_' and '-'.")
@click.option("--resume", is_flag=True, help="Go on with the interrupted training of this task, with its settings.")
@click.option("--restart", is_flag=True, help="Drop the interrupted training of this task and start anew.")
def add_task(run: Run, name: str, resume: bool, restart: bool) -> None:
    """Train an adapter for a new task and add it to the bank.

    The earlier adapters stay as they are; what they do while the new one is trained is the strategy. The adapter
    enters the bank whole or not at all. Without a bank one is made for the base model of --base.
    """
    from lorabank import api
    from lorabank_cli.failures import Interrupted

    config = _config(run, name, resume, restart)
    init = run.config(InitConfig)
    if run.dry_run:
        if config is None:
            raise click.UsageError("--dry-run and --resume exclude each other.")
        plan = plain(api.plan_task(run.bank, name, config, init))
        show_settings(run, f"would train task {name}", {k: v for k, v in plan.items() if k != "settings"})
        return
    observer = run.observer
    try:
        result = api.add_task(run.bank, name, config, init=init, resume=resume, restart=restart, observer=observer)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted",
            unchanged="the bank was not changed",
            hint=f"{command('lorabank', 'add-task', name)} --resume goes on from the last checkpoint",
        ) from None
    finally:
        observer.finish()
    run.output.data(result, _text(result))


def _config(run: Run, name: str, resume: bool, restart: bool) -> TrainConfig | None:
    """The settings, or None when those of the interrupted training are used."""
    if resume and restart:
        raise click.UsageError("--resume and --restart exclude each other.")
    if not resume:
        if not run.ctx.params["data"]:
            raise click.UsageError("Missing option '--data'.")
        return run.config(TrainConfig)
    from lorabank.core.config import config_fields

    given = run.flags([f.name for f in config_fields(TrainConfig)])
    if given:
        raise click.UsageError(f"--resume uses the stored settings; leave out {', '.join(given)}.")
    return None


def _text(result: AddTaskResult) -> str:
    task, adapter, score = result.task, result.adapter, result.score
    eval_rows = next((d.rows for d in result.datasets if d.split == "eval"), 0)
    accuracy = None
    if score and score.get("value") is not None:
        accuracy = (
            f"{score['value']:.4f} [{score['low']:.4f}, {score['high']:.4f}] on {score.get('n', eval_rows)} rows "
            "(95 % interval, task id given)"
        )
    items: list[tuple[str, object]] = [
        ("adapter", adapter.digest),
        ("accuracy", accuracy),
        ("strategy", f"{adapter.strategy}, r {adapter.r}, {adapter.steps} steps, {adapter.wall_seconds:.0f} s"),
        ("held", _held(adapter.penalties, adapter.config.get("context_tasks"), len(adapter.context))),
        ("overlap", _numbers(adapter.metrics.get("overlap"))),
        ("capacity", _numbers(adapter.metrics.get("capacity"))),
        ("next", "lorabank eval --forgetting-matrix" if task.position > 1 else "lorabank add-task NAME --data FILE"),
    ]
    return f"added task {safe(task.name)} (number {task.position}) to {safe(result.bank)}\n{pairs(items)}"


def _held(penalties: dict[str, float], tasks: Any, count: int) -> str:
    """What was kept orthogonal, and to which adapters."""
    if not count:
        return "nothing (no earlier adapter was active)"
    earlier = ", ".join(tasks) if tasks else f"{count} earlier adapter{'s' if count > 1 else ''}"
    by = ", ".join(f"{name} {value:g}" for name, value in penalties.items())
    return f"{earlier} (frozen{'; ' + by if by else ''})"


def _numbers(value: Any) -> str | None:
    """A number, or numbers by name."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_numbers(item)}" for name, item in value.items()) or None
    return f"{value:.4g}" if isinstance(value, int | float) else None
